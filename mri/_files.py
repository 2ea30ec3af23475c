"""Write files completely or not at all, and by one process at a time."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_BINARY = getattr(os, "O_BINARY", 0)  # Of Windows.


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read block by block."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes, read once.

    OSError if it is absent, a folder, a pipe, a device or longer; the text does not name `path`.
    """
    # A pipe that nobody writes to would be waited for; Windows has neither.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1) if about.st_size <= limit else b""
        if about.st_size > limit or len(content) > limit:
            raise OSError(f"it has {about.st_size} bytes, at most {limit} are read")
        return content


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end, the file is on disk under the name `path`.

    If anything fails, the old file at `path` stays as it was. An OSError names the file. What a
    killed process left half-written is removed.
    """
    # Keras needs its own ending, so the mark of a temporary file comes before it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        # Not the lock of `alone`: logits are kept while another process trains under their name.
        with _locked(path, f"{path.name}.write", re.escape(path.suffix)):
            yield temporary
            with temporary.open("r+b") as file:  # Windows flushes only files open for writing.
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        if error.errno is None:  # Errors of Arrow and HDF5 have only a text.
            error.add_note(f"{path}: not written")
        elif error.filename is None:  # For example if the disk is full.
            error.filename = os.fspath(path)
        raise
    finally:
        with suppress(OSError):  # The error of the folder, if any, has been raised.
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path`; remove what killed processes left half-written.

    A second process waits until the first has finished, with a RuntimeWarning. If the first dies,
    the operating system frees the lock. OSError if the folder cannot be created or written.
    """
    with _locked(path, path.stem, r"\.\w+"):
        yield


@contextmanager
def _locked(path: Path, lock_name: str, suffix: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    name = path.with_name(f".{lock_name}.lock")
    lock = FileLock(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            message = f"{path}: another process works on it; waiting until it is done"
            warnings.warn(message, RuntimeWarning, stacklevel=6)
            lock.acquire()
    except OSError as error:
        error.add_note(f"{path.parent}: cannot be written, nothing was done; use another folder")
        raise
    try:
        left = re.compile(rf"\.+{re.escape(path.stem)}(\.state)?\.\d+\.tmp{suffix}")
        for entry in path.parent.iterdir():
            if left.fullmatch(entry.name) and not _in_use(entry, but=lock_name):
                entry.unlink(missing_ok=True)
        yield
    finally:
        _give_back(lock)


def _give_back(lock: BaseFileLock) -> None:
    # Before the release: a waiting process notices that the file is gone and makes a new one.
    with suppress(OSError):  # Windows does not remove open files.
        Path(lock.lock_file).unlink()
    lock.release()


def _in_use(temporary: Path, *, but: str) -> bool:
    """Whether another process writes this temporary file; `but` is the lock that we hold."""
    from filelock import FileLock, Timeout

    name = f"{re.sub(r'[.][0-9]+[.]tmp', '', temporary.name[1:])}.write"
    if name == but:
        return False
    lock = FileLock(temporary.with_name(f".{name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _give_back(lock)
    return False
