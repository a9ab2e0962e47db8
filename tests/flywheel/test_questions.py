"""Prompts of files and runs: each once, none lost, marked as their rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from lite_align.data.render import Renderer
from lite_align.errors import DataError, UserError
from lite_align.flywheel import questions
from lite_align.train.finished import read_finished
from tests.flywheel.small import Made, lines

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello"},
        {"prompt": "hello", "chosen": "yes", "rejected": "no"},
        {"messages": CHAT},
        {"prompt": "hello", "completion": "good day", "label": True},
    ],
)
def test_any_kind_of_file_gives_its_prompts(row: dict[str, Any], tmp_path: Path) -> None:
    found = questions.read(str(lines(tmp_path / "rows.jsonl", [row, row])))
    assert [prompt.messages[-1].content for prompt in found.prompts] == ["hello"]
    assert found.repeated == 1
    assert "1 repeated" in found.told()


def test_a_prompt_under_another_system_text_is_another_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "system": text} for text in ("Be brief.", "Be kind.", "Be brief.")]
    rows = [
        {"prompt": [{"role": "system", "content": row["system"]}, {"role": "user", "content": "hello"}]}
        for row in rows
    ]
    assert len(questions.read(str(lines(tmp_path / "rows.jsonl", rows))).prompts) == 2


def test_the_first_ones_and_how_many_are_left_out(made: Made) -> None:
    found = questions.read(str(made.prompts)).first(2)
    assert [prompt.messages[0].content for prompt in found.prompts] == ["hello world", "the red fox"]
    assert [columns["category"] for columns in found.columns] == ["a", "b"]
    assert "3 more left out" in found.told()
    assert found.first(2) is found


def test_texts_without_turns_have_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts"):
        questions.read(str(lines(tmp_path / "rows.jsonl", [{"text": "hello"}])))


def test_expectations(made: Made) -> None:
    assert questions.expectation({"expect": "refuse"}, "x:1") == "refuse"
    assert questions.expectation({}, "x:1") is None
    with pytest.raises(DataError, match="x:1"):
        questions.expectation({"expect": "maybe"}, "x:1")


def test_held_out_rows_are_those_that_the_run_held_out(made: Made, tokenizer: Any) -> None:
    run = read_finished(made.first)
    rows = questions.held_out(run, Renderer(tokenizer))
    found = rows.examples
    assert rows.noun == "pairs"
    assert len(found) == 20  # half of forty
    assert {row.category for row, _ in found} == {"a", "b"}


def test_a_file_that_changed_since_is_refused(made: Made, tokenizer: Any) -> None:
    run = read_finished(made.first)
    run.record["hashes"]["data"] = "0" * 64
    with pytest.raises(DataError, match="has changed since"):
        questions.held_out(run, Renderer(tokenizer))


def test_prompts_become_tokens_once_with_the_columns_of_their_rows(made: Made, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer)
    found = questions.asked(questions.read(str(made.prompts)), renderer, 512, 16)
    assert [one.ids for one in found] == [renderer.prompt_ids(one.row.messages) for one in found]
    assert [one.columns["expect"] for one in found] == ["refuse", "answer", "refuse", "answer", "refuse"]


def test_a_prompt_without_room_is_an_error_and_not_left_out(made: Made, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="cannot be answered") as caught:
        questions.asked(questions.read(str(made.prompts)), Renderer(tokenizer), 64, 48)
    assert any("prompts.jsonl" in line for line in caught.value.details)


def test_rows_of_a_file(made: Made, tokenizer: Any, tmp_path: Path) -> None:
    renderer = Renderer(tokenizer)
    assert len(questions.rows_of(str(made.pairs), 256, renderer).examples) == 40
    chats = lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])
    assert questions.rows_of(str(chats), 256, renderer).noun != "pairs"
    assert questions.rows_of(str(made.prompts), 256, renderer).examples == ()
    assert json.loads(made.prompts.read_text().splitlines()[0])["prompt"] == "hello world"


def test_a_mark_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "hello", "expect": "answer"}, {"prompt": "good day", "expect": "maybe"}]
    path = lines(tmp_path / "rows.jsonl", rows)
    assert (
        len(questions.read(str(path)).prompts) == 2
    )  # the column is somebody's own, where nothing is marked
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*maybe"):
        questions.read(str(path), marked=True)


def test_rows_that_cannot_be_measured_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "chosen": "yes", "rejected": "no"},
        {"prompt": "hello", "chosen": "yes " * 600, "rejected": "no"},
        {"prompt": "fox", "chosen": "same", "rejected": "same"},
    ]
    found = questions.rows_of(str(lines(tmp_path / "rows.jsonl", rows)), 512, Renderer(tokenizer))
    assert len(found.examples) == 1
    assert found.dropped == {"LA208": 1, "LA301": 1}
