"""Names of files that somebody else chose, in a list or an archive: they must not lead out of a folder."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from leukofold.errors import UserError

# Also what is invisible or turns the direction of writing, so that a name looks like another
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff]")
_DRIVE = re.compile(r"[A-Za-z]:")


def shown(text: str, most: int = 60) -> str:
    """Returns somebody else's text as a message can hold it: on one line, without control characters, cut if long."""
    plain = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:most])
    return plain + ("..." if len(text) > most else "")


def has_control(text: str) -> bool:
    """Tells whether a text holds a line break, a tab, a NUL or another control character."""
    return _CONTROL.search(text) is not None


def why_outside(name: str) -> str | None:
    """Tells what is wrong with a name that ought to be a path below a folder, with forward slashes.

    Args:
        name: As somebody else spells it. Whether it is a link is not looked at.

    Returns:
        The fault, such as "an absolute path"; None where there is none.
    """
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return "an absolute path"
    if "\\" in name:
        return "a backslash"
    if ".." in name.split("/"):
        return "a way up (..)"
    return "a control character" if has_control(name) else None


def leading_out(root: Path, files: Iterable[str]) -> list[str]:
    """Finds the files that links lead out of a folder: the file's own, or a folder's on the way.

    The folder may be a link itself, and links in it may lead anywhere within. Each folder is resolved once, and of
    the files only those that are links, so that tens of thousands take no time.

    Args:
        root: The folder.
        files: Paths below it, such as ``root/phase1/1.jpg``; they need not be there.

    Returns:
        Those that lie elsewhere in truth.
    """
    top = os.path.realpath(root)
    inside: dict[str, bool] = {}
    found = []
    for file in files:
        folder = os.path.dirname(file)
        if folder not in inside:
            inside[folder] = _is_below(os.path.realpath(folder), top)
        if not inside[folder] or (os.path.islink(file) and not _is_below(os.path.realpath(file), top)):
            found.append(file)
    return found


def need_contained(where: Path, root: Path, names: Sequence[str], files: Sequence[str]) -> None:
    """Refuses a list whose files do not all lie in a folder.

    Args:
        where: The list, for the message.
        root: The folder.
        names: n ids, for the message.
        files: n paths relative to the folder, as the list spells them.

    Raises:
        UserError: A path is absolute, leads up or has backslashes or control characters, or a link leads out.
    """
    for name, file in zip(names, files, strict=True):
        fault = why_outside(file)
        if fault is not None:
            raise UserError(
                f"{where}: {shown(name)}: '{shown(file)}' has {fault}; write the path below {root}, with slashes (/)"
            )
    whose = {f"{root}/{file}": name for name, file in zip(names, files, strict=True)}
    out = leading_out(root, whose)
    if out:
        raise UserError(
            f"{where}: {shown(whose[out[0]])}: a link leads {shown(out[0], 200)} out of {root} ({len(out)} in all); "
            f"put the files there, or let {root} itself be the link"
        )


def need_walkable(folder: str, names: Iterable[str]) -> None:
    """Refuses what a search for files, through links too, cannot take as it is.

    Args:
        folder: A folder on its way.
        names: What it takes of the folder.

    Raises:
        UserError: The folder is a link to one that it lies in, or a name has a line break or another control character,
            or is not UTF-8, so that no list could hold it.
    """
    if os.path.islink(folder) and _is_below(os.path.realpath(os.path.dirname(folder)), os.path.realpath(folder)):
        raise UserError(f"{shown(folder, 200)}: a link to a folder that it lies in; remove it")
    for name in names:
        if has_control(name) or not _is_utf8(name):
            raise UserError(f"{shown(folder, 200)}: the name '{shown(name)}' is not plain text; give it another")


def _is_utf8(name: str) -> bool:
    """Tells whether a file's name, as Python has it, was written in UTF-8."""
    return name.isascii() or not any("\ud800" <= each <= "\udfff" for each in name)


def _is_below(path: str, top: str) -> bool:
    """Tells whether a resolved path is a resolved folder, or lies in it."""
    return path == top or path.startswith(top.rstrip(os.sep) + os.sep)
