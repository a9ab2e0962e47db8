"""`lite-align dpo` from rows to verdict: every file of a run, the proof, the adapter, and what stops it."""

import math
from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lite_align.data.render import Renderer
from lite_align.errors import TrainingStopped
from lite_align.model.backbone import Backbone, Role
from lite_align.recipe import flatten
from lite_align.stages import answers
from lite_align.train.record import read_record
from tests.stages import small
from tests.stages.commands import ROWS, Done, dpo

WORDS = {"better", "worse", "no evidence either way"}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch) -> None:
    monkeypatch.setattr(answers, "PROBE_TOKENS", 8)


@pytest.fixture(scope="module")
def done(tiny_llama, tmp_path_factory) -> Iterator[Done]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(answers, "PROBE_TOKENS", 8)
        yield dpo(tiny_llama, tmp_path_factory.mktemp("run"))


# What a run leaves.


def test_every_file_is_there(done):
    names = {str(path.relative_to(done.path)) for path in done.path.rglob("*") if path.is_file()}
    assert {
        "run.json",
        "metrics.jsonl",
        "held_out.jsonl",
        "answers.jsonl",
        "report.html",
        "log.txt",
        "adapters/policy/adapter_config.json",
        "adapters/policy/adapter_model.safetensors",
    } <= names
    assert not [name for name in names if ".tmp" in name]


