"""check: what it says of a file, what it writes with --fix, and how a pair looks with its mask."""

import io
import json
from pathlib import Path

import pytest

from lite_align.data.types import Source
from lite_align.errors import DataError, ModelError, UserError
from lite_align.recipe import load
from lite_align.stages import check as stage
from lite_align.view import View


def rows(count: int = 40) -> list[dict]:
    return [
        {
            "prompt": f"Name fruit {n}.",
            "chosen": f"Apple {n}.",
            "rejected": f"Chair {n} is one.",
            "category": "food",
        }
        for n in range(count)
    ]


def write(folder: Path, lines: list[object]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in lines))
    return file


def run(file: Path, *, sets=(), model=None, json_only=False, **options) -> str:
    out = io.StringIO()
    recipe = load("dpo", data=str(file), flags={"model.name": model}, sets=sets).recipe
    stage.check(recipe, View(json=json_only, file=out, errors=io.StringIO() if json_only else out), **options)
    return out.getvalue()


def test_it_names_format_row_and_verdict(tmp_path):
    text = run(write(tmp_path, rows()))
    assert "40 rows · pair.text (100 % of rows)" in " ".join(text.split())
    assert 'prompt: [{"role": "user", "content": "Name fruit 0."}]' in text
    assert "This run would learn from 40 usable pairs." in text
    assert "next      lite-align dpo" in text


def test_too_many_meaningless_rows_stop_it(tmp_path):
    same = {"prompt": "Why?", "chosen": "Same.", "rejected": "Same."}
    file = write(tmp_path, [*rows(10), same])
    with pytest.raises(DataError, match="would be left out") as caught:
        run(file)
    assert caught.value.exit_code == 2
    text = run(file, sets=["data.max_dropped=0.5"])
    assert "1 by LA301" in text
    assert f"{file}:11" in text
    assert "10 usable pairs; left out: 1 LA301" in text


def test_broken_rows_are_all_told(tmp_path):
    file = write(tmp_path, [*rows(5), '{"prompt": "x', {"prompt": "x", "chosen": 3, "rejected": "y"}])
    with pytest.raises(DataError) as caught:
        run(file)
    assert f"{file}:6" in str(caught.value)


def test_fix_writes_the_usable_rows_as_they_stand(tmp_path):
    same = {"prompt": "Why?", "chosen": "Same.", "rejected": "Same."}
    number = {"prompt": "x", "chosen": 3, "rejected": "y"}
    file, fixed = write(tmp_path, [*rows(60), '{"prompt": "x', same, number]), tmp_path / "clean.jsonl"
    text = run(file, fix=fixed)
    assert [json.loads(line) for line in fixed.read_text().splitlines()] == rows(60)
    assert f"next lite-align dpo {fixed}" in " ".join(text.split())
    with pytest.raises(UserError, match="exists already"):
        run(file, fix=fixed)
    assert list(tmp_path.iterdir()) in ([file, fixed], [fixed, file])


def test_votes_are_checked_as_pairs_and_fix_keeps_all_of_them(tmp_path):
    """Without one of its votes an undecided comparison would be decided."""

    def vote(number: int, choice: str, annotator: str) -> dict:
        prompt = [{"role": "user", "content": f"Which one, {number}?"}]
        return {"prompt": prompt, "a": "This.", "b": "That.", "choice": choice, "annotator": annotator}

    votes = [
        vote(n, "b" if name == "ben" and n < 3 else "a", name) for n in range(9) for name in ("ann", "ben")
    ]
    fixed = tmp_path / "clean.jsonl"
    text = run(write(tmp_path, [*votes, '{"prompt": "x']), fix=fixed)
    assert [json.loads(line) for line in fixed.read_text().splitlines()] == votes
    shown = " ".join(run(fixed).split())
    assert "6 usable pairs; left out: 3 LA310" in shown
    assert "annotators differ: 1 a, 1 b" in shown
    assert "6 usable pairs" in " ".join(text.split())


def test_a_file_without_usable_rows_is_not_written(tmp_path):
    fixed = tmp_path / "clean.jsonl"
    with pytest.raises(DataError, match="no usable row"):
        run(write(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2), fix=fixed)
    assert not fixed.exists()


def test_with_a_model_it_counts_tokens_and_shows_masks(tmp_path, tiny_llama):
    file = write(tmp_path, [*rows(40), {"prompt": "p", "chosen": "word " * 600, "rejected": "b"}])
    text = run(file, model=str(tiny_llama), show=1, sets=["data.max_length=128"])
    assert "tokens in the longest answer with its prompt" in text
    assert "1 by LA208" in text
    assert f"{file}:41" in text
    assert "legend" in text
    assert "‹im_start›user" in text
    assert "[Apple 0." in text
    assert "[Chair 0 is one." in text
    assert "tokens trained" in text
    assert text.count("Name fruit 0.") == 2  # once as understood, once as the shared prompt of both answers


def test_cut_turns_are_shown_struck(tmp_path, tiny_llama):
    turns = [{"role": role, "content": "old " * 30} for role in ("user", "assistant")] * 2
    row = {
        "prompt": [*turns, {"role": "user", "content": "Now?"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    text = run(write(tmp_path, [row]), model=str(tiny_llama), show=1, sets=["data.max_length=64"])
    assert "LA208" in text
    assert "~user: old old" in text


def test_a_model_without_tokenizer_or_template_is_an_error(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelError):
        run(write(tmp_path, rows()), model=str(folder))


def test_show_without_a_model_says_what_is_missing(tmp_path):
    assert "--show needs a model" in run(write(tmp_path, rows()), show=1)


def test_other_kinds_of_rows_are_checked_too(tmp_path):
    def chat(answer: str) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]}

    chats = [chat(f"Hello {n}.") for n in range(3)]
    assert "3 usable conversations" in run(write(tmp_path, chats))
    shown = run(write(tmp_path, [*chats, chats[0]]), model="tiny", show=1, sets=["data.max_dropped=0.5"])
    assert "1 by LA302" in shown
    assert "[Hello 0.<|end|>]" in shown
    assert "lite-align sft" in shown
    rated = [{"prompt": "Hi", "completion": f"Hello {n}.", "label": n > 0} for n in range(3)]
    assert "3 usable rated answers" in run(write(tmp_path, rated))
    shown = run(write(tmp_path, [*rated, rated[0]]), model="tiny", show=1, sets=["data.max_dropped=0.5"])
    assert "1 by LA302" in shown
    assert "thumb down" in shown
    assert "rows.jsonl --set loss.name=kto" in " ".join(shown.split())
    assert "2 usable prompts" in run(write(tmp_path, [{"prompt": "Hi"}, {"prompt": "Ho"}]))


def test_json_has_the_counts(tmp_path):
    record = json.loads(run(write(tmp_path, rows()), json_only=True))
    assert (record["format"], record["rows"], record["usable"], record["left_out"]) == (
        "pair.text",
        40,
        40,
        {},
    )


def test_histogram():
    assert stage.histogram([1, 2, 3, 4], "tokens", bins=4) == [
        "median 3 · 95 % below 5 · longest 4 tokens",
        "0 ▕ ▄▄█▏ 4",
    ]
    assert stage.histogram([0], "words", bins=2)[1] == "0 ▕█ ▏ 1"


def test_sources_are_shown_as_file_and_line():
    assert str(Source("a.jsonl", 3)) == "a.jsonl:3"
