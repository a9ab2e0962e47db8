"""checkpoint: what is saved is what loads, exactly; what is damaged never loads; a full disk costs nothing."""

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lite_align.errors import DiskFull, LiteAlignError, UserError
from lite_align.train import checkpoint, files

Parts = dict[str, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run on a small disk; the reserve has its own test."""
    monkeypatch.setattr(checkpoint, "RESERVE_BYTES", 0)


def parts(step: int) -> Parts:
    """Different content for each step, several dtypes, a scalar, an empty tensor, a view and shared storage."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 6, generator=generator)
    return {
        "policy": {"a": weight, "b": weight.t(), "rows": weight[2:5]},
        "optimizer": {
            "step": torch.tensor(float(step)),
            "moment": torch.randn(5, generator=generator).bfloat16(),
            "none": torch.empty(0, 4),
            "bytes": torch.randint(0, 255, (9,), dtype=torch.uint8, generator=generator),
        },
    }


def state(step: int) -> dict[str, object]:
    return {"step": step, "rate": 1e-5 / 3, "cursor": [1, 2, step], "note": "é"}


def equal(one: Parts, other: Parts) -> bool:
    return one.keys() == other.keys() and all(
        one[p].keys() == other[p].keys()
        and all(one[p][n].dtype == other[p][n].dtype and torch.equal(one[p][n], other[p][n]) for n in one[p])
        for p in one
    )


def save(run: Path, step: int, **options: int) -> Path:
    return checkpoint.save(run, step, parts(step), state(step), **options)


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def silent(line: str) -> None:
    pytest.fail(f"nothing should be passed over: {line}")


# --- save and load ---


def test_what_was_saved_loads_bit_equal(tmp_path: Path) -> None:
    run = tmp_path / "läufe mit space"
    run.mkdir()
    target = checkpoint.save(run, 7, parts(7), state(7), hashes={"base": "ab"}, versions={"torch": "2"})
    loaded = checkpoint.latest(run, silent, expected=parts(0))
    assert loaded is not None
    assert (loaded.step, loaded.folder, loaded.state) == (7, target, state(7))
    assert equal(loaded.tensors, parts(7))
    assert loaded.manifest["hashes"] == {"base": "ab"}
    assert loaded.manifest["versions"] == {"torch": "2"}
    assert target.name == "step-00000007"
    assert sorted(os.listdir(target)) == [
        "MANIFEST.json",
        "optimizer.safetensors",
        "policy.safetensors",
        "state.json",
    ]
    assert (run / "checkpoints" / "LATEST").read_text() == "step-00000007\n"
    assert checkpoint.steps(run) == [7]


def test_no_checkpoint_is_none_and_leaves_nothing(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path, silent) is None
    assert list(tmp_path.iterdir()) == []


def test_folders_and_files_are_private(tmp_path: Path) -> None:
    target = save(tmp_path, 1)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (target, target.parent)} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=0, best=2)
    assert checkpoint.steps(tmp_path) == [5, 4, 2]
    for step in (6, 7):
        save(tmp_path, step, keep=3)
    assert checkpoint.steps(tmp_path) == [7, 6, 5]
    assert saved(tmp_path) == ["LATEST", "step-00000005", "step-00000006", "step-00000007"]


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_two_that_stay(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000002" / "policy.safetensors").unlink()
    save(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [3, 2, 1]


def test_saving_the_same_again_is_harmless_and_other_content_is_refused(tmp_path: Path) -> None:
    target = save(tmp_path, 4)
    before = target.stat().st_ino
    assert save(tmp_path, 4) == target
    assert target.stat().st_ino == before
    with pytest.raises(ValueError, match="already saved with other content"):
        checkpoint.save(tmp_path, 4, parts(5), state(4))
    assert saved(tmp_path) == ["LATEST", "step-00000004"]
    (target / "state.json").write_text("{}")  # damaged: set aside, and saved anew
    save(tmp_path, 4)
    loaded = checkpoint.latest(tmp_path, silent)
    assert loaded is not None
    assert loaded.state == state(4)


@pytest.mark.parametrize("bad", [{"t": (1, 2)}, {1: "one"}, {"url": "https://me:pass@host"}])
def test_state_that_would_read_back_changed_is_refused(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="plain JSON"):
        checkpoint.save(tmp_path, 1, parts(1), bad)
    assert list(tmp_path.iterdir()) == []


def test_secrets_in_the_manifest_are_hidden_and_it_still_verifies(tmp_path: Path) -> None:
    canary = "hf_" + "Canary" * 6
    target = checkpoint.save(
        tmp_path, 1, parts(1), state(1), hashes={"base": canary, "url": f"https://u:{canary}@h"}
    )
    assert all(canary.encode() not in path.read_bytes() for path in target.iterdir())
    assert checkpoint.latest(tmp_path, silent) is not None


def test_a_part_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name of a checkpoint part"):
        checkpoint.save(tmp_path, 1, {"../evil": {}}, {})
    assert saved(tmp_path) == []


# --- disk ---


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "RESERVE_BYTES", 10**18)
    operations: list[files.Operation] = []
    # 2 × (48 + 48 + 18 floats, 1 float, 5 bfloat16, 9 bytes) = 2 × (4 × 115 + 10 + 9) = 958
    with (
        pytest.raises(DiskFull, match=r"1,000,000,000,000,000,958 bytes") as caught,
        files.observed(operations.append),
    ):
        save(tmp_path, 2)
    assert caught.value.exit_code == 74
    assert operations == []
    assert checkpoint.steps(tmp_path) == [1]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EIO, LiteAlignError)])