def test_the_record_says_everything(done, tiny_llama):
    record = done.record
    assert (record["stage"], record["status"]) == ("dpo", "finished")
    assert record["command"] == ["lite-align", "dpo", "rows.jsonl"]
    assert record["recipe"]["train"]["learning_rate"] == 0.01
    assert record["provenance"]["loss.beta"] == "--set"
    undecided = [key for key, value in flatten(record["recipe"]).items() if value == "auto"]
    assert undecided == ["data.format"]  # the vote stands under data
    data = record["data"]
    assert (data["format"], data["rows"], data["kept"], data["held_out"]) == ("pair.text", 24, 24, 6)
    assert data["dropped"] == {}
    assert set(data["tokens"]) == {"prompt", "chosen", "rejected"}
    assert all(0 < part["median"] <= part["95 %"] <= part["longest"] for part in data["tokens"].values())
    assert data["warnings"] == []
    assert record["plan"]["total_steps"] == 4
    assert record["plan"]["pairs"] == 18
    model = record["model"]
    assert (model["name"], model["quantization"], model["dtype"]) == (str(tiny_llama), "none", "float32")
    assert model["shares_prefixes"] is True
    assert model["parameters"] == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters()
    )
    assert {"data", "template", "base", "tokens"} <= record["hashes"].keys()
    assert record["versions"].keys() >= {"torch", "transformers", "peft"}
    proof = record["reference"]["proof"]
    assert proof["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert proof["largest_difference"] < 1e-4
    assert len(record["reference"]["base_sha256"]) == 64


def test_metrics_have_every_step_and_every_evaluation(done):
    rows = done.lines("metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["step"] for row in evaluations] == [2, 4]
    for row in steps:
        assert {
            "epoch", "loss/preference", "loss/sft", "rewards/margins", "rewards/accuracies", "logps/chosen",
            "grad_norm", "learning_rate", "examples_per_second", "tokens_per_second", "moved",
        } <= row.keys()  # fmt: skip
        assert row["moved"] > (0.4 if row["step"] == 1 else 0.95)
    assert steps[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert [row["epoch"] for row in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8])  # 5 steps an epoch


def test_held_out_rows_agree_with_the_last_evaluation(done):
    rows = done.lines("held_out.jsonl")
    last = [row for row in done.lines("metrics.jsonl") if "eval/loss" in row][-1]
    assert len(rows) == 6
    assert sum(row["after"]["margin"] for row in rows) / 6 == pytest.approx(
        last["eval/rewards/margins"], rel=1e-4
    )
    assert sum(row["after"]["chosen_logp"] for row in rows) / 6 == pytest.approx(
        last["eval/logps/chosen"], rel=1e-5
    )
    assert {row["before"]["margin"] for row in rows} == {0.0}
    lines = {int(row["source"].rpartition(":")[2]): row for row in rows}
    assert all(row["category"] == ROWS[line - 1]["category"] for line, row in lines.items())


def test_answers_and_verdict(done):
    answers = done.lines("answers.jsonl")
    assert len(answers) == 6
    assert {row["prompt"] for row in answers} <= {row["prompt"] for row in ROWS}
    assert all(0 < row[side] <= 8 for row in answers for side in ("before_tokens", "after_tokens"))
    verdict = done.record["verdict"]
    assert verdict["word"] in WORDS
    assert "6 held-out pairs" in verdict["sentences"][0]
    assert any("Only 6 held-out pairs" in warning for warning in verdict["warnings"])


def test_the_page_and_the_text_for_people(done):
    page = (done.path / "report.html").read_text(encoding="utf-8")
    word = done.record["verdict"]["word"]
    assert word in page.lower()
    text = " ".join(done.out.split())
    for part in (
        "24 rows · pair.text (100 % of rows)",
        "held out: 6 pairs, by prompt",
        "4 steps of 4 pairs",
        "train.learning_rate 0.01",
        "0 of 24 pairs from the cache",
        "loss 0.6931 = 0.6931",
        f"{word[0].upper()}{word[1:]}.",
        f"lite-align chat {done.path}",
    ):
        assert part in text, part
    order = [done.out.index(f"\n {label} ") for label in ("plan", "settings", "proof", "verdict", "next")]
    assert order == sorted(order)


def test_the_adapter_is_loadable_by_peft_alone(done, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, done.path / "adapters" / "policy").eval()
    tokenizer = small.backbone(tiny_llama).loaded.tokenizer
    rows = {int(row["source"].rpartition(":")[2]): row for row in done.lines("held_out.jsonl")}
    pairs = small.as_pairs(ROWS)
    renderer = Renderer(tokenizer)
    for line, row in list(rows.items())[:3]:
        pair = pairs[line - 1]
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            rendered = renderer.conversation(pair.prompt, answer)
            ids = torch.tensor([rendered.ids])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            alone = float(logps[torch.tensor(rendered.trained[1:])].sum())
            assert alone == pytest.approx(row["after"][f"{side}_logp"], abs=1e-4)
            assert abs(alone - row["before"][f"{side}_logp"]) > 1e-2  # and it was really used


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_a_loss_without_a_reference(tiny_llama, tmp_path, name):
    found = dpo(tiny_llama, tmp_path, f"loss.name={name}", "train.max_steps=2", "loss.beta=auto")
    record = found.record
    assert record["status"] == "finished"
    assert record["reference"]["proof"]["loss"] is None
    assert "nothing to prove" in found.out
    assert record["verdict"]["word"] in WORDS
    assert "auto: the default of" in record["provenance"]["loss.beta"]
    assert "0 of 6 pairs from the cache" in found.out  # held-out pairs alone are measured against the base
    assert len(found.lines("held_out.jsonl")) == 6


def test_the_second_run_takes_the_reference_from_the_cache_and_ends_equal(tiny_llama, tmp_path):
    adapters = []
    for name, hits in (("one", 0), ("two", 24)):
        found = dpo(tiny_llama, tmp_path, "train.max_steps=2", out=tmp_path / name)
        assert f"{hits} of 24 pairs from the cache" in found.out
        adapters.append((tmp_path / name / "adapters/policy/adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


# What stops it.


def test_a_wrong_start_stops_the_run_before_the_first_step(tiny_llama, tmp_path, monkeypatch):
    attach = Backbone.__init__

    def moved(self, *arguments, **options):
        attach(self, *arguments, **options)
        with torch.no_grad():
            for _, parameter in self.parameters(Role.POLICY):
                parameter.add_(0.05)

    monkeypatch.setattr(Backbone, "__init__", moved)
    with pytest.raises(TrainingStopped, match="does not start at its reference"):
        dpo(tiny_llama, tmp_path)
    assert read_record(tmp_path / "out")["status"] == "failed"
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    assert not (tmp_path / "out" / "adapters").exists()
