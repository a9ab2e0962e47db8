import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.lint import (
    RULES,
    Dropped,
    clean_rows,
    lint_chats,
    lint_pairs,
    lint_rated,
    too_many_dropped,
    unused,
    write_rows,
)
from lite_align.data.sources import RawTable, read
from lite_align.data.types import Chat, Message, Pair, Rated, Source, Unused
from lite_align.errors import DataError, UserError


def pair(line: int, prompt: str = "p", chosen: str = "c", rejected: str = "r", **more) -> Pair:
    return Pair(
        Source("f.jsonl", line),
        prompt=(Message("user", prompt),),
        chosen=(Message("assistant", chosen),),
        rejected=(Message("assistant", rejected),),
        **more,
    )


def reasons(*pairs: Pair) -> dict[str, list[str]]:
    return {rule: [str(row) for row in rows] for rule, rows in lint_pairs(pairs).dropped.items()}


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("same", "same"), ("same", " same\n"), ("caf\u00e9", "cafe\u0301"), ("", " ")]
)
def test_identical_answers_are_left_out(chosen, rejected):
    found = reasons(pair(1), pair(7, "q", chosen, rejected))
    assert list(found) == ["LA301"]
    assert found["LA301"][0].startswith('f.jsonl:7 "chosen" and "rejected" are identical')


def test_empty_answers_are_left_out():
    assert reasons(pair(1, chosen=" "), pair(2, rejected="")) == {
        "LA303": ['f.jsonl:1 "chosen" is empty', 'f.jsonl:2 "rejected" is empty']
    }


def test_contradictions_go_both_and_repetitions_once():
    a, b = ("p", "x", "y"), ("p", "y", "x")
    assert reasons(pair(1, *a), pair(2, "q"), pair(3, *b), pair(4, "q"), pair(5, "q", rejected="other")) == {
        "LA302": [
            "f.jsonl:1 prefers the answer that f.jsonl:3 rejects, for the same prompt",
            "f.jsonl:3 prefers the answer that f.jsonl:1 rejects, for the same prompt",
            "f.jsonl:4 repeats f.jsonl:2",
        ]
    }


def test_ties_are_left_out():
    assert reasons(pair(1, margin=0.0), pair(2, "q", margin=0.1)) == {
        "LA308": ["f.jsonl:1 both answers are rated alike"]
    }


def test_length_bias_is_measured():
    pairs = [
        pair(n, f"p{n}", "longer" if n <= 15 else "c", "short" if n <= 15 else "r long") for n in range(1, 21)
    ]
    [finding] = lint_pairs(pairs).warnings
    assert finding.rule == "LA305"
    assert finding.text.startswith("chosen is longer in 75% of pairs")
    assert lint_pairs(pairs[:19]).warnings == []
    balanced = [pair(n, f"p{n}", "c" * (1 + n % 2), "r" * (2 - n % 2)) for n in range(40)]
    assert lint_pairs(balanced).warnings == []


def test_one_dominating_category_is_told():
    pairs = [pair(n, f"p{n}", category="web" if n < 18 else "books") for n in range(20)]
    assert [(finding.rule, finding.text) for finding in lint_pairs(pairs).warnings] == [
        ("LA306", "90% of pairs are of one of 2 categories: web")
    ]


def test_columns_that_seem_exchanged_are_told():
    echo = lint_pairs([pair(3, "What is a fruit?", "What is a fruit? Apple.")]).warnings
    assert [finding.rule for finding in echo] == ["LA106"]
    assert "f.jsonl:3" in echo[0].text
    scores = lint_pairs([pair(n, f"p{n}", margin=-1.0) for n in range(7)]).warnings
    assert [finding.rule for finding in scores] == ["LA106"]
    assert "in 7 of 7 pairs" in scores[0].text
    assert scores[0].text.endswith("and 2 more")


PAIRS = st.lists(
    st.tuples(st.sampled_from("pq"), st.sampled_from(["a", "b", " a", ""]), st.sampled_from(["a", "b", ""])),
    max_size=12,
).map(lambda rows: [pair(line, *row) for line, row in enumerate(rows, 1)])


@given(PAIRS)
def test_linting_twice_is_linting_once(pairs):
    once = lint_pairs(pairs)
    twice = lint_pairs(once.kept)
    assert twice.kept == once.kept
    assert twice.dropped == {}
    assert len(once.kept) + sum(once.counts.values()) == len(pairs)
    assert set(once.dropped) <= set(RULES)


