"""`eval` and `compare` against whole models: both sides come to the same figures, and what the README says of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks import evaluation, lite_evaluation, opponent_evaluation, record, sides, stopwatch, workload
from benchmarks.evaluation import PLAIN, Task
from benchmarks.opponent_evaluation import FLAGS, Folders, Ids, Plain
from benchmarks.sides import LITE, Work, summary
from lite_align.flywheel import bench
from lite_align.flywheel.judges.reward import RewardJudge

MACHINE = {"cpu": "A processor, 2 cores", "memory": "8 GiB", "versions": "torch 9", "commit": "abc1234"}
TOKENS = 6


# Both sides compute the same.


@dataclass
class Told:
    """What one command of ours said and wrote."""

    answers: list[list[Ids]]
    scores: list[float]
    record: dict[str, Any]

    def value(self, name: str) -> float:
        return self.record["figures"][name]["value"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return evaluation.work_of(tmp_path_factory.mktemp("work"), Task("eval", "toy", "fp32", 6, TOKENS))


def ours(command: str, work: Work, out: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A command of ours, with all that its sides answer and its judge scores."""
    told = Told([], [], {})

    def hear(owner: type, name: str, keep: Any) -> None:
        own = getattr(owner, name)

        def heard(*args: Any, **kwargs: Any) -> Any:
            found = own(*args, **kwargs)
            keep(found)
            return found

        monkeypatch.setattr(owner, name, heard)

    hear(bench.Bench, "answers", lambda found: told.answers.append([list(one.sampled.ids) for one in found]))
    hear(RewardJudge, "scores", told.scores.extend)
    lite_evaluation.run(work, {"command": command, "precision": "fp32", "new_tokens": TOKENS}, out)
    told.record = json.loads((out / f"{command}.json").read_text())
    return told


def plain(work: Work, answers: Sequence[list[Ids]]) -> Plain:
    """The plain side, whose models give these answers, one model after the other."""
    it = Plain(Folders.of(work, "fp32"), "fp32", TOKENS)
    given = iter(answers)

    def answer(model: nn.Module, prompts: Sequence[Ids], stop: int, new_tokens: int) -> list[Ids]:
        assert stop == it.chats.stop
        assert new_tokens == TOKENS
        return next(given)

    it.answer = answer
    return it


