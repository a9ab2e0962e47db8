"""The ablation of reward models: what a result file becomes in the README, and one small cell."""

from pathlib import Path

import pytest

from benchmarks import record, reward_ablation

CELL = "the answer's end, base"
DATA = reward_ablation.DATA


def test_no_file_is_not_yet_measured(tmp_path: Path):
    text = reward_ablation.section(tmp_path)
    assert text.count("| not yet measured |") == 4 * 3
    assert text.count("not yet measured") == 4 * 6


def test_a_cell_is_told_with_its_mean_and_range(tmp_path: Path):
    seeds = {
        str(seed): {**dict.fromkeys(reward_ablation.FIGURES, 0.5), "accuracy": value, "pairs": 100}
        for seed, value in ((1, 0.7), (2, 0.8), (3, 0.75))
    }
    record.add(tmp_path / reward_ablation.RESULT.name, CELL, {"machine": {}, "seeds": seeds})
    assert (
        "| the answer's end | base | 0.750 (0.700–0.800) | 0.500 (0.500–0.500) |"
        in reward_ablation.section(tmp_path)
    )


@pytest.mark.slow
def test_one_cell_that_continues_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lite_align.stages import answers, reload

    monkeypatch.setattr(reload, "fresh", lambda *_: None)
    monkeypatch.setattr(answers, "PROBES", 2)
    monkeypatch.setattr(reward_ablation, "DATA", tmp_path)
    for name, count in (("sft.jsonl", 40), ("reward_pairs.jsonl", 200)):  # of 40 prompts and of 50
        lines = (DATA / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:count]), encoding="utf-8")
    monkeypatch.setattr(reward_ablation, "PLACES", {"judged": "Review the answer."})
    monkeypatch.setattr(reward_ablation, "STARTS", ("sft",))
    (found,) = reward_ablation.cells(1, tmp_path, {"train.max_steps": 2, "train.batch_size": 8}).values()
    assert found.keys() == {*reward_ablation.FIGURES, "pairs"}
    assert found["pairs"] == 40  # of 10 prompts, a fifth
