"""A run killed or powered off at any operation of a save goes on from the checkpoint before or after it, whole.

Two views of the same promise. Real child processes end before the k-th operation, for every k. And a small model of
a POSIX file system replays the recorded operations: after each one it builds the trees that a kill may leave, or a
power loss that keeps none, half or all of the unsynced data and any of the unsynced names. Each tree is put on the
real disk and given to the real loader. Network and FUSE file systems are not in the model, nor in the promise.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lite_align.errors import UserError
from lite_align.train import checkpoint, files

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
KEEP = 2


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written in several pieces, so that a crash can fall between them."""
    monkeypatch.setattr(files, "WRITE_BYTES", 100)
    monkeypatch.setattr(checkpoint, "RESERVE_BYTES", 0)


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "policy": {"a": torch.randn(64, generator=generator), "b": torch.randn(3, 4, generator=generator)},
        "optimizer": {"a": torch.randn(64, generator=generator)},
    }


def save(run: Path, step: int) -> None:
    checkpoint.save(run, step, tensors(step), {"step": step}, KEEP)


def is_whole(loaded: checkpoint.Loaded) -> bool:
    expected = tensors(loaded.step)
    return (
        loaded.state == {"step": loaded.step}
        and loaded.tensors.keys() == expected.keys()
        and all(
            loaded.tensors[part].keys() == expected[part].keys()
            and all(torch.equal(loaded.tensors[part][name], expected[part][name]) for name in expected[part])
            for part in expected
        )
    )


def recorded(run: Path, *steps: int) -> list[files.Operation]:
    operations: list[files.Operation] = []
    with files.observed(operations.append):
        for step in steps:
            save(run, step)
    return operations


# --- real kills ---


def killed_at(nth: int, work: Callable[[], None]) -> int:
    """Run `work` in a child of this warm process that ends before its n-th operation; its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with files.observed(files.Fault("any", nth)):
                work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_save_killed_before_any_operation_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for step in (1, 2):
        save(base, step)
    rehearsal = tmp_path / "rehearsal"
    shutil.copytree(base, rehearsal)
    operations = recorded(rehearsal, 3)
    kinds = [operation.kind for operation in operations]
    assert {"open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir"} == set(kinds)
    published = 1 + next(
        n for n, op in enumerate(operations) if op.target and op.target.name == "step-00000003"
    )
    for nth in range(1, len(operations) + 1):
        run = tmp_path / "run"
        shutil.copytree(base, run)
        assert killed_at(nth, lambda run=run: save(run, 3)) == files.KILLED, "the fault did not fire"
        loaded = checkpoint.latest(run, pytest.fail)
        assert loaded is not None
        assert loaded.step == (3 if nth > published else 2), nth
        assert is_whole(loaded)
        # What the dead process left does not stand in the way of the next save, and goes.
        save(run, 4)
        left = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert left == ["LATEST", f"step-{loaded.step:08d}", "step-00000004"], nth
        shutil.rmtree(run)
    shutil.copytree(base, run)
    assert killed_at(len(operations) + 1, lambda: save(run, 3)) == 0


def test_the_first_save_killed_anywhere_leaves_no_checkpoint_or_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "rehearsal").mkdir()
    total = len(recorded(tmp_path / "rehearsal", 1))
    for nth in range(1, total + 1):
        run = tmp_path / str(nth)
        run.mkdir()
        assert killed_at(nth, lambda run=run: save(run, 1)) == files.KILLED
        loaded = checkpoint.latest(run, pytest.fail)
        assert loaded is None or is_whole(loaded)
        save(run, 2)


def test_recovery_itself_may_be_killed_anywhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for step in (1, 2):
        save(base, step)
    (base / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    (base / "checkpoints" / ".tmp-00000003-1-ab").mkdir()
    (base / "checkpoints" / ".tmp-00000003-1-ab" / "policy.safetensors").write_bytes(b"half")
    for nth in range(1, 20):
        run = tmp_path / str(nth)
        shutil.copytree(base, run)
        code = killed_at(nth, lambda run=run: checkpoint.latest(run, lambda line: None))
        loaded = checkpoint.latest(run, lambda line: None)
        assert loaded is not None
        assert loaded.step == 1
        assert is_whole(loaded)
        if code == 0:
            break
        assert code == files.KILLED
    assert nth == 5, "unlink and rmdir of the leftover, rename and fsync of the quarantine, then no fault"


# --- the model ---


@dataclass
class File:
    data: bytes = b""
    synced: bytes = b""


@dataclass(frozen=True)
class Change:
    """One change of a folder's names, all or nothing: a name that goes, a name that comes (a rename has both)."""

    gone: str | None
    come: str | None
    node: "File | Folder"

    def apply(self, entries: dict[str, "File | Folder"]) -> None:
        if self.gone is not None:
            entries.pop(self.gone, None)
        if self.come is not None:
            entries[self.come] = self.node


@dataclass
class Folder:
    synced: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def entries(self, kept: Sequence[Change] | None = None) -> dict[str, "File | Folder"]:
        entries = dict(self.synced)
        for change in self.pending if kept is None else kept:
            change.apply(entries)
        return entries

    def choices(self) -> Iterator[tuple[Change, ...]]:
        """Which pending changes a power loss may keep: any of a few, none or all of many."""
        counts = range(len(self.pending) + 1) if len(self.pending) <= 4 else (0, len(self.pending))
        for count in counts:
            yield from itertools.combinations(self.pending, count)

    def sync(self) -> None:
        self.synced, self.pending = self.entries(), []


Tree = dict[str, "bytes | Tree"]


