"""Answers one by one, of every kind of file that holds some."""

import json

import pytest

from lite_align.data.types import Message
from lite_align.data.votes import Comparison, Vote
from lite_align.errors import DataError
from lite_align.flywheel.drafts import Draft, read

HI = (Message("user", "Hi?"),)
TURNS = [{"role": "user", "content": "Hi?"}]
ONE = Comparison(prompt=HI, a="One.", b="Two.", category="x")


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


BOTH = [Draft(HI, "One.", "x"), Draft(HI, "Two.", "x")]


@pytest.mark.parametrize(
    ("row", "drafts"),
    [
        (ONE.record(), BOTH),
        (Vote(comparison=ONE, choice="a", annotator="ann").record(), BOTH),
        (
            {"id": "1", "prompt": TURNS, "category": "x", "answers": [{"text": "One."}, {"text": "One."}]},
            BOTH[:1],
        ),
        ({"prompt": TURNS, "chosen": "One.", "rejected": "Two.", "category": "x"}, BOTH),
        ({"messages": [*TURNS, {"role": "assistant", "content": "One."}]}, [Draft(HI, "One.")]),
        ({"prompt": "Hi?", "completion": "One.", "label": True}, [Draft(HI, "One.")]),
    ],
)
def test_every_answer_is_a_draft(tmp_path, row, drafts):
    assert list(read(written(tmp_path, row, row)).drafts) == drafts


def test_the_id_follows_prompt_and_answer():
    one = Draft(HI, "One.")
    assert one.id == Draft(HI, "One.", "x").id
    assert len({one.id, Draft(HI, "Two.").id, Draft((Message("system", "Hi?"),), "One.").id}) == 3


def test_rows_without_an_answer_are_counted(tmp_path):
    two = [
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "2"},
    ]
    path = written(
        tmp_path,
        {
            "prompt": TURNS,
            "chosen": two,
            "rejected": two[:1] + two[1:2] + [{"role": "assistant", "content": "3"}],
        },
        {"prompt": TURNS, "chosen": "One.", "rejected": "Two."},
    )
    found = read(path)
    assert len(found.drafts) == 2
    assert found.notes[-1] == "left out: 1 rows without one answer in one turn"
    with pytest.raises(DataError, match="holds no answer to revise"):
        read(written(tmp_path, {"prompt": "Hi?"}))


def test_rows_of_another_kind_are_listed(tmp_path):
    with pytest.raises(DataError, match="1 of 2 rows"):
        read(written(tmp_path, ONE.record(), {"prompt": TURNS, "a": 3, "b": "Two."}))
