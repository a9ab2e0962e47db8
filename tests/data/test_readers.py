import io

from hypothesis import given, settings
from hypothesis import strategies as st

from lite_align.data.readers import READERS, Part
from lite_align.data.strict_json import MAX_BYTES


def read(suffix: str, content: bytes) -> Part:
    part = Part("data" + suffix)
    READERS[suffix](io.BytesIO(content), part)
    return part


def lines_of(part: Part) -> list[int]:
    return [source.line for source, _ in part.rows]


def test_lines_end_at_newline_bytes_only():
    part = read(".jsonl", '{"a": "x\u2028y\x85z"}\n\n{"a": "2"}\r\n'.encode())
    assert [row for _, row in part.rows] == [{"a": "x\u2028y\x85z"}, {"a": "2"}]
    assert lines_of(part) == [1, 3]
    assert part.problems == []
    assert part.notes == [
        "data.jsonl: Windows line ends (CRLF) read as \\n",
        "data.jsonl: 1 blank line passed over",
    ]


def test_a_byte_order_mark_goes_with_a_note():
    for suffix, content in ((".jsonl", b'{"a": 1}\n'), (".json", b'[{"a": 1}]'), (".csv", b"a\n1\n")):
        part = read(suffix, b"\xef\xbb\xbf" + content)
        assert [list(row) for _, row in part.rows] == [["a"]]
        assert part.notes == [f"data{suffix}: byte order mark removed"]


def test_the_lines_after_an_over_long_one_keep_their_numbers():
    long = b'{"a": "' + b"x" * (2 * MAX_BYTES) + b'"}'
    part = read(".jsonl", b'{"a": 1}\n' + long + b'\n{"a": 3}\nbad\n')
    assert lines_of(part) == [1, 3]
    assert [problem.split(" ")[0] for problem in part.problems] == ["data.jsonl:2", "data.jsonl:4"]
    assert "longer than 8 MiB" in part.problems[0]


def test_a_line_of_exactly_the_limit_is_read():
    line = b'{"a": "' + b"x" * (MAX_BYTES - 9) + b'"}'
    assert len(line) == MAX_BYTES
    assert lines_of(read(".jsonl", line + b"\n")) == [1]
    assert lines_of(read(".jsonl", line)) == [1]


def test_array_rows_are_numbered_by_line():
    part = read(".json", b'[\n {"a": 1},\n {\n  "a": 2},\n {"a": 3}\n]\n')
    assert lines_of(part) == [2, 3, 5]


def test_array_rows_on_one_line_are_numbered_from_one():
    part = read(".json", b'[{"a": 1}, {"a": 2}, 7, {"a": 4}]')
    assert lines_of(part) == [1, 2, 4]
    assert part.problems[0].startswith("data.json:3 is a number")
    assert "numbered from 1" in part.notes[0]


def test_all_bad_elements_of_an_array_are_noted():
    part = read(".json", b'[\n{"a": 1, "a": 2},\n{"a": NaN},\n{"a": "ok"},\n{"a": 99999999999999999999}\n]')
    assert [problem.split(" ")[0] for problem in part.problems] == [
        "data.json:2",
        "data.json:3",
        "data.json:5",
    ]
    assert lines_of(part) == [4]


def test_a_json_file_of_lines_is_read_as_lines():
    part = read(".json", b'{"a": 1}\n{"a": 2}\n')
    assert lines_of(part) == [1, 2]
    assert part.notes == ["data.json: one object a line, read as JSONL"]


def test_csv_keeps_text_as_it_is_and_counts_physical_lines():
    part = read(".csv", b'prompt,chosen\n"two\nlines","a, ""b"""\n2024-01-01,007\n')
    assert [row for _, row in part.rows] == [
        {"prompt": "two\nlines", "chosen": 'a, "b"'},
        {"prompt": "2024-01-01", "chosen": "007"},
    ]
    assert lines_of(part) == [2, 4]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                b'{"a":',
                b'"x"',
                b"}",
                b"[",
                b"]",
                b",",
                b"\n",
                b"\r",
                b"1",
                b'"',
                b"\xff",
                b"NaN",
                b"\\u",
                b" ",
            ]
        ),
        max_size=25,
    ).map(b"".join),
)
def test_no_bytes_make_a_reader_fail_otherwise_than_by_noting_problems(suffix, content):
    part = read(suffix, content)
    assert all(problem.startswith(f"data{suffix}:") for problem in part.problems)
    assert all("\x1b" not in problem for problem in part.problems)
