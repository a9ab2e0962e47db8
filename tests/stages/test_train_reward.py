"""`lite-align reward` from a file to the report, on a small model and on rankings."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lite_align.data import lint
from lite_align.data.render import Renderer, Unusable
from lite_align.errors import DataError, ModelError
from lite_align.model.backbone import Role
from lite_align.recipe import DataOptions, RewardRecipe, load
from lite_align.stages import rows
from lite_align.stages.command import CommandOptions
from lite_align.stages.train_reward import RewardProcedure, lint_with_margins, scored
from lite_align.stages.training import train
from tests.stages import small, small_reward

RANKINGS = [
    {
        "prompt": f"what does the fox ask {n}?",
        "category": ("facts", "manners")[n % 2],
        "answers": [
            {"answer": f"the lazy dog answers {n}", "rank": 1},
            {"answer": f"hello world, hello {n}. A quick fox.", "rank": 2},
            {"answer": "no", "rank": 3},
        ],
    }
    for n in range(12)
]
SETTINGS = {
    "model.quantization": "none",
    "model.dtype": "float32",
    "data.held_out": 0.25,
    "lora.rank": 4,
    "train.learning_rate": 1e-2,
    "train.epochs": 1.0,
    "train.batch_size": 8,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A finished run on rankings: 9 prompts with three pairs each, 3 prompts held out."""
    folder = tmp_path_factory.mktemp("reward")
    data = small.write(folder / "rankings.jsonl", RANKINGS)
    flags = {"model.name": str(tiny_llama), "loss.judge_suffix": "the answer?", **SETTINGS}
    resolved = load("reward", data=str(data), flags=flags)
    run = train(resolved, CommandOptions(folder / "run"), small.silent())
    assert run is not None
    return run


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_every_pair_of_a_ranking_is_trained_and_counted(finished: Path) -> None:
    told = record(finished)
    assert told["data"]["rows"] == 12
    assert told["data"]["kept"] == 36
    assert told["plan"] == {"total_steps": 4, "pairs": 27}
    rows = [json.loads(line) for line in (finished / "held_out.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    assert len({answer for row in rows for answer in row["answers"]}) == 9
    assert [set(row) >= {"swaps", "probes"} for row in rows] == [True, False, False] * 3


def test_the_run_says_what_the_scores_are_worth(finished: Path) -> None:
    told = record(finished)
    assert told["status"] == "finished"
    reward = told["reward"]
    assert reward["reload"] == {
        "largest_difference": 0.0,
        "answers": 18,
        "process": "a fresh one, another seed",
    }
    assert reward["judge_suffix"] == "the answer?"
    assert reward["count"] == 6, "the first and the second of three answers are chosen somewhere"
    rows = [json.loads(line) for line in (finished / "held_out.jsonl").read_text().splitlines()]
    chosen = {row["answers"][0]: row["chosen_reward"] for row in rows}
    assert reward["mean"] == pytest.approx(sum(chosen.values()) / 6)
    page = (finished / "report.html").read_text()
    for text in (
        "same scores after a reload",
        "Does the score see the prompt?",
        "Calibration",
        "longer wins",
    ):
        assert text in page
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert "eval/rewards/accuracies" in metrics[-1]
    assert metrics[0]["loss/ranking"] > 0


def test_a_head_that_was_changed_is_noticed(finished: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """Another value changes the hash of the adapter; another shape or name, or no file, is refused."""
    adapter = finished / "adapters" / "reward"
    backbone = small_reward.backbone(
        tiny_llama, lora=small.SHAPE.model_copy(update={"rank": 4, "alpha": 32.0})
    )
    backbone.load_adapter(Role.REWARD, adapter)
    assert backbone.adapter_sha256(Role.REWARD) == record(finished)["adapters"]["reward"]
    head = load_file(adapter / "head.safetensors")
    changed = tmp_path / "adapter"
    changed.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (changed / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(ModelError, match="no scalar head"):
        backbone.load_adapter(Role.REWARD, changed)
    save_file({"score.weight": head["score.weight"][:-1].clone()}, changed / "head.safetensors")
    with pytest.raises(ModelError, match="shape"):
        backbone.load_adapter(Role.REWARD, changed)
    save_file({"score.weight": head["score.weight"] * 1.001}, changed / "head.safetensors")
    backbone.load_adapter(Role.REWARD, changed)
    assert backbone.adapter_sha256(Role.REWARD) != record(finished)["adapters"]["reward"]


def test_a_dry_run_plans_and_writes_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    data = small.write(tmp_path / "rankings.jsonl", RANKINGS)
    resolved = load("reward", data=str(data), flags={"model.name": str(tiny_llama), **SETTINGS})
    view = small.silent()
    assert train(resolved, CommandOptions(tmp_path / "run", dry_run=True), view) is None
    assert not (tmp_path / "run").exists()


# Rows.


def test_a_pair_ends_at_its_stop_tokens(tokenizer) -> None:
    kind = RewardProcedure().kind(RewardRecipe())
    pairs = small.as_pairs(small.rows(3))
    rendered = rows.render(kind, pairs, Renderer(tokenizer), DataOptions(max_length=512))
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for one in scored(rendered.examples):
        assert one.chosen[-1] == one.rejected[-1] == stop
        assert one.tokens[0] == len(one.chosen) - one.prompt


def test_an_answer_without_its_stop_token_is_left_out(tokenizer) -> None:
    """LA502: multi-turn answers end in a stop token too, and a template that leaves it out is refused by row."""
    from lite_align.data.types import Rendered
    from lite_align.stages.scoring import cut

    renderer = Renderer(tokenizer)
    found = cut(Rendered((1, 2, 3), (False, True, True)), renderer, None)
    assert isinstance(found, Unusable)
    assert found.detail.startswith("LA502")
    assert cut(Rendered((1, 2, renderer.turn_end), (False, True, True)), renderer, None) == Rendered(
        (1, 2, renderer.turn_end), (False, True, True)
    )


def test_margins_are_asked_for_only_if_there_are_some() -> None:
    pairs = small_reward.compared(2, 2)
    assert lint_with_margins(pairs).kept == lint.lint_pairs(pairs).kept
    with pytest.raises(DataError, match="none of 3 pairs has a margin"):
        lint_with_margins(small.as_pairs(small.rows(3)))