def test_a_failing_disk_leaves_nothing_half_written(
    tmp_path: Path, number: int, kind: type[LiteAlignError]
) -> None:
    save(tmp_path, 1)
    (tmp_path / "rehearsal").mkdir()
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "rehearsal" / "checkpoints")
    operations: list[files.Operation] = []
    with files.observed(operations.append):
        save(tmp_path / "rehearsal", 2)
    # mkdir, 4 × (open, write, fsync), fsync, rename, fsync; LATEST: open, write, fsync, rename, fsync
    assert len(operations) == 1 + 12 + 3 + 5
    for nth in range(1, len(operations) + 1):
        run = tmp_path / f"copy-{nth}"
        run.mkdir()
        shutil.copytree(tmp_path / "checkpoints", run / "checkpoints")
        fault = files.Fault("any", nth, number)
        with pytest.raises(LiteAlignError) as caught, files.observed(fault):
            save(run, 2)
        assert fault.fired
        assert type(caught.value) is kind
        assert not [name for name in saved(run) if name.startswith(".")], saved(run)
        loaded = checkpoint.latest(run, silent)
        assert loaded is not None
        assert equal(loaded.tensors, parts(loaded.step))
        assert save(run, 3).exists()


def in_child(work: Callable[[], int]) -> int:
    """Run `work` in a fork and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_file_size_limit_of_the_process_is_a_full_disk(tmp_path: Path) -> None:
    import resource

    save(tmp_path, 1)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        try:
            save(tmp_path, 2)
        except DiskFull as error:
            return error.exit_code
        return 0

    assert in_child(limited) == 74
    assert saved(tmp_path) == ["LATEST", "step-00000001"]
    assert checkpoint.latest(tmp_path, silent) is not None


def test_a_disk_that_lies_is_found_on_reading_back(tmp_path: Path) -> None:
    def lie(operation: files.Operation) -> None:
        if operation.kind == "rename" and operation.path.name.startswith(".tmp-"):
            pytest.fail("a checkpoint that reads back differently got its name")
        if operation.kind == "open" and operation.path.name == "MANIFEST.json":
            flip(operation.path.parent / "policy.safetensors", 40)

    with pytest.raises(LiteAlignError, match="reads back differently"), files.observed(lie):
        save(tmp_path, 1)
    assert saved(tmp_path) == []


# --- corruption ---


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


NAMES = ("policy.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def damages(name: str, size: int) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Ways to damage file `name` of `size` bytes in a checkpoint folder whose sibling is step 1."""
    for keep in (0, size // 2, size - 1):
        yield f"truncated to {keep}", lambda folder, keep=keep: os.truncate(folder / name, keep)
    for bit in random.Random(name).sample(range(8 * size), 32):
        yield f"bit {bit} flipped", lambda folder, bit=bit: flip(folder / name, bit)
    yield "grown", lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    yield "deleted", lambda folder: (folder / name).unlink()
    yield "of step 1", lambda folder: shutil.copy(folder.parent / "step-00000001" / name, folder / name)
    yield (
        "a link",
        lambda folder: (
            shutil.move(folder / name, folder.parent.parent / name),
            (folder / name).symlink_to(folder.parent.parent / name),
        ),
    )
    yield "a folder", lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


@pytest.mark.parametrize("name", NAMES)
def test_any_damage_to_a_file_falls_back_to_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for step in (1, 2):
        save(whole, step)
    size = (whole / "checkpoints" / "step-00000002" / name).stat().st_size
    for number, (what, damage) in enumerate(damages(name, size)):
        run = tmp_path / str(number)
        shutil.copytree(whole, run)
        damage(run / "checkpoints" / "step-00000002")
        said: list[str] = []
        reader = checkpoint.latest(run, said.append, repair=False)
        assert reader is not None
        assert reader.step == 1, what
        assert "step-00000002" in saved(run), "a reader changes nothing"
        loaded = checkpoint.latest(run, said.append)
        assert loaded is not None
        assert loaded.step == 1, what
        assert equal(loaded.tensors, parts(1))
        assert len(said) == 2, what
        assert "step-00000002 passed over" in said[1]
        assert [n for n in saved(run) if n.startswith(".bad-step-00000002-")], what
        shutil.rmtree(run)


def test_an_extra_file_or_a_folder_under_another_number_is_not_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000002" / "training_args.bin").write_bytes(b"pickle")
    shutil.copytree(folder / "step-00000001", folder / "step-00000009")
    (folder / "step-00000005").mkdir()
    said: list[str] = []
    loaded = checkpoint.latest(tmp_path, said.append)
    assert loaded is not None
    assert loaded.step == 1
    assert ["holds step 1" in said[0], "missing" in said[1], "training_args.bin not listed" in said[2]] == [
        True
    ] * 3


def test_a_run_whose_checkpoints_are_all_bad_never_starts_over(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step) / "policy.safetensors", 100)
    for _ in range(2):  # also when they were set aside by an earlier attempt
        with pytest.raises(UserError, match="does not start over") as caught:
            checkpoint.latest(tmp_path, lambda line: None)
        assert len(caught.value.details) == 2
        assert "--out" in caught.value.remedy


