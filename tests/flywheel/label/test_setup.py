"""What lies beside a file of votes: a seed that is drawn once, and every rubric."""

import json
from pathlib import Path

import pytest

from lite_align.errors import UserError
from lite_align.flywheel.label.setup import DEFAULT_RUBRIC, Setup, rubric_hash

DATA = {"path": "rows.jsonl", "sha256": "0"}


def test_the_seed_is_drawn_once_and_kept(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    first = Setup.open(votes, data=DATA, rubric="One.")
    again = Setup.open(votes, data=DATA, rubric="Two.", repeats=0.3)
    assert first.seed == again.seed == Setup.open(votes, data=DATA, rubric="Two.", seed=first.seed).seed
    assert (first.repeats, again.repeats) == (0.1, 0.3)
    assert again.rubrics == {rubric_hash("One."): "One.", rubric_hash("Two."): "Two."}
    assert Setup.open(tmp_path / "other.jsonl", data=DATA, rubric="One.").seed != first.seed
    stored = json.loads((tmp_path / "votes.jsonl.session.json").read_text())
    assert stored["seed"] == first.seed
    assert stored["repeats"] == 0.3


def test_another_seed_is_refused(tmp_path: Path) -> None:
    Setup.open(tmp_path / "votes.jsonl", data=DATA, rubric="One.", seed=7)
    with pytest.raises(UserError, match="begun with the seed 7, not 8"):
        Setup.open(tmp_path / "votes.jsonl", data=DATA, rubric="One.", seed=8)


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 3}'])
def test_a_broken_setup_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "votes.jsonl.session.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        Setup.open(tmp_path / "votes.jsonl", data=DATA, rubric="One.")


def test_a_rubric_has_a_hash_of_its_text() -> None:
    # SHA-256 of "abc" from FIPS 180-2, appendix B.1.
    assert rubric_hash("abc") == "ba7816bf8f01cfea"
    assert DEFAULT_RUBRIC.read_text().startswith("Which answer")