class FileSystem:
    """Folders and files, each with what a kill keeps and what a power loss surely keeps."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()

    def at(self, path: Path) -> File | Folder:
        found: File | Folder = self.top
        for name in path.relative_to(self.root).parts:
            assert isinstance(found, Folder)
            found = found.entries()[name]
        return found

    def change(self, gone: Path | None, come: Path | None, node: File | Folder) -> None:
        where = gone or come
        assert where is not None
        folder = self.at(where.parent)
        assert isinstance(folder, Folder)
        folder.pending.append(Change(gone and gone.name, come and come.name, node))

    def apply(self, operation: files.Operation) -> None:
        path = operation.path
        match operation.kind:
            case "mkdir":
                self.change(None, path, Folder())
            case "open":
                self.change(None, path, File())
            case "write":
                file = self.at(path)
                assert isinstance(file, File)
                file.data += operation.data
            case "fsync":
                found = self.at(path)
                if isinstance(found, File):
                    found.synced = found.data
                else:
                    found.sync()
            case "rename":
                assert operation.target is not None
                assert operation.target.parent == path.parent
                self.change(path, operation.target, self.at(path))
            case "unlink" | "rmdir":
                self.change(path, None, self.at(path))
            case unknown:
                raise AssertionError(unknown)

    def folders(self, start: Folder | None = None) -> Iterator[Folder]:
        """Every folder that is reachable now or after a power loss; some more than once."""
        start = start or self.top
        yield start
        for child in (*start.synced.values(), *(change.node for change in start.pending)):
            if isinstance(child, Folder):
                yield from self.folders(child)

    def after_kill(self) -> Tree:
        return tree_of(self.top, {}, lambda file: file.data)

    def after_power_loss(self) -> Iterator[Tree]:
        """Each folder keeps some of its unsynced changes; unsynced data is lost, halved or kept."""
        unsynced = {id(folder): folder for folder in self.folders() if folder.pending}
        for kept in itertools.product(*(folder.choices() for folder in unsynced.values())):
            names = {key: unsynced[key].entries(changes) for key, changes in zip(unsynced, kept, strict=True)}
            for keep in (lost, halved, kept_whole):
                yield tree_of(self.top, names, keep)


def lost(file: File) -> bytes:
    return file.synced


def halved(file: File) -> bytes:
    return file.data if file.data == file.synced else file.data[: len(file.data) // 2]


def kept_whole(file: File) -> bytes:
    return file.data


def tree_of(
    folder: Folder, names: dict[int, dict[str, File | Folder]], keep: Callable[[File], bytes]
) -> Tree:
    return {
        name: tree_of(child, names, keep) if isinstance(child, Folder) else keep(child)
        for name, child in names.get(id(folder), folder.entries()).items()
    }


def build(tree: Tree, path: Path) -> None:
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            build(content, path / name)
        else:
            (path / name).write_bytes(content)


def crash_states(run: Path, before: list[files.Operation], during: list[files.Operation]) -> Iterator[Tree]:
    """Every different tree that a crash before, in or after `during` may leave, `before` being long on the disk."""
    disk = FileSystem(run)
    for operation in before:
        disk.apply(operation)
    for folder in disk.folders():
        folder.sync()
    seen: set[str] = set()
    for operation in (None, *during):
        if operation is not None:
            disk.apply(operation)
        for tree in (disk.after_kill(), *disk.after_power_loss()):
            if repr(tree) not in seen:
                seen.add(repr(tree))
                yield tree


def outcome(tree: Tree, folder: Path) -> int | str:
    """The step that the real loader continues from on the real disk, or what is bad."""
    build(tree, folder)
    try:
        loaded = checkpoint.latest(folder, lambda line: None)
        if loaded is None:
            return "starts over"
        return loaded.step if is_whole(loaded) else "loads damage"
    except UserError:
        return "refuses"
    finally:
        shutil.rmtree(folder)


def test_no_crash_state_loses_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before, during = recorded(run, 1, 2), recorded(run, 3)
    outcomes = [outcome(tree, tmp_path / "state") for tree in crash_states(run, before, during)]
    assert len(outcomes) > 100
    assert set(outcomes) == {2, 3}


def at_the_end(run: Path, before: list[files.Operation], during: list[files.Operation]) -> Iterator[Tree]:
    """The trees that a power loss may leave after the last operation."""
    disk = FileSystem(run)
    for operation in before + during:
        disk.apply(operation)
    yield from disk.after_power_loss()


def test_after_the_save_has_returned_every_power_loss_leaves_the_new_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before, during = recorded(run, 1, 2), recorded(run, 3)
    assert {outcome(tree, tmp_path / "state") for tree in at_the_end(run, before, during)} == {3}


def without_file_sync(operations: list[files.Operation]) -> list[files.Operation]:
    return [
        op for op in operations if op.kind != "fsync" or not op.path.suffix.startswith((".json", ".safe"))
    ]


def without_folder_sync(operations: list[files.Operation]) -> list[files.Operation]:
    return [op for op in operations if op.kind != "fsync" or op.path.name != "checkpoints"]


@pytest.mark.parametrize("weaken", [without_file_sync, without_folder_sync])
def test_the_model_sees_what_each_sync_is_for(
    tmp_path: Path, weaken: Callable[[list[files.Operation]], list[files.Operation]]
) -> None:
    """Two saves later everything from before them is retired: without a sync, a power loss takes the rest."""
    run = tmp_path / "run"
    run.mkdir()
    before, during = recorded(run, 1, 2), recorded(run, 3, 4)
    weaker = weaken(during)
    assert len(weaker) < len(during)
    outcomes = (outcome(tree, tmp_path / "state") for tree in at_the_end(run, before, weaker))
    assert "refuses" in outcomes  # stops at the first such state
