import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lite_align.data import formats, sources
from lite_align.errors import DataError, LiteAlignError, UserError

GOOD = b'{"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Chair."}\n'
P, C = b'{"prompt": "p", "chosen": "c", ', b'{"prompt": "p", '

# name of the file, its bytes, the place that must be named, words that must be said
BAD_FILES = [
    ("empty.jsonl", b"", ":1", "empty"),
    ("blank.jsonl", b"\n \n\t\n", ":1", "no rows"),
    ("mark_only.jsonl", b"\xef\xbb\xbf", ":1", "no rows"),
    ("truncated_last.jsonl", GOOD * 2 + b'{"prompt": "p", "chosen": "c", "rej', ":3", "middle of a string"),
    ("truncated_middle.jsonl", GOOD + b'{"prompt": "p", "cho\n' + GOOD, ":2", "middle of a string"),
    ("truncated_object.jsonl", GOOD + b'{"prompt": "p"\n', ":2", "ends too early"),
    ("truncated_list.jsonl", GOOD + b'{"prompt": [\n', ":2", "ends too early"),
    ("no_value.jsonl", GOOD + b'{"prompt": }\n', ":2", "not JSON"),
    ("no_comma.jsonl", GOOD + b'{"prompt": "p" "chosen": "c"}\n', ":2", "column 16"),
    ("trailing_comma.jsonl", GOOD + b'{"prompt": "p",}\n', ":2", "not JSON"),
    ("list_comma.jsonl", GOOD + b'{"prompt": ["p",]}\n', ":2", "not JSON"),
    ("single_quotes.jsonl", GOOD + b"{'prompt': 'p'}\n", ":2", "single quotes"),
    ("python_constants.jsonl", GOOD + b'{"prompt": None}\n', ":2", "not JSON"),
    ("comment.jsonl", b"// rows\n" + GOOD, ":1", "not JSON"),
    ("plain_text.jsonl", b"Hello there\n" + GOOD, ":1", "Hello there"),
    ("markup.jsonl", b"<html>\n" + GOOD, ":1", "not JSON"),
    ("csv_inside.jsonl", b"prompt,chosen,rejected\n" + GOOD, ":1", "not JSON"),
    ("number_row.jsonl", GOOD + b"7\n", ":2", "a number"),
    ("text_row.jsonl", GOOD + b'"p"\n', ":2", "is text"),
    ("null_row.jsonl", GOOD + b"null\n", ":2", "null"),
    ("true_row.jsonl", GOOD + b"true\n", ":2", "true or false"),
    ("list_row.jsonl", GOOD + b'["p", "c", "r"]\n', ":2", "a list"),
    ("list_row_first.jsonl", b'["p", "c", "r"]\n' + GOOD, ":1", "a list"),
    ("empty_object.jsonl", GOOD + b"{}\n", ":2", "without columns"),
    ("two_objects.jsonl", GOOD.strip() + GOOD, ":1", "second value"),
    ("two_objects_comma.jsonl", GOOD.strip() + b"," + GOOD, ":1", "second value"),
    ("line_comma.jsonl", GOOD.strip() + b",\n" + GOOD, ":1", "second value"),
    ("carriage_returns.jsonl", GOOD.replace(b"\n", b"\r") * 3, ":1", "carriage returns"),
    ("duplicate_key.jsonl", GOOD + P + b'"chosen": "d", "rejected": "r"}\n', ":2", '"chosen" twice'),
    ("duplicate_nested.jsonl", GOOD + C + b'"x": {"a": 1, "a": 2}}\n', ":2", '"a" twice'),
    ("duplicate_escaped.jsonl", GOOD + C + b'"prom\\u0070t": "q"}\n', ":2", "twice"),
    ("nan.jsonl", GOOD + P + b'"rejected": "r", "margin": NaN}\n', ":2", "NaN"),
    ("infinity.jsonl", GOOD + P + b'"rejected": "r", "margin": Infinity}\n', ":2", "Infinity"),
    ("minus_infinity.jsonl", GOOD + P + b'"rejected": "r", "margin": -Infinity}\n', ":2", "-Infinity"),
    ("huge_float.jsonl", GOOD + P + b'"rejected": "r", "margin": 1e400}\n', ":2", "too large"),
    ("huge_integer.jsonl", GOOD + P + b'"rejected": "r", "id": ' + b"9" * 30 + b"}\n", ":2", "64 bits"),
    ("endless_integer.jsonl", GOOD + P + b'"rejected": "r", "id": ' + b"9" * 9000 + b"}\n", ":2", "64 bits"),
    ("deep_list.jsonl", GOOD + b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}\n", ":2", "nested deeper"),
    ("deep_object.jsonl", GOOD + b'{"p": ' * 40 + b"1" + b"}" * 40 + b"\n", ":2", "nested deeper"),
    ("depth_bomb.jsonl", GOOD + b"[" * 200_000 + b"\n", ":2", "nested deeper"),
    ("nul_escape.jsonl", GOOD + P + b'"rejected": "a\\u0000b"}\n', ":2", "NUL"),
    ("nul_raw.jsonl", GOOD + P + b'"rejected": "a\0b"}\n', ":2", "U+0000"),
    ("high_surrogate.jsonl", GOOD + P + b'"rejected": "a\\ud800b"}\n', ":2", "lone surrogate"),
    ("low_surrogate.jsonl", GOOD + P + b'"rejected": "\\uDC00"}\n', ":2", "lone surrogate"),
    ("surrogate_key.jsonl", GOOD + b'{"\\ud800": "p"}\n', ":2", "lone surrogate"),
    ("raw_tab.jsonl", GOOD + P + b'"rejected": "a\tb"}\n', ":2", "control character"),
    ("raw_escape.jsonl", GOOD + P + b'"rejected": "a\x1b[2Jb"}\n', ":2", "U+001B"),
    ("raw_newline.jsonl", GOOD + P + b'"rejected": "a\nb"}\n', ":2", "line break inside text"),
    ("bad_escape.jsonl", GOOD + P + b'"rejected": "\\x41"}\n', ":2", "not JSON"),
    ("bad_utf8.jsonl", GOOD + P + b'"rejected": "r\xff"}\n', ":2", "0xff at byte offset 45"),
    ("latin1.jsonl", GOOD + b'{"prompt": "caf\xe9"}\n', ":2", "0xe9"),
    ("overlong_utf8.jsonl", GOOD + b'{"prompt": "\xc0\xaf"}\n', ":2", "0xc0"),
    ("surrogate_utf8.jsonl", GOOD + b'{"prompt": "\xed\xa0\x80"}\n', ":2", "0xed"),
    ("cut_utf8.jsonl", GOOD + b'{"prompt": "\xe6\x97', ":2", "0xe6"),
    ("utf16.jsonl", GOOD.decode().encode("utf-16"), ":1", "UTF-16"),
    ("utf16be.jsonl", b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), ":1", "UTF-16"),
    ("utf16_no_mark.jsonl", GOOD.decode().encode("utf-16-le"), ":1", "UTF-16"),
    ("utf32.jsonl", GOOD.decode().encode("utf-32"), ":1", "UTF-32"),
    ("mark_inside.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, ":2", "byte order mark"),
    ("gzip.jsonl", b"\x1f\x8b\x08\x00rest", ":1", "gzip"),
    ("zip.jsonl", b"PK\x03\x04rest", ":1", "zip"),
    ("parquet.jsonl", b"PAR1rest", ":1", ".parquet"),
    ("array.jsonl", b"[" + GOOD.strip() + b"]\n", ":1", "ending .json"),
    ("array_lines.jsonl", b"[\n" + GOOD.strip() + b",\n" + GOOD + b"]\n", ":1", "ending .json"),
    ("wrapper.json", b'{"data": [' + GOOD.strip() + b"]}", ":1", "json.load"),
    ("wrapper_lines.json", b'{\n"data": [\n' + GOOD + b"]\n}", ":1", "['data']"),
    ("rows_wrapper.json", b'{"version": 1, "rows": [' + GOOD.strip() + b"]}", ":1", "['rows']"),
    ("one_object.json", b'{\n "prompt": "p"\n}', ":1", "not a list of rows"),
    ("text.json", b'"prompt"', ":1", "not a JSON array"),
    ("empty.json", b"", ":1", "empty"),
    ("empty_array.json", b"[]", ":1", "no rows"),
    ("open_array.json", b"[\n" + GOOD + b",", ":3", "ends too early"),
    ("open_array_2.json", b"[\n" + GOOD, ":3", "ends too early"),
    ("array_no_comma.json", b"[\n" + GOOD + GOOD + b"]", ":3", "lacks a comma"),
    ("array_trailing_comma.json", b"[\n" + GOOD.strip() + b",\n]", ":3", "not JSON"),
    ("array_rest.json", b"[\n" + GOOD + b"]\nrest", ":4", "after the array"),
    ("array_scalar.json", b"[\n1,\n" + GOOD + b"]", ":2", "a number"),
    ("array_cut.json", b"[\n" + GOOD.strip() + b',\n{"prompt": "p', ":3", "middle of a string"),
    ("array_deep.json", b"[\n" + GOOD.strip() + b",\n" + b"[" * 99_999, ":3", "nested deeper"),
    ("array_utf8.json", b'[\n{"prompt": "\xff"}]', ":2", "0xff"),
    ("array_nan.json", b'[\n{"prompt": NaN}\n]', ":2", "NaN"),
    ("array_surrogate.json", b'[\n{"prompt": "\\ud800"}\n]', ":2", "lone surrogate"),
    ("objects.json", b'{\n"a": 1}\n{\n"a": 2}', ":3", "without a list"),
    ("empty.csv", b"", ":1", "empty"),
    ("header_only.csv", b"prompt,chosen,rejected\n", ":1", "no rows"),
    ("few_cells.csv", b"prompt,chosen,rejected\np,c,r\np,c\n", ":3", "2 cells"),
    ("many_cells.csv", b"prompt,chosen,rejected\np,c,r,x\n", ":2", "4 cells"),
    ("open_quote.csv", b'prompt,chosen,rejected\np,c,"r\n', ":2", "not CSV"),
    ("stray_quote.csv", b'prompt,chosen,rejected\np,"c"x,r\n', ":2", "not CSV"),
    ("same_names.csv", b"prompt,chosen,chosen\np,c,r\n", ":1", "twice"),
    ("no_name.csv", b"prompt,chosen,\np,c,r\n", ":1", "no name"),
    ("latin1.csv", b"prompt,chosen,rejected\np,caf\xe9,r\n", ":2", "0xe9"),
    ("nul.csv", b"prompt,chosen,rejected\np,a\0b,r\n", ":2", "NUL"),
    ("messages.csv", b"prompt,chosen,rejected\np,\"[{'role': 'user'}]\",r\n", ":2", "use JSONL"),
    ("long_cell.csv", b"prompt,chosen,rejected\np,c," + b"x" * 200_000 + b"\n", ":2", "not CSV"),
    ("utf16.csv", "prompt,chosen\np,c\n".encode("utf-16"), ":1", "UTF-16"),
    ("broken.parquet", b"PAR1 this is not parquet PAR1", ":1", "parquet"),
    ("empty.parquet", b"", ":1", "parquet"),
    ("rows.txt", GOOD, ":1", ".txt"),
    ("rows.tsv", b"a\tb\n", ":1", ".tsv"),
    ("rows.xlsx", b"PK\x03\x04", ":1", ".xlsx"),
    ("rows.jsonl.gz", b"\x1f\x8b", ":1", ".gz"),
    ("rows", GOOD, ":1", "(none)"),
]