def test_a_newer_format_is_refused_and_left_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has checkpoint format 2"):
        checkpoint.latest(tmp_path, silent)
    assert checkpoint.steps(tmp_path) == [1]


def wrong_shape(expected: Parts) -> str:
    expected["policy"]["a"] = torch.zeros(8, 7)
    return "policy: a is float32 [8, 6], expected float32 [8, 7]"


def wrong_dtype(expected: Parts) -> str:
    expected["policy"]["a"] = expected["policy"]["a"].half()
    return "policy: a is float32 [8, 6], expected float16 [8, 6]"


def missing_tensor(expected: Parts) -> str:
    expected["policy"]["c"] = torch.zeros(1)
    return "policy: c is missing"


def extra_tensor(expected: Parts) -> str:
    del expected["policy"]["b"]
    return "policy: b is not expected"


def missing_part(expected: Parts) -> str:
    expected["value"] = {}
    return "value.safetensors is missing"


@pytest.mark.parametrize("change", [wrong_shape, wrong_dtype, missing_tensor, extra_tensor, missing_part])
def test_a_whole_checkpoint_of_another_model_is_refused(
    tmp_path: Path, change: Callable[[Parts], str]
) -> None:
    save(tmp_path, 1)
    expected = parts(0)
    detail = change(expected)
    with pytest.raises(UserError, match="does not fit") as caught:
        checkpoint.latest(tmp_path, silent, expected=expected)
    assert caught.value.details == (detail,)
    assert checkpoint.steps(tmp_path) == [1]


def test_a_tensor_of_another_shape_put_in_by_hand_is_not_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1)
    target = save(tmp_path, 2)
    save_file({**parts(2)["policy"], "a": torch.zeros(2, 2), "b": torch.zeros(1), "rows": torch.zeros(1)},
              target / "policy.safetensors")  # fmt: skip
    loaded = checkpoint.latest(tmp_path, lambda line: None, expected=parts(0))
    assert loaded is not None
    assert loaded.step == 1


def test_leftovers_of_dead_processes_go_at_the_start_only_by_the_owner(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    for name in (".tmp-00000002-4242-ab", ".trash-step-00000000-cd"):
        (folder / name).mkdir()
        (folder / name / "policy.safetensors").write_bytes(b"half")
    (folder / ".LATEST.tmp-4242-ef").write_bytes(b"")
    assert checkpoint.latest(tmp_path, silent, repair=False) is not None
    assert len(saved(tmp_path)) == 5
    assert checkpoint.latest(tmp_path, silent) is not None
    assert saved(tmp_path) == ["LATEST", "step-00000001"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_reader_during_saves_sees_whole_checkpoints_that_only_grow_newer(tmp_path: Path) -> None:
    save(tmp_path, 1)
    last = 40
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for step in range(2, last + 1):
                save(tmp_path, step)
            code = 0
        finally:
            os._exit(code)
    seen = [1]
    while seen[-1] < last:
        loaded = checkpoint.latest(tmp_path, lambda line: None, repair=False)
        assert loaded is not None
        assert equal(loaded.tensors, parts(loaded.step))
        assert loaded.state == state(loaded.step)
        assert loaded.step >= seen[-1]
        seen.append(loaded.step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(set(seen)) > 3, "the reader never met the writer"


# --- random state ---


def draw() -> list[float]:
    from_numpy = [float(numpy.random.rand()), float(numpy.random.randn())]
    return [random.random(), random.gauss(0, 1), *from_numpy, *torch.rand(3).tolist()]


def test_random_state_survives_a_checkpoint(tmp_path: Path) -> None:
    draw()
    random.gauss(0, 1)  # leaves a cached second value, which must survive as well
    numpy.random.randn()
    tensors, plain = checkpoint.random_state()
    checkpoint.save(tmp_path, 1, {"random": tensors}, {"random": plain})
    expected = [draw(), draw()]
    loaded = checkpoint.latest(tmp_path, silent)
    assert loaded is not None
    assert checkpoint.restore_random_state(loaded.tensors["random"], loaded.state["random"]) == []
    assert [draw(), draw()] == expected


def test_a_device_that_is_gone_is_said() -> None:
    tensors, plain = checkpoint.random_state()
    lines = checkpoint.restore_random_state({**tensors, "cuda:97": tensors["cpu"]}, plain)
    assert len(lines) == 1
    assert "cuda:97" in lines[0]


def test_the_module_knows_no_pickle() -> None:
    source = Path(checkpoint.__file__).read_text() + Path(files.__file__).read_text()
    assert not [word for word in ("import pickle", "torch.load", "torch.save", "joblib") if word in source]
