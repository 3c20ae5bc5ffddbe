"""Writing whole files: beside the target first, then renamed, so that no reader ever sees half a file."""

import errno
import hashlib
import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

from filelock import FileLock

from leukofold.errors import UserError

OUTLIVED = 7.0
"""Seconds: where loaders inherit the locks of a process that was killed, they hold them till they notice, after 5."""

DAMAGED_ARRAYS = (
    *(KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, MemoryError, TokenError),
)
"""What reading a damaged or foreign ``.npz`` file may raise."""


def beside(path: Path, suffix: str) -> Path:
    """Returns a free hidden name in the folder of ``path``, for what is to take its place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its place when the block ends well.

    What is written is on the disk before it takes the place, so that not even a power cut leaves half a file there.

    Args:
        path: The file to write. Missing parent folders are created.

    Yields:
        The temporary path, on the same file system. It is removed when the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, "tmp")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not every file system does this for a folder
            _to_disk(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # writes do not say where they failed
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):  # not every file system can
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed left in a folder that nobody else trains in; see ``replacing``."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def put_away(folder: Path) -> None:
    """Removes a folder, at one blow for all who look: it is renamed first."""
    for left in folder.parent.glob(f".{folder.name}.*.old"):  # of a process that was killed between the two
        shutil.rmtree(left)
    if folder.exists():
        old = beside(folder, "old")
        folder.rename(old)
        shutil.rmtree(old)


@contextmanager
def alone(lock: Path, what: str | None = None) -> Iterator[None]:
    """Lets one process at a time through the block; the others wait.

    Args:
        lock: A file that stands for it; its folder is created.
        what: What the process is doing that is waited for, for people; None: nothing is said.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    own = FileLock(lock)
    try:
        own.acquire(blocking=False)
    except TimeoutError:
        if what is not None:
            print(f"waiting for another process that {what}", flush=True)
        own.acquire()
    try:
        yield
    finally:
        own.release()


@contextmanager
def held(lock: Path, busy: str) -> Iterator[None]:
    """Lets one process into the block and refuses the others, after a while.

    Args:
        lock: A file that stands for it; its folder is created.
        busy: What those are told.

    Raises:
        UserError: Another process is in the block.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    own = FileLock(lock)
    try:
        own.acquire(timeout=OUTLIVED)
    except TimeoutError:
        raise UserError(busy) from None
    try:
        yield
    finally:
        own.release()


def beside_lock(path: Path) -> Path:
    """Returns the file that stands for a file or folder that one process at a time makes; see ``alone``."""
    return path.with_name(f".{path.name}.lock")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` to ``path`` in one step, as indented JSON with a closing newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def working_path(path: Path) -> str:
    """Shows a path below the working folder as relative to it."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else str(path)


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 digest, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