def refusal(path: Path | str) -> DataError:
    with pytest.raises(DataError) as caught:
        sources.read(str(path))
    return caught.value


def test_there_are_a_hundred_bad_files():
    assert len(BAD_FILES) >= 100
    assert len({name for name, *_ in BAD_FILES}) == len(BAD_FILES)


@pytest.mark.parametrize(("name", "content", "place", "words"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_refused_with_its_place(tmp_path, name, content, place, words):
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert f"{path}{place} " in str(error)
    assert words in str(error)
    assert error.exit_code == 2
    assert error.remedy
    assert all(line.isprintable() and len(line) < 2 * len(str(path)) + 320 for line in error.details)


def test_all_bad_lines_are_listed_with_their_beginnings(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(GOOD * 16 + b'{"prompt": "Name a fr\n' + GOOD * 3 + b"[1]\n" + b'{"a": 1, "a": 2}\n')
    error = refusal(path)
    assert error.what == f"3 of 22 rows in {path} cannot be read"
    assert [line.split(" ")[0] for line in error.details] == [f"{path}:{line}" for line in (17, 21, 22)]
    assert error.details[0].endswith('(column 21): {"prompt": "Name a fr')
    assert "lite-align check" in error.remedy
    assert "--fix" in error.remedy


def test_bad_lines_are_skipped_only_on_request_and_named(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(GOOD + b"oops\n" + GOOD)
    table = sources.read(str(path), skip_bad=1)
    assert [source.line for source, _ in table.rows] == [1, 3]
    assert "skipped 1 unreadable line" in table.notes[-1]
    assert f"{path}:2" in table.notes[-1]
    path.write_bytes(GOOD + b"oops\noops\n")
    with pytest.raises(DataError, match="2 of 3 rows"):
        sources.read(str(path), skip_bad=1)


def test_the_hash_is_that_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    assert sources.read(str(path)).sha256 == hashlib.sha256(GOOD).hexdigest()


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "preferences.jsonl").write_bytes(GOOD)
    assert f"Did you mean {tmp_path / 'preferences.jsonl'}?" in refusal(tmp_path / "preference.jsonl").remedy


@pytest.mark.parametrize(
    "path",
    ["", "nothing.jsonl", "no/such/folder/rows.jsonl", "gone/rows.jsonl", "x" * 5000, "a\0b.jsonl", "./x/y"],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert "there is no" in refusal(path).what or path == ""


def test_a_folder_is_read_whole_and_in_order(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\np,c,r\n")
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")
    table = sources.read(str(tmp_path))
    assert [Path(source.file).name for source, _ in table.rows] == ["a.csv", "b.jsonl"]
    assert table.notes[0] == "2 files read as one table: a.csv (1 rows), b.jsonl (1 rows)"
    assert "mixes .csv and .jsonl" in table.notes[1]


def test_problems_of_all_files_of_a_folder_come_together(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"oops\n")
    (tmp_path / "b.jsonl").write_bytes(GOOD + b"oops\n")
    error = refusal(tmp_path)
    assert [line.split(" ")[0] for line in error.details] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/b.jsonl:2",
    ]


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    error = refusal(tmp_path)
    assert "holds no data files" in error.what
    assert "train" in error.remedy


def test_a_device_or_pipe_is_refused(tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe).what


def test_parquet_rows_are_read_and_foreign_values_refused(tmp_path):
    import datetime

    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello!", "rejected": "No."}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    table = sources.read(str(path))
    assert [row for _, row in table.rows] == rows
    assert len(formats.convert(table, formats.detect(table, wanted="pair"))) == 1
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": datetime.datetime(2024, 1, 1)}]), path)
    error = refusal(path)
    assert f"{path}:1 holds a datetime" in error.details[0]


def test_an_unreachable_hub_is_one_line_with_a_way_out(tmp_path, monkeypatch):
    import datasets

    def unreachable(name: str):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nlong story")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(UserError) as caught:
        sources.read("someone/preferences:train")
    assert caught.value.what.count("\n") == 0
    assert "someone/preferences cannot be loaded" in caught.value.what
    assert "give their path" in caught.value.remedy.replace("\n", " ")


def test_hub_rows_of_a_safe_format_are_read_and_pickles_refused(tmp_path, monkeypatch):
    import datasets

    class Builder:
        name = "parquet"

    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}]
    asked: list[str] = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append(f"{name} {split}")
        return datasets.Dataset.from_list(rows)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: Builder())
    monkeypatch.setattr(datasets, "load_dataset", load)
    table = sources.read("someone/preferences:test_prefs")
    assert [row for _, row in table.rows] == rows
    assert asked == ["someone/preferences test_prefs"]
    Builder.name = "pandas"
    with pytest.raises(UserError, match="pandas files"):
        sources.read("someone/preferences")
    assert len(asked) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    st.binary(max_size=120) | st.integers(0, len(GOOD) * 2).map(lambda cut: (GOOD * 2)[:cut]),
)
def test_random_bytes_end_in_rows_or_in_an_error_for_people(tmp_path, suffix, content):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    error = None
    try:
        table = sources.read(str(path))
        formats.convert(table, formats.detect(table))
    except LiteAlignError as caught:
        error = caught
    assert error is None or (str(path) in str(error) and error.exit_code == 2)


def test_reading_imports_no_torch(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(GOOD)
    code = (
        "import sys; from lite_align.data import sources, formats, lint, split; "
        f"sources.read({json.dumps(str(tmp_path / 'rows.jsonl'))}); "
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
