"""What is compared in a file: each kind of rows, each comparison once, and what is left out is counted."""

import json
from pathlib import Path

import pytest

from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.errors import DataError
from lite_align.flywheel.items import read

PROMPT = [{"role": "user", "content": "Where is the pool?"}]
COMPARISON = Comparison(prompt=(Message("user", "Where is the pool?"),), a="North.", b="South.", expected="a")


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_comparisons_come_as_they_are_each_once(tmp_path: Path) -> None:
    swapped = {**COMPARISON.record(), "a": "South.", "b": "North."}
    equal = {**COMPARISON.record(), "b": "North."}
    found = read(write(tmp_path / "rows.jsonl", [COMPARISON.record(), swapped, equal]))
    assert found.comparisons == (COMPARISON,)
    assert found.votes == ()
    assert "left out: 1 with two equal answers" in found.notes
    assert any("1 comparisons stand in the file more than once" in note for note in found.notes)


def test_votes_give_their_comparisons_and_stay_votes(tmp_path: Path) -> None:
    votes = [
        Vote(comparison=COMPARISON, choice=choice, annotator=name)
        for name, choice in (("ann", "a"), ("ben", "b"))
    ]
    found = read(write(tmp_path / "votes.jsonl", [vote.record() for vote in votes]))
    assert found.comparisons == (COMPARISON,)
    assert found.votes == tuple(votes)


def candidates(*texts: str) -> dict:
    return {
        "prompt": PROMPT,
        "category": "fact",
        "answers": [{"text": text, "model": f"run-{text}"} for text in texts],
    }


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [(1, ["xy"]), (2, ["xy", "xz"]), (9, ["xy", "xz", "yz"])],
)
def test_candidates_are_paired_the_first_two_different_answers_first(
    tmp_path: Path, pairs: int, expected: list[str]
) -> None:
    rows = [candidates("x", "x", "y", "z"), candidates("w", "w")]
    found = read(write(tmp_path / "candidates.jsonl", rows), pairs=pairs)
    assert [one.a + one.b for one in found.comparisons] == expected
    assert (found.comparisons[0].model_a, found.comparisons[0].model_b) == ("run-x", "run-y")
    assert found.comparisons[0].category == "fact"
    assert "left out: 1 prompts without two different answers" in found.notes


def test_pairs_of_any_format_are_compared_the_chosen_answer_is_a(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "well"} for role in ("assistant", "user", "assistant")]
    rows = [{"prompt": PROMPT, "chosen": "North.", "rejected": "South."}] * 3
    found = read(
        write(tmp_path / "pairs.jsonl", [*rows, {"prompt": PROMPT, "chosen": turns, "rejected": "x"}])
    )
    assert [(one.a, one.b) for one in found.comparisons] == [("North.", "South.")]
    assert "left out: 1 pairs whose answers have several turns" in found.notes


def test_rows_of_another_kind_are_all_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [candidates("x", "y"), {"prompt": PROMPT}, {**candidates("x"), "prompt": 3}]
    )
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        read(path)
    assert caught.value.details[0].startswith(f"{path}:2 ")


def test_a_file_without_anything_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to compare"):
        read(write(tmp_path / "rows.jsonl", [candidates("x", "x")]))
