"""files: whole or absent writes, modes, words for errors, and faults that are seen to fire."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite_align.errors import DiskFull, LiteAlignError, UserError
from lite_align.train import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o377])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.make_folder(tmp_path / "run")
        files.write_new(tmp_path / "run" / "new", b"a")
        files.replace(tmp_path / "run" / "replaced", b"a")
        files.append(tmp_path / "run" / "appended", b"a")
    finally:
        os.umask(before)
    assert mode(tmp_path / "run") == 0o700
    assert {mode(path) for path in (tmp_path / "run").iterdir()} == {0o600}
    assert len(names(tmp_path / "run")) == 3


def test_write_new_returns_the_hash_and_refuses_an_existing_file_or_link(tmp_path: Path) -> None:
    # SHA-256 of "abc" from FIPS 180-2, appendix B.1.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.write_new(tmp_path / "a", b"abc") == abc == files.sha256(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in ("a", "link"):
        with pytest.raises(FileExistsError):
            files.write_new(tmp_path / taken, b"other")
    assert not (tmp_path / "elsewhere").exists()


def test_large_content_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WRITE_BYTES", 7)
    data = bytes(range(100))
    told: list[files.Operation] = []
    with files.observed(told.append):
        files.write_new(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    assert b"".join(operation.data for operation in told) == data
    assert [operation.kind for operation in told] == ["open", *["write"] * 15, "fsync"]


def test_replace_keeps_the_old_content_at_every_failing_operation(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.replace(path, b"old")
    fired = 0
    for nth in range(1, 20):
        fault = files.Fault("any", nth, errno.EIO)
        try:
            with files.observed(fault):
                files.replace(path, b"new")
        except OSError:
            assert fault.fired
            fired += 1
            # The last operation syncs the folder: the new content is there, only not known to be durable.
            assert path.read_bytes() == (b"new" if nth == 5 else b"old")
            assert names(tmp_path) == ["record.json"]
            path.write_bytes(b"old")
        else:
            assert not fault.fired
            break
    assert fired == 5  # open, write, fsync, rename, fsync of the folder
    assert path.read_bytes() == b"new"


def test_a_failed_append_leaves_the_lines_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WRITE_BYTES", 4)
    path = tmp_path / "metrics.jsonl"
    files.append(path, b"first line\n")
    fault = files.Fault("write", 2, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"), files.observed(fault):
        files.append(path, b"second line\n")
    assert fault.fired
    assert path.read_bytes() == b"first line\n"


def test_an_append_that_is_synced_is_on_the_disk_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    told: list[files.Operation] = []
    with files.observed(told.append):
        files.append(path, b"first\n", sync=True)
        files.append(path, b"second\n", sync=True)
    steps = [(operation.kind, operation.path) for operation in told]
    assert steps == [
        *(
            ("open", path),
            ("write", path),
            ("fsync", path),
            ("fsync", tmp_path),
        ),  # the name of a new file too
        *(("open", path), ("write", path), ("fsync", path)),
    ]
    with pytest.raises(OSError, match="Input/output"), files.observed(files.Fault("fsync", 1, errno.EIO)):
        files.append(path, b"third\n", sync=True)
    assert path.read_bytes() == b"first\nsecond\n"


def test_rename_folder_refuses_an_existing_target_even_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        files.rename_folder(tmp_path / "a", tmp_path / "b")
    files.rename_folder(tmp_path / "a", tmp_path / "c")
    assert names(tmp_path) == ["b", "c"]


def test_remove_folder_removes_links_and_does_not_follow_them(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "weights").write_text("keep")
    doomed = tmp_path / "doomed"
    (doomed / "inner").mkdir(parents=True)
    (doomed / "inner" / "file").write_text("x")
    (doomed / "link").symlink_to(precious)
    files.remove_folder(doomed)
    assert names(tmp_path) == ["precious"]
    assert names(precious) == ["weights"]


# --- words ---


def test_json_is_sorted_strict_and_utf_8() -> None:
    assert files.dump_json({"b": 1, "a": "é"}) == '{"a": "é", "b": 1}\n'.encode()
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            files.dump_json({"x": value})


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
        | st.text(st.characters(exclude_characters=":/-_")),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(st.characters(exclude_characters=":/-_")), inner, max_size=4)
        ),
    )
)
def test_json_reads_back_equal_also_with_lone_surrogates(value: object) -> None:
    assert json.loads(files.dump_json(value)) == value


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789 end", "hf_AbCdEfGh"),
        ("--key=sk-proj-0123456789abcdefghij", "0123456789abcdef"),
        ("https://user:pa55word@host/path", "pa55word"),
    ],
)
def test_secrets_are_not_stored(text: str, secret: str) -> None:
    assert secret.encode() not in files.encode(text)
    assert secret.encode() not in files.dump_json({"command": [text], text: 1})


def test_sizes_for_people() -> None:
    sizes = {0: "0 bytes", 830: "830 bytes", 1200: "1.2 kB", 66_000_000: "66 MB", 1_400_000_000: "1.4 GB"}
    assert {count: files.human_bytes(count) for count in sizes} == sizes


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "1,234,567 bytes"),
        (errno.EDQUOT, DiskFull, "are needed"),
        (errno.EFBIG, DiskFull, "are free"),
        (errno.EACCES, UserError, "Permission denied"),
        (errno.EROFS, UserError, "Read-only"),
        (errno.EIO, LiteAlignError, "Input/output error"),
    ],
)
def test_errors_of_the_system_become_errors_for_people(
    tmp_path: Path, number: int, kind: type[LiteAlignError], words: str
) -> None:
    with pytest.raises(LiteAlignError) as caught, files.explained(tmp_path, needed=1_234_567):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert str(tmp_path) in caught.value.what
    assert caught.value.remedy


def test_require_space_looks_at_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    files.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DiskFull, match=r"1e\+09 GB|1000000000 GB|1,000,000,000,000,000,000 bytes"):
        files.require_space(tmp_path / "not" / "yet", 10**18)


# --- faults ---


@pytest.mark.parametrize("text", ["write", "write:0", "read:1", "write:x", "write:1:ENOTHING"])
def test_a_fault_that_could_never_fire_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        files.Fault.parse(text)


@pytest.mark.parametrize(("fault", "code"), [("rename:1", 137), ("write:1:ENOSPC", 28), ("write:3", 0)])
def test_the_environment_variable_reaches_another_process(tmp_path: Path, fault: str, code: int) -> None:
    program = (
        "import sys; from pathlib import Path; from lite_align.train import files\n"
        "try: files.replace(Path(sys.argv[1]), b'new')\n"
        "except OSError as error: sys.exit(error.errno)"
    )
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    environment = {**os.environ, "LA_FAULT": fault}
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, timeout=60)
    assert done.returncode == code
    assert path.read_bytes() == (b"old" if code else b"new")
