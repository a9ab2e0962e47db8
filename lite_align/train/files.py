"""The one place that writes into a run folder: each step is explicit, synced and observable by tests.

Folders get mode 0700 and files 0600 whatever the umask is. An operation is told to the current hook before it
happens, so a test can end the process (`os._exit(137)`) or fail the disk at any one of them: with
`observed(...)` in its own process, or with `LA_FAULT=write:3`, `rename:1:ENOSPC` or `any:17:EIO` in another.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from lite_align.errors import DiskFull, LiteAlignError, UserError
from lite_align.recipe.secrets import redact

KINDS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir")
FAULT_VARIABLE = "LA_FAULT"
KILLED = 137
FOLDER_MODE, FILE_MODE = 0o700, 0o600
WRITE_BYTES = 16 * 2**20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Operation(NamedTuple):
    """One step on the disk, told before it happens: `target` is of a rename, `data` of a write."""

    kind: str
    path: Path
    target: Path | None = None
    data: bytes = b""


Hook = Callable[[Operation], None]


class Fault:
    """A hook that ends the process, or fails with `error`, at the `nth` operation of `kind` (or of "any")."""

    def __init__(self, kind: str, nth: int, error: int | None = None) -> None:
        if kind not in (*KINDS, "any") or nth < 1:
            raise ValueError(
                f"{kind}:{nth} is no fault: expected one of {', '.join(KINDS)}, any, and a count from 1"
            )
        self.kind, self.nth, self.error = kind, nth, error
        self.seen = 0

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read `kind:nth` (the process ends) or `kind:nth:ERRNO` (the operation fails)."""
        kind, nth, *name = text.split(":")
        numbers = {code: number for number, code in errno.errorcode.items()}
        return cls(kind, int(nth), numbers[name[0]] if name else None)

    @property
    def fired(self) -> bool:
        """Whether the fault has happened: a test that never reached it proves nothing."""
        return self.seen >= self.nth

    def __call__(self, operation: Operation) -> None:
        """Count the operation, and strike if it is the one."""
        if self.kind not in (operation.kind, "any"):
            return
        self.seen += 1
        if self.seen == self.nth:
            if self.error is None:
                os._exit(KILLED)
            raise OSError(self.error, os.strerror(self.error), str(operation.path))


_hook: ContextVar[Hook | None] = ContextVar(
    "hook", default=Fault.parse(os.environ[FAULT_VARIABLE]) if FAULT_VARIABLE in os.environ else None
)


@contextmanager
def observed(hook: Hook) -> Iterator[None]:
    """Tell every operation inside the block to `hook`; for tests."""
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)


def _tell(kind: str, path: Path, target: Path | None = None, data: bytes = b"") -> None:
    hook = _hook.get()
    if hook is not None:
        hook(Operation(kind, path, target, data))


# --- words ---


def dump_json(value: object, *, indent: int | None = None) -> bytes:
    """Encode as JSON: sorted keys, no NaN or infinity (ValueError), secrets redacted, a newline at the end.

    A lone surrogate (a file name that is not UTF-8) is kept as the JSON escape of it.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent)
    return encode(text + "\n")


def encode(text: str) -> bytes:
    """Text as it is stored: secrets redacted, UTF-8."""
    return redact(text).encode("utf-8", "backslashreplace")


def human_bytes(count: float) -> str:
    """A number of bytes for people: `1.4 GB`, `12 MB`, `830 bytes`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


@contextmanager
def explained(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn operating-system errors inside the block into errors for people that name `path`.

    Raises:
        DiskFull: no space, quota or file-size limit reached; says how many bytes are `needed`.
        UserError: not permitted, or the file system is read-only.
        LiteAlignError: any other failure of the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(path, needed) from error
        if error.errno in _DENIED:
            raise UserError(
                f"{path} cannot be used: {error.strerror}.",
                remedy="Make it writable for you, or choose another folder with --out.",
            ) from error
        raise LiteAlignError(
            f"{path} cannot be read or written: {error}.",
            remedy="Check that disk; what was saved before is intact, continue with --resume.",
        ) from error


def disk_full(path: Path, needed: int) -> DiskFull:
    """The error for a disk without room for `path`, with the bytes `needed` (0: not known) and free."""
    need = f"{human_bytes(needed)} ({needed:,} bytes) are needed, " if needed else ""
    return DiskFull(
        f"No space left to write {path}: {need}{human_bytes(free_bytes(path))} are free.",
        remedy="Make room on that disk, then continue with --resume; what was saved before is intact.",
    )


# --- reading ---


def free_bytes(path: Path) -> int:
    """Bytes that may be written on the file system of `path`, or of its nearest folder that exists."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def require_space(path: Path, needed: int) -> None:
    """Raise DiskFull unless `needed` bytes are free where `path` is."""
    if free_bytes(path) < needed:
        raise disk_full(path, needed)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing ---


def make_folder(path: Path) -> None:
    """Create a folder with mode 0700; its parent must exist and it must not (FileExistsError)."""
    _tell("mkdir", path)
    path.mkdir(mode=FOLDER_MODE)
    path.chmod(FOLDER_MODE)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _tell("fsync", path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, path: Path, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        piece = view[:WRITE_BYTES]
        _tell("write", path, data=bytes(piece) if _hook.get() else b"")
        view = view[os.write(descriptor, piece) :]


def _open(path: Path, flags: int) -> int:
    _tell("open", path)
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)
    return descriptor


def open_locked(path: Path) -> int:
    """Open or create a lock file and return its descriptor; the caller locks and closes it."""
    return _open(path, os.O_RDWR)


def write_new(path: Path, data: bytes) -> str:
    """Write a file that must not exist yet, sync it, and return the SHA-256 of `data`."""
    return write_pieces(path, [data])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """As `write_new`, for data that come in pieces: only one of them is in memory."""
    digest = hashlib.sha256()
    descriptor = _open(path, os.O_WRONLY | os.O_EXCL)
    try:
        for piece in pieces:
            _write_all(descriptor, path, piece)
            digest.update(piece)
        _tell("fsync", path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def replace(path: Path, data: bytes) -> None:
    """Write `path` so that a reader, a crash and a power loss see the old or the new content, whole."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_new(temporary, data)
        _tell("rename", temporary, target=path)
        temporary.replace(path)
    finally:
        if temporary.exists():
            unlink(temporary)
    sync_folder(path.parent)


def append(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Append whole: a write that fails in the middle is taken back before its error is raised.

    With `sync` the data survive a power loss once this returns.
    """
    descriptor = _open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, path, data)
            if sync:
                _tell("fsync", path)
                os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if sync and not size:
        sync_folder(path.parent)


def rename_folder(source: Path, target: Path) -> None:
    """Rename within one folder and sync it; FileExistsError if `target` exists, even as an empty folder."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    _tell("rename", source, target=target)
    source.rename(target)
    sync_folder(target.parent)


def unlink(path: Path) -> None:
    """Remove a file or a link."""
    _tell("unlink", path)
    path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it; links are removed, never followed."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            remove_folder(Path(entry.path))
        else:
            unlink(Path(entry.path))
    _tell("rmdir", path)
    path.rmdir()
