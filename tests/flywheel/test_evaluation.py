"""`eval` from the command line to its files: figures against an oracle row by row, gates, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_align import cli
from lite_align.data import sources
from lite_align.data.render import Renderer
from lite_align.data.types import Message
from lite_align.flywheel import bench as benches
from lite_align.flywheel import evaluation, questions, sides
from lite_align.flywheel.bench import Bench
from lite_align.model.backbone import Role
from lite_align.stages.speaker import Sampling
from lite_align.train.finished import FinishedRun, read_finished
from lite_align.view import View
from tests.flywheel.small import WORDS, Made, lines

QUICK = ("--max-tokens", "8", "--quiet")


def evaluated(run: Path, out: Path, *flags: object) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    code = cli.run(["eval", str(run), "--out", str(out), *map(str, flags), *QUICK])
    record = json.loads((out / "eval.json").read_text(), parse_constant=lambda text: 1 / 0)
    rows = [json.loads(line) for line in (out / "eval.jsonl").read_text().splitlines()]
    return code, record, rows


def oracle(run: FinishedRun, renderer: Renderer) -> Callable[[Role, Any, Any], tuple[float, int]]:
    """Log-prob and length of one answer under a role, by a plain forward pass over its own row."""
    backbone = run.backbone("cpu")

    def logp(role: Role, prompt: Any, answer: Any) -> tuple[float, int]:
        rendered = renderer.conversation(prompt, answer)
        ids = torch.tensor([rendered.ids])
        with torch.no_grad(), backbone.role(role):
            logits = backbone.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        own = [n for n, trained in enumerate(rendered.trained) if trained]
        return sum(float(logits[n - 1, rendered.ids[n]]) for n in own), len(own)

    return logp


def test_the_report_of_the_run_has_it(made: Made, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.first, run)
    assert cli.run(["eval", str(run), "--prompts", "4", "--gate", "kl<=1000", *QUICK]) == 0
    assert "kl &lt;=1000" in (run / "report.html").read_text()


def test_held_out_pairs_against_an_oracle(made: Made, tmp_path: Path, tokenizer: Any) -> None:
    code, record, rows = evaluated(made.first, tmp_path)
    assert code == 0
    run = read_finished(made.first)
    renderer = Renderer(tokenizer)
    examples = questions.held_out(run, renderer).examples
    logp = oracle(run, renderer)
    values = {
        role: [
            (logp(role, row.prompt, row.chosen), logp(role, row.prompt, row.rejected)) for row, _ in examples
        ]
        for role in (Role.BASE, Role.POLICY)
    }
    losses = [-chosen / tokens for (chosen, tokens), _ in values[Role.POLICY]]
    before = [-chosen / tokens for (chosen, tokens), _ in values[Role.BASE]]
    gaps = {role: [c[0] - r[0] for c, r in found] for role, found in values.items()}
    margins = [now - was for was, now in zip(gaps[Role.BASE], gaps[Role.POLICY])]
    found = record["figures"]
    assert found["loss"]["value"] == pytest.approx(sum(losses) / 20, abs=1e-4)
    assert found["loss"]["before"] == pytest.approx(sum(before) / 20, abs=1e-4)
    assert found["accuracy"]["value"] == sum(margin > 0 for margin in margins) / 20
    assert found["accuracy"]["before"] == 0.5
    assert found["prefers_chosen"]["before"] == sum(gap > 0 for gap in gaps[Role.BASE]) / 20
    beta = run.recipe.loss.beta  # type: ignore[union-attr]
    beta = beta if isinstance(beta, float) else 1.0
    assert found["margin"]["value"] == pytest.approx(beta * sum(margins) / 20, abs=1e-3)
    assert {"loss/a", "loss/b", "kl", "tokens", "refusal"} <= found.keys()
    assert len(rows) == record["data"]["prompts"] == 20
    assert record["data"]["rows"] == 20


def test_what_stands_in_the_files(made: Made, tmp_path: Path) -> None:
    _, record, rows = evaluated(made.first, tmp_path, "--data", made.prompts, "--prompts", 3)
    assert record["schema"] == 1
    assert record["command"].startswith("lite-align")
    assert record["data"]["path"] == str(made.prompts)
    assert record["data"]["sha256"] == sources.read(str(made.prompts)).sha256
    assert (record["data"]["prompts"], record["data"]["rows"], record["probes"]) == (3, 0, None)
    named = {"value", "low", "high", "count", "unit", "before", "better", "change"}
    assert all(figure.keys() == named for figure in record["figures"].values())
    assert record["figures"]["tokens"]["change"].keys() == {"value", "low", "high", "count"}
    assert {"kl/a", "kl/b", "tokens", "over_refusal", "under_refusal", "repetition", "distinct_2"} <= record[
        "figures"
    ].keys()
    assert [row["expect"] for row in rows] == ["refuse", "answer", "refuse"]
    assert [row["category"] for row in rows] == ["a", "b", "a"]
    assert rows[0]["prompt"] == [{"role": "user", "content": "hello world"}]
    assert {side for row in rows for side in ("before", "after") if len(row[side]) == 1} == {
        "before",
        "after",
    }


def test_conversations_of_several_turns_against_an_oracle(made: Made, tmp_path: Path, tokenizer: Any) -> None:
    turns = [Message(("user", "assistant")[n % 2], WORDS[n]) for n in range(4)]
    chat = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
    data = lines(tmp_path / "chats.jsonl", [chat])
    _, record, rows = evaluated(made.first, tmp_path / "out", "--data", data)
    logp = oracle(read_finished(made.first), Renderer(tokenizer))
    for role, name in ((Role.POLICY, "value"), (Role.BASE, "before")):
        answers = [logp(role, tuple(turns[:n]), (turns[n],)) for n in (1, 3)]
        expected = -sum(value for value, _ in answers) / sum(count for _, count in answers)
        assert record["figures"]["loss"][name] == pytest.approx(expected, abs=1e-4)
    assert "margin" not in record["figures"]
    assert [turn["content"] for turn in rows[0]["prompt"]] == [
        WORDS[0]
    ]  # what stands before the first answer


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_kl_of_an_answer_against_an_oracle(made: Made, temperature: float) -> None:
    side = sides.find(str(made.second))
    view = View(quiet=True)
    bench = Bench(sides.common_base([side]), [side], Sampling(temperature, 1.0, 6, 1), view)
    bench.put(side, Role.POLICY)
    replies = evaluation.replies_of(questions.read(str(made.prompts)), bench, 2, view)
    backbone = read_finished(made.second).backbone("cpu")

    def logp(role: Role, prompt: Any, answer: Any) -> float:
        with torch.no_grad(), backbone.role(role):
            logits = backbone.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        found = (logits / (temperature or 1.0)).log_softmax(-1)[len(prompt) - 1 : -1]
        return float(found[torch.arange(len(answer)), torch.tensor(answer)].sum())

    for reply in replies:
        prompt = reply.asked.ids
        answers = [list(answer.sampled.ids) for answer in reply.after]
        by_hand = [logp(Role.POLICY, prompt, ids) - logp(Role.BASE, prompt, ids) for ids in answers]
        assert list(reply.kl) == pytest.approx(by_hand, abs=1e-3)


def test_rows_that_are_left_out_are_told_and_counted(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "hello", "chosen": text, "rejected": "no"} for text in ("yes", "yes " * 600, "no")]
    _, record, _ = evaluated(made.first, tmp_path / "out", "--data", lines(tmp_path / "pairs.jsonl", rows))
    assert record["figures"]["margin"]["count"] == record["data"]["rows"] == 1
    assert record["data"]["dropped"] == {"LA208": 1, "LA301": 1}
    told = " ".join(capsys.readouterr().err.split())
    assert "2 pairs of" in told
    assert "1 by LA208 · 1 by LA301" in told


@pytest.mark.parametrize("flag", ["--data", "--probes"])
def test_a_mark_that_is_none_is_refused_before_anything_is_loaded(
    flag: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benches, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    data = lines(tmp_path / "rows.jsonl", [{"prompt": "hello"}, {"prompt": "good day", "expect": "maybe"}])
    assert cli.run(["eval", str(made.first), flag, str(data), "--out", str(tmp_path / "out")]) == 2
    assert "rows.jsonl:2" in "".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_its_own_start_changes_nothing(made: Made, tmp_path: Path) -> None:
    _, record, rows = evaluated(made.same, tmp_path, "--samples", 2)
    found = record["figures"]
    assert (found["margin"]["value"], found["accuracy"]["value"]) == (0.0, 0.5)
    assert found["kl"]["value"] == found["kl"]["low"] == found["kl"]["high"] == 0.0
    assert all(row["before"] == row["after"] and len(row["after"]) == 2 for row in rows)


def test_a_run_that_moved_has_a_kl(made: Made, tmp_path: Path) -> None:
    _, record, rows = evaluated(made.second, tmp_path, "--samples", 4)
    assert record["figures"]["kl"]["value"] > 0.1
    assert sum(row["kl"] for row in rows) / len(rows) == pytest.approx(
        record["figures"]["kl"]["value"], abs=1e-3
    )


def test_an_adapter_alone_on_prompts_and_probes(made: Made, tmp_path: Path) -> None:
    code, record, rows = evaluated(
        made.adapter, tmp_path, "--data", made.prompts, "--probes", made.prompts, "--prompts", 3
    )
    assert code == 0
    found = record["figures"]
    assert "loss" not in found
    assert found["under_refusal"]["count"] == 3
    assert found["new_failures"]["count"] == 5
    assert found["under_refusal"]["value"] == 1.0  # a random model refuses nothing
    assert [row["file"] for row in rows] == [str(made.prompts)] * 8
    assert record["probes"]["prompts"] == 5


def test_gates_decide_the_exit_code(made: Made, tmp_path: Path) -> None:
    assert evaluated(made.first, tmp_path, "--gate", "kl<=1000", "--gate", "stop_rate>=0")[0] == 0
    assert evaluated(made.first, tmp_path, "--gate", "kl<=1000", "--gate", "stop_rate<0")[0] == 3
    known = json.loads((tmp_path / "gates.json").read_text())["gates"]
    assert [one["verdict"] for one in known] == ["passed", "failed"]


def test_the_run_folder_takes_the_results_and_its_report_shows_them(made: Made) -> None:
    assert cli.run(["eval", str(made.first), *QUICK]) == 0
    assert cli.run(["report", str(made.first)]) == 0
    assert "Chosen answer likelier" in (made.first / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base"], "what others are measured against"),
        (["{adapter}"], "held nothing out"),
        (["{adapter}", "--data", "{prompts}"], "no run folder to write to"),
        (["{first}", "--gate", "nonsense"], "is no gate"),
        (["nowhere"], "There is no nowhere"),
    ],
)
def test_what_cannot_be_measured_is_told(
    arguments: list[str], said: str, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"adapter": made.adapter, "prompts": made.prompts, "first": made.first}
    assert cli.run(["eval", *(text.format(**places) for text in arguments)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