@pytest.mark.parametrize(
    ("dropped", "total", "refused"), [(0, 100, False), (5, 100, False), (6, 100, True), (3, 3, True)]
)
def test_the_share_that_may_be_left_out(dropped, total, refused):
    error = too_many_dropped({"LA301": dropped}, total, 0.05)
    assert (error is not None) == refused


def test_the_refusal_counts_by_rule_names_rows_and_the_remedy():
    rows = [Dropped(Source("f.jsonl", 4), "is empty")]
    error = too_many_dropped({"LA301": 60, "LA303": 58}, 1204, 0.05, rows=rows, file="f.jsonl")
    assert error is not None
    assert error.what == "118 of 1,204 rows (9.8%) in f.jsonl would be left out; at most 5.0% may be"
    assert error.details == ("LA301 identical: 60", "LA303 empty: 58", "f.jsonl:4 is empty")
    assert "lite-align check f.jsonl --fix clean.jsonl" in error.remedy
    assert "--set data.max_dropped=0.10" in error.remedy
    assert too_many_dropped({"LA301": 118}, 1204, 0.10) is None


def test_what_is_no_fault_stops_nothing_unless_nothing_is_left():
    assert too_many_dropped({"LA310": 60}, 100, 0.05) is None
    assert too_many_dropped({"LA310": 60, "LA301": 5}, 100, 0.05) is None
    mixed = too_many_dropped({"LA310": 60, "LA301": 6}, 100, 0.05)
    assert mixed is not None
    assert mixed.what.startswith("6 of 100 rows (6.0%)")
    assert mixed.details == ("LA310 no preference: 60", "LA301 identical: 6")
    nothing = too_many_dropped({"LA310": 3}, 3, 0.05, file="v.jsonl")
    assert nothing is not None
    assert nothing.what == "none of 3 rows in v.jsonl prefers an answer"


def test_a_weight_of_zero_and_what_a_format_left_out_are_told():
    assert reasons(pair(1, weight=0.0), pair(2, "q")) == {"LA310": ["f.jsonl:1 its weight is 0"]}
    assert rated_reasons(thumb(1, weight=0.0), thumb(2, "q"), thumb(3, "q", "b", up=False)) == {
        "LA310": ["f.jsonl:1 its weight is 0"]
    }
    left = unused([pair(1), Unused(Source("f.jsonl", 2), rule="LA310", reason="a tie")])
    assert {rule: [str(row) for row in rows] for rule, rows in left.items()} == {"LA310": ["f.jsonl:2 a tie"]}


def test_a_cleaned_copy_holds_the_rows_as_they_were(tmp_path):
    rows = [{"prompt": "é\u2028", "n": 1.5, "extra": [None]}, {"prompt": "q"}, {"prompt": "r"}]
    table = RawTable("f", [(Source("f", n), row) for n, row in enumerate(rows, 1)], [], "0")
    out = tmp_path / "clean.jsonl"
    write_rows(clean_rows(table, {Source("f", 2)}), out)
    assert [row for _, row in read(str(out)).rows] == [rows[0], rows[2]]
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(UserError, match="exists already"):
        write_rows(rows, out)
    assert len(out.read_text("utf-8").split("\n")) == 3
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(UserError, match="cannot be written"):
        write_rows(rows, tmp_path / "no" / "such.jsonl")


def test_a_row_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_rows([{"a": float("nan")}], tmp_path / "clean.jsonl")
    assert list(tmp_path.iterdir()) == []


def chat(line: int, *contents: str, first: str = "user", **more) -> Chat:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = tuple(Message(roles[n % 2], content) for n, content in enumerate(contents))
    return Chat(Source("f.jsonl", line), messages=turns, **more)


def test_conversations_that_teach_nothing_are_left_out():
    rows = [
        chat(1, "p", "a"),
        chat(2, "p", " "),
        chat(3, "p", "", "q", "a"),
        chat(4, "p", "a", "thanks"),
        chat(5, "p", "caf\u00e9"),
        chat(6, "p", " cafe\u0301"),
        chat(7, "p", "another answer"),
        chat(8, "a", first="assistant", raw=True),
        chat(9, "a ", first="assistant", raw=True),
    ]
    checked = lint_chats(rows)
    assert {rule: [str(row) for row in left] for rule, left in checked.dropped.items()} == {
        "LA205": ["f.jsonl:4 ends without an answer"],
        "LA302": ["f.jsonl:6 repeats f.jsonl:5", "f.jsonl:9 repeats f.jsonl:8"],
        "LA303": ["f.jsonl:2 an answer is empty", "f.jsonl:3 an answer is empty"],
    }
    assert [row.source.line for row in checked.kept] == [1, 5, 7, 8]
    assert checked.warnings == []


