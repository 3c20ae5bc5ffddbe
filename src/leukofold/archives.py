"""Unpacking a zip archive that somebody else made: below one folder, up to a size, each file whole or not at all."""

import errno
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from leukofold.containment import leading_out, shown, why_outside
from leukofold.errors import UserError
from leukofold.files import beside

MOST_BYTES = 64 * 2**30  # unpacked; C-NMC 2019, the largest of the competitions, has 10 GB
MOST_FILES = 300_000  # WBCBench has 55,012

DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, RuntimeError, OverflowError,
    IndexError, KeyError,
)  # fmt: skip
"""What reading a damaged zip archive may raise, or one that zipfile cannot read; ``OSError`` may be the disk's."""

_LOCAL_HEADER = 30  # bytes before a member's name and content
_ENCRYPTED = 0x1
_AT_A_TIME = 1 << 20  # bytes


def unpack(archive: Path, folder: Path, most: int = MOST_BYTES) -> None:
    """Unpacks an archive.

    Everything is looked at before anything is written: names, sizes and, at the price of reading the archive twice, the
    checksums. A file is written beside its place and then renamed; so whatever ends it, the folder holds whole files
    only, and the same call completes it.

    Args:
        archive: A zip file.
        folder: Gets its files, in their folders; those that are there already are replaced. Folders without files are
            not made.
        most: Bytes that it may unpack to.

    Raises:
        UserError: It is damaged or not a zip archive; a member is encrypted, neither file nor folder, or would lie
            outside of ``folder``; two have one place; or it is too large for ``most`` or the disk.
    """
    try:
        with _opened(archive) as opened:
            members = _members(archive, opened, folder, most)
            with tqdm(total=2 * sum(info.file_size for info in members.values()), desc=f"checking {archive.name}",
                      unit="B", unit_scale=True, leave=False, delay=2) as bar:  # fmt: skip
                for info in members.values():
                    for block in _content(opened, info):
                        bar.update(len(block))
                bar.set_description(f"unpacking {archive.name}", refresh=False)
                for path, info in members.items():
                    _write(path, _content(opened, info), bar.update)
    except DAMAGED:
        raise UserError(f"{archive}: not a sound zip archive; delete it and download again") from None
    if hasattr(os, "sync"):
        os.sync()  # once, where a wait for each of many small files would take longer than all else


def _opened(archive: Path) -> zipfile.ZipFile:
    """Opens an archive."""
    with _reading():
        return zipfile.ZipFile(archive)


@contextmanager
def _reading() -> Iterator[None]:
    """Tells damage of an archive from faults of the disk: both may be an ``OSError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of bz2, and of a place before the file's begin
            raise zipfile.BadZipFile from None
        raise


def _members(archive: Path, opened: zipfile.ZipFile, folder: Path, most: int) -> dict[Path, zipfile.ZipInfo]:
    """Returns the files of an archive by where they are to lie.

    Raises:
        UserError: One is not to be unpacked, or all are too large.
    """
    infos = opened.infolist()
    for info in infos:
        fault = _fault(info)
        if fault is not None:
            raise UserError(
                f"{archive}: '{shown(info.orig_filename)}' {fault}; nothing was unpacked, see where the archive is from"
            )
    files = [info for info in infos if not info.is_dir()]
    if len(files) > MOST_FILES:
        raise UserError(
            f"{archive}: holds {len(files):,} files, more than {MOST_FILES:,}; unpack what you need by hand"
        )
    _need_apart(archive, infos, opened.start_dir)
    found: dict[Path, zipfile.ZipInfo] = {}
    for info in files:
        path = folder / PurePosixPath(info.filename)
        if path in found:
            raise UserError(f"{archive}: holds '{shown(info.filename)}' twice; nothing was unpacked, download it again")
        found[path] = info
    above = {parent for path in found for parent in path.parents}
    both = [path for path in found if path in above]
    out = leading_out(folder, {f"{path.parent}/" for path in found})
    if both or out:
        what = f"'{shown(both[0].name)}' is a file and a folder" if both else f"a link leads {shown(out[0], 200)} out"
        raise UserError(f"{archive}: {what}; nothing was unpacked into {folder}")
    _need_room(archive, found, folder, most)
    return found


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Tells why a member is not to be unpacked."""
    outside = why_outside(info.orig_filename)  # as the archive spells it: ``filename`` ends at a NUL
    if outside is not None:
        return f"has {outside} in its name"
    if not PurePosixPath(info.filename).parts:
        return "has no name"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on Windows
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if kind == stat.S_IFLNK else "is neither file nor folder"
    return None


def _need_room(archive: Path, files: Mapping[Path, zipfile.ZipInfo], folder: Path, most: int) -> None:
    """Refuses what is too large for the limit or the disk, by what the members say of themselves."""
    size = sum(info.file_size for info in files.values())
    if size > most:
        raise UserError(
            f"{archive}: unpacks to {size / 1e9:.1f} GB, more than {most / 1e9:.1f}; if it is what it should be, "
            "unpack it by hand"
        )
    free = shutil.disk_usage(folder).free
    if size - sum(path.stat().st_size for path in files if path.is_file()) > free:
        raise UserError(
            f"{archive}: unpacks to {size / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB left; free some space, then "
            "run again"
        )


def _need_apart(archive: Path, infos: list[zipfile.ZipInfo], end: int) -> None:
    """Refuses members that share bytes of the archive, by which a small one unpacks to much (Fifield 2019).

    Fifield, "A better zip bomb", WOOT 2019.
    """
    ordered = sorted(infos, key=lambda info: info.header_offset)
    starts = [*(info.header_offset for info in ordered[1:]), end]
    for info, following in zip(ordered, starts, strict=True):
        if info.header_offset + _LOCAL_HEADER + info.compress_size > following:
            raise UserError(f"{archive}: members overlap, such as '{shown(info.filename)}'; nothing was unpacked")


def _content(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yields a member's content in blocks, and ends well where it is as long as it says and its checksum is right."""
    length = 0
    with _reading(), opened.open(info) as content:
        while block := content.read(_AT_A_TIME):  # never more than the member says, whatever is packed in it
            length += len(block)
            yield block
    if length != info.file_size:
        raise zipfile.BadZipFile


def _write(path: Path, content: Iterator[bytes], wrote: Callable[[int], object]) -> None:
    """Writes one file beside its place, then renames it; tells how many bytes, block by block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, "tmp")
    try:
        with temporary.open("wb") as file:
            for block in content:
                file.write(block)
                wrote(len(block))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
