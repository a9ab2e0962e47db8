import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.data.strict_json import MAX_DEPTH, Malformed, excerpt, inspect, parse

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abé ", max_size=4), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(JSON_VALUES, st.booleans())
def test_what_the_standard_library_writes_is_read_back(value, ascii_only):
    assert parse(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    ("text", "column", "phrase"),
    [
        ('{"a": 1, "b": 2, "a": 3}', 18, 'key "a" twice'),
        ('{"x": {"a": 1}, "a": 1, "y": {"b": 1, "b": 2}}', 39, 'key "b" twice'),
        ('{"a": "NaN", "b": NaN}', 19, "NaN"),
        ('{"a": -Infinity}', 7, "-Infinity"),
        ('{"a": 1e999}', 7, "too large"),
        ('{"a": 18446744073709551616}', 7, "64 bits"),
        ('{"a": -9223372036854775809}', 7, "64 bits"),
        ('{"a": 1} {"b": 2}', 10, "second value"),
        ('{"a": "hel', 10, "middle of a string"),
        ('{"a": [1, 2', 11, "ends too early"),
        ("{'a': 1}", 2, "single quotes"),
        ('{"a": "tab\there"}', 11, "control character (U+0009)"),
        ('{"a" 1}', 6, "not JSON"),
    ],
)
def test_a_problem_has_its_column(text, column, phrase):
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert phrase in caught.value.what
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ('{"a": "\\ud83d"}', "lone surrogate (\\ud83d)"),
        ('{"\\udc00": 1}', "lone surrogate"),
        ('{"a": "x\\u0000y"}', "NUL"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ('{"a":' * 100_000, "nested deeper"),
    ],
)
def test_characters_and_depth(text, phrase):
    with pytest.raises(
        Malformed, match=phrase.replace("(", r"\(").replace(")", r"\)").replace("\\u", r"\\u")
    ):
        parse(text)


def test_what_is_allowed_stays_as_it_is():
    assert parse('{"a": "\\ud83d\\ude00 \\\\u0000 \u2028 \x85"}') == {"a": "\U0001f600 \\u0000 \u2028 \x85"}
    assert parse(" [18446744073709551615] ") == [2**64 - 1]
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None


def test_foreign_values_are_refused():
    with pytest.raises(Malformed, match="bytes"):
        inspect({"a": b"x"})
    with pytest.raises(Malformed, match="nan"):
        inspect({"a": float("nan")})


def test_an_excerpt_holds_nothing_that_a_terminal_acts_upon():
    assert excerpt("a\x1b]0;x\x07\u202eb\x9b日本") == "a·]0;x··b·日本"
    assert excerpt("x" * 100) == "x" * 80 + "…"