def test_conversations_that_the_assistant_opens_and_one_large_category_are_told():
    rows = [chat(n, f"p{n}", "a", category="web" if n < 18 else "books") for n in range(20)]
    rows.append(chat(20, "welcome", "p", "a", first="assistant"))
    rows.append(chat(21, "a text", first="assistant", raw=True))
    found = {finding.rule: finding.text for finding in lint_chats(rows).warnings}
    assert list(found) == ["LA205", "LA306"]
    assert found["LA205"].startswith("1 conversation begins with the assistant")
    assert found["LA205"].endswith("f.jsonl:20")
    assert found["LA306"] == "82% of conversations are of one of 2 categories: web"


# Answers with a thumb.


def thumb(line: int, prompt: str = "p", answer: str = "a", up: bool = True, **more) -> Rated:
    return Rated(
        Source("f.jsonl", line),
        prompt=(Message("user", prompt),),
        answer=(Message("assistant", answer),),
        label=up,
        **more,
    )


def rated_reasons(*rated: Rated) -> dict[str, list[str]]:
    return {rule: [str(row) for row in rows] for rule, rows in lint_rated(rated).dropped.items()}


def test_thumbs_that_are_empty_repeated_or_both_are_left_out():
    rows = [
        thumb(1, answer="x"),
        thumb(2, answer=" x\n", up=False),
        thumb(3, "q"),
        thumb(4, "q"),
        thumb(5, "q", "b", up=False),
        thumb(6, answer=" "),
        thumb(7, "r"),
    ]
    assert rated_reasons(*rows) == {
        "LA302": [
            "f.jsonl:1 has the answer to which f.jsonl:2 gives a thumb down, for the same prompt",
            "f.jsonl:2 has the answer to which f.jsonl:1 gives a thumb up, for the same prompt",
            "f.jsonl:4 repeats f.jsonl:3",
        ],
        "LA303": ["f.jsonl:6 the answer is empty"],
    }


@pytest.mark.parametrize(
    ("up", "words"), [(True, ["up", "likelier", "sft"]), (False, ["down", "less likely"])]
)
def test_one_thumb_alone_cannot_be_learned_from(up, words):
    with pytest.raises(DataError, match=r"LA309: all 3 thumbs in f.jsonl are") as caught:
        lint_rated([thumb(n, f"p{n}", up=up) for n in range(3)])
    assert all(word in f"{caught.value.what} {caught.value.remedy}" for word in words)
    assert lint_rated([]).kept == []


def test_thumbs_that_follow_length_are_told():
    """Ups of 4 characters against downs of 1 (15 rows) and of 9 (5 rows): longer in 3 of 4 comparisons."""
    rows = [thumb(n, f"p{n}", "aaaa") for n in range(20)]
    rows += [thumb(n, f"p{n}", "b" if n < 35 else "b" * 9, up=False) for n in range(20, 40)]
    [finding] = lint_rated(rows).warnings
    assert finding.rule == "LA305"
    assert "is longer than one with a thumb down in 75% of comparisons (by +1 characters" in finding.text
    assert lint_rated(rows[1:]).warnings == []  # 19 thumbs up say nothing


def test_thumbs_on_echoes_and_on_one_category_are_told():
    rows = [thumb(n, f"p{n}", up=bool(n % 2), category="web" if n < 18 else "books") for n in range(20)]
    assert [f.text for f in lint_rated(rows).warnings] == ["90% of thumbs are of one of 2 categories: web"]
    echo = lint_rated([thumb(3, "What is a fruit?", "What is a fruit? Apple."), thumb(4, up=False)]).warnings
    assert [(f.rule, f.text) for f in echo] == [
        ("LA106", "1 answer begins with the prompt itself: f.jsonl:3")
    ]


RATED = st.lists(
    st.tuples(st.sampled_from("pq"), st.sampled_from(["a", "b", " a", ""]), st.booleans()), max_size=12
).map(
    lambda rows: [
        *(thumb(line, *row) for line, row in enumerate(rows, 1)),
        thumb(98, "r"),
        thumb(99, "s", up=False),
    ]
)


@given(RATED)
def test_linting_thumbs_twice_is_linting_once(rated):
    once = lint_rated(rated)
    twice = lint_rated(once.kept)
    assert (twice.kept, twice.dropped) == (once.kept, {})
    assert len(once.kept) + sum(once.counts.values()) == len(rated)
    assert set(once.dropped) <= set(RULES)
