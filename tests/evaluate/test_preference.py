"""The three words and every warning, each set off alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_align.evaluate import findings
from lite_align.evaluate import verdict as verdicts
from lite_align.evaluate.folder import read
from lite_align.evaluate.preference import CHECKS, PreferenceVerdict

Builder = Callable[..., Path]
Rows = list[dict]


def judge(folder: Path) -> PreferenceVerdict:
    found = verdicts.judge(folder)
    assert isinstance(found, PreferenceVerdict)
    assert verdicts.judge_folder(read(folder)) == found
    return found


def test_a_sound_run_is_better_and_warns_only_of_length(build: Builder) -> None:
    verdict = judge(build())
    assert verdict.word == "better"
    assert verdict.held_out is not None
    assert (verdict.held_out.count, verdict.held_out.accuracy_before.value) == (60, 0.5)
    assert verdict.held_out.improved.low > 0.5
    assert verdict.held_out.p < 0.001
    assert "60 held-out pairs" in verdict.sentences[0]
    assert "before in 50 %" in verdict.sentences[0]
    assert set(verdict.details) == {"fact", "howto", "feeling", "unsafe", "borderline"}
    # 16 + 19 + 16 + 10 … of the built answers: longer by more than 15 %
    assert len(verdict.warnings) == 1
    assert verdict.length_change is not None
    assert verdict.length_change > 0.15


@pytest.mark.parametrize(
    ("held_out", "gain", "word"),
    [
        (60, 0.5, "better"),
        (60, -0.5, "worse"),
        (60, 0.05, "no evidence either way"),
        (5, 0.5, "no evidence either way"),
        (0, 0.5, "no evidence either way"),
    ],
)
def test_the_word_follows_the_interval(build: Builder, held_out: int, gain: float, word: str) -> None:
    assert judge(build(held_out=held_out, gain=gain)).word == word


def test_more_pairs_improved_but_a_lower_mean_is_no_evidence(build: Builder) -> None:
    folder = build(held_out=0)
    row = '{"before": {"margin": 0, "chosen_logp": -9}, "after": {"margin": %s, "chosen_logp": -9}}\n'
    (folder / "held_out.jsonl").write_text(row % 0.1 * 40 + row % -9 * 5)
    verdict = judge(folder)
    assert verdict.held_out is not None
    assert verdict.held_out.improved.low > 0.5
    assert verdict.word == "no evidence either way"


def test_rows_that_were_not_measured_are_left_out(build: Builder) -> None:
    folder = build(held_out=0)
    (folder / "held_out.jsonl").write_text(
        '{"before": null}\n{"before": {"margin": 0}, "after": {"margin": NaN}}\n'
    )
    assert judge(folder).held_out is None


def same_length(rows: Rows) -> Rows:
    return [{**row, "after_tokens": row["before_tokens"]} for row in rows]


def still(**changes: object) -> dict:
    """Arguments for a run with nothing to warn of, and one change."""
    return {"answers": same_length, **changes}


def perfect(since: int) -> Callable[[Rows], Rows]:
    return lambda rows: [{**r, "rewards/accuracies": 1.0 if r["step"] >= since else 0.7} for r in rows]


def with_eval(losses: list[float]) -> Rows:
    return [{"step": 10 * i, "eval/loss": loss} for i, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (still(), None),
        (still(chosen=-1.2), "LA307: chosen answers became less likely, by"),
        (still(chosen=-6.0), "The model is far from where it began"),
        (still(chosen=6.0), "The model is far from where it began"),
        (still(answers=None), "Answers grew 23 % longer; check for verbosity"),
        (still(answers=[{"before_tokens": 10, "after_tokens": 5}]), "Answers grew 50 % shorter"),
        (still(metrics=perfect(8)), "Training accuracy was 1.0 from step 8 of 72"),
        (still(metrics=perfect(60)), None),
        (
            still(metrics=with_eval([0.69, 0.5, 0.6])),
            "Held-out loss was least at step 20 (0.5) and rose to 0.6",
        ),
        (still(metrics=with_eval([0.69, 0.5, 0.51])), None),
        (still(metrics=[{"step": i, "loss": 0.5 + i / 10} for i in range(20)]), "Training loss rose from"),
        (still(metrics=[{"step": 1, "moved": 0.004}]), "Only 0.4 % of the adapter's parameters moved"),
        (still(held_out=30), "Only 30 held-out pairs"),
    ],
)
def test_each_warning_has_its_cause(build: Builder, changes: dict, part: str | None) -> None:
    warnings = judge(build(**changes)).warnings
    assert any(part in warning for warning in warnings) if part else warnings == []


def test_no_check_is_forgotten() -> None:
    assert len(CHECKS) + len(findings.CHECKS) == 7  # and that of few rows, which is no function of the folder


@pytest.mark.parametrize(
    ("wins", "word"),
    # Wilson of 27/40: [0.520, 0.799]; of 26/40: [0.495, 0.779]; 14 and 13 are their mirrors.
    [(27, "better"), (26, "no evidence either way"), (14, "no evidence either way"), (13, "worse")],
)
def test_one_pair_decides_at_the_edge_of_the_interval(build: Builder, wins: int, word: str) -> None:
    folder = build(held_out=0)
    row = '{"before": {"margin": 0.0}, "after": {"margin": %s}}\n'
    (folder / "held_out.jsonl").write_text(row % 1 * wins + row % -1 * (40 - wins))
    assert judge(folder).word == word


def test_thumbs_are_not_called_pairs(build: Builder) -> None:
    folder = build(held_out=20)
    record = json.loads((folder / "run.json").read_text())
    record["data"]["kind"] = "thumbs"
    (folder / "run.json").write_text(json.dumps(record))
    found = judge(folder)
    assert (
        "On 20 held-out thumbs up, each against a thumb down, the answer with the thumb up"
        in found.sentences[0]
    )
    assert any("Only 20 held-out thumbs up" in warning for warning in found.warnings)