def test_both_sides_of_eval_come_to_the_same_figures(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = ours("eval", work, tmp_path, monkeypatch)
    found = plain(work, told.answers).eval(workload.read_rows(Path(work.rows)))
    assert found["loss"] == pytest.approx(told.value("loss"), abs=1e-4)
    assert found["accuracy"] == told.value("accuracy")
    assert found["kl"] == pytest.approx(told.value("kl"), abs=1e-4)
    assert abs(found["kl"]) > 1e-2  # the adapter is not nothing
    assert told.value("loss") != pytest.approx(told.record["figures"]["loss"]["before"], abs=1e-3)


def test_both_sides_of_compare_give_the_same_scores(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = ours("compare", work, tmp_path / "out", monkeypatch)
    it = plain(work, told.answers)
    scored, own = [], it.scores
    it.scores = lambda *given: scored.extend(own(*given)) or scored
    found = it.compare(workload.read_rows(Path(work.rows)))
    assert scored[:6] == pytest.approx(told.scores[::2], abs=1e-4)
    assert scored[6:] == pytest.approx(told.scores[1::2], abs=1e-4)
    assert max(scored) - min(scored) > 0.1
    assert found["win_rate"] == told.value("win_rate")


def test_plain_answers_come_in_the_order_of_the_prompts(work: Work):
    it = Plain(Folders.of(work, "fp32"), "fp32", TOKENS)
    model = it.load_base(work.model, "fp32")
    prompts = [it.chats.prompt(row["prompt"]) for row in workload.read_rows(Path(work.rows))]
    answers = it.answers(model, prompts)
    assert all(0 < len(answer) <= TOKENS for answer in answers)
    assert it.tokens == sum(map(len, answers))
    together = opponent_evaluation.logps(model, list(zip(prompts, answers, strict=True)))
    alone = [
        opponent_evaluation.logps(model, [(prompt, answer)])[0] for prompt, answer in zip(prompts, answers)
    ]
    assert together == pytest.approx(alone, abs=1e-4)


def test_the_opponent_has_a_reason_for_each_of_its_settings():
    assert all(flag.reason for flag in FLAGS.values())


@pytest.mark.parametrize("command", evaluation.COMMANDS)
def test_a_small_comparison_from_the_command_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Both sides in this process, which the seconds and the memory of a measurement must not be."""
    from transformers import logging

    for quiet in ("set_verbosity_error", "disable_progress_bar"):
        monkeypatch.setattr(logging, quiet, lambda: None)
    monkeypatch.setattr(sides, "run", sides.measure)
    out = tmp_path / "out.json"
    line = f"{command}/toy/bf16 --repeats 1 --threads 1 --folder {tmp_path} --out {out}"
    evaluation.main(line.split())
    measured = record.load(out)[f"{command}/toy/bf16"]
    found = measured["epochs"]["1"]["sides"]
    assert set(found) == {LITE, PLAIN}
    for figures in found.values():
        assert 0 < figures["tokens_per_example"]["median"] <= measured["new_tokens"]
        each = [figures[f"{part}_seconds_per_example"]["median"] for part in sides.COMMAND_PARTS]
        assert min(each) > 0
        assert sum(each) == pytest.approx(figures["seconds_per_example"]["median"])
    assert "whole models" in capsys.readouterr().out
    assert "toy" not in evaluation.section(tmp_path)  # it is no case of the README


# The README.


def figures(whole: float, memory: float) -> dict[str, float]:
    """Figures of one run: a quarter of the seconds in each part."""
    each = {f"{part}_seconds_per_example": whole / 4 for part in sides.COMMAND_PARTS}
    return {"seconds_per_example": whole, **each, "tokens_per_example": 32.0, "memory": memory}


def test_no_file_is_not_yet_measured(tmp_path: Path):
    text = evaluation.section(tmp_path)
    assert "| `compare` | 15M, nf4 |" + 4 * " not yet measured |" in text
    assert "one run a side" in text
    assert "Measured on" not in text


def test_a_measured_case_is_told_in_seconds_of_the_whole_command(tmp_path: Path):
    both = summary(
        {LITE: [figures(0.1, 2**30), figures(0.2, 2**30)], PLAIN: [figures(0.3, 2**31), figures(0.3, 2**31)]}
    )
    case = {"machine": MACHINE, "threads": 2, "examples": 200, "new_tokens": 32, "repeats": 2}
    record.add(tmp_path / evaluation.RESULT.name, "eval/15m/bf16", {**case, "epochs": {"1": {"sides": both}}})
    text = evaluation.section(tmp_path)
    assert (
        "| `eval` | 15M, bf16 | 60.0: load 15.0, generate 15.0, score 15.0, rest 15.0 "
        "| 30.0 (20.0–40.0): load 7.5, generate 7.5, score 7.5, rest 7.5 | **2.00x** | **0.50x** |" in text
    )
    assert "answers of 32 (random" in text
    assert "medians of 2 runs a side" in text
    assert "| `eval` | 15M, nf4 |" + 4 * " not yet measured |" in text
    assert "Measured on A processor, 2 cores, 8 GiB, 2 threads; torch 9; commit abc1234." in text


def test_the_rest_is_what_no_part_counts(monkeypatch: pytest.MonkeyPatch):
    """A command of 10 s for 2 prompts, of which loading took 1 and generating 2 + 3 seconds."""
    times = iter([0.0, 1.0, 1.0, 3.0, 4.0, 7.0, 0.0, 10.0])
    monkeypatch.setattr(stopwatch, "cpu_seconds", lambda: next(times))
    watches = {part: stopwatch.Stopwatch() for part in sides.COMMAND_PARTS}
    for part in ("load", "generate", "generate"):
        watches[part].timed(lambda: None)()
    whole = stopwatch.Stopwatch()
    whole.timed(lambda: None)()
    assert sides.command_parts(watches, whole, 2) == {
        "seconds_per_example": 5.0,
        "load_seconds_per_example": 0.5,
        "generate_seconds_per_example": 2.5,
        "score_seconds_per_example": 0.0,
        "rest_seconds_per_example": 2.0,
    }
