"""Reading the lists that come from outside: CSV files as spreadsheets, tools and people leave them.

What is the same to people is read alike: with a byte-order mark or without, with commas, semicolons or tabs, with any
order and case of the columns, with empty columns and lines at the end. What could be read in two ways is refused, by
line. Everything is text: an id ``01`` stays ``01``.
"""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd

from leukofold.containment import has_control, shown
from leukofold.errors import UserError, name_some

SEPARATORS = (",", ";", "\t")

_OTHER_ENCODINGS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\0")

Row = tuple[int, list[str]]  # the line that it begins in, from 1, and its fields


def read_list(path: Path, needed: Sequence[str], known: Sequence[str] = (), others: bool = False) -> pd.DataFrame:
    """Reads a CSV file as text.

    A column is found by its name or, failing that, by its name in another case. The separator is the one (comma,
    semicolon, tab) that makes the needed columns appear in the header. Spaces around names and values do not count.
    Lines without any value are passed over; fields that lack at a line's end are empty.

    Args:
        path: The file.
        needed: Columns that must be there.
        known: Columns that may be there.
        others: Whether to return all other columns that have a name, too.

    Returns:
        A row per line with the columns found, in the file's order, under the names asked for.

    Raises:
        UserError: The file is missing, empty, not UTF-8 or no CSV; it lacks a column, or has one twice; or, by line,
            there are more fields than columns, or a value has a line break or another control character.
    """
    text = _decoded(path)
    rows, header = _split(path, text, needed)
    taken = _columns(path, header, needed, known, others)
    values: dict[str, list[str]] = {name: [] for name in taken}
    for line, fields in rows:
        if any(field.strip() for field in fields[len(header) :]):
            raise UserError(
                f"{path}: line {line} has {len(fields)} fields, the header {len(header)}; put values that hold a "
                "separator in quotes"
            )
        for name, place in taken.items():
            value = fields[place] if place < len(fields) else ""
            if has_control(value):
                raise UserError(
                    f"{path}: line {line}, column '{name}': a line break or another control character in "
                    f"'{shown(value)}'; take it out"
                )
            values[name].append(value.strip())
    return pd.DataFrame(values, dtype=str)


def need_one_spelling(path: Path, what: str, values: Collection[str]) -> None:
    """Refuses names that differ in case alone: some tools and file systems take them for one, others for two.

    Args:
        path: The list.
        what: What they name, such as "patients".
        values: The names; equal ones may stand there more than once.

    Raises:
        UserError: Two of them do.
    """
    spellings: dict[str, str] = {}
    for value in values:
        first = spellings.setdefault(value.casefold(), value)
        if first != value:
            raise UserError(f"{path}: {what} '{first}' and '{value}' differ in case alone; spell them as one, or apart")


def _decoded(path: Path) -> str:
    """Reads a file of text."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a CSV file") from None
    if content.startswith(_OTHER_ENCODINGS) or b"\0" in content:
        raise UserError(f"{path}: not a readable CSV: UTF-16, or no text at all; save it as 'CSV UTF-8'")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: not a readable CSV: line {line} is not UTF-8; save it as 'CSV UTF-8'") from None
    if not text.strip():
        raise UserError(f"{path}: not a readable CSV: it is empty; put the list there once more")
    return text


def _split(path: Path, text: str, needed: Sequence[str]) -> tuple[Iterator[Row], list[str]]:
    """Chooses the separator; returns the rows below the header, and the header."""
    best: tuple[int, Iterator[Row], list[str]] | None = None
    faults = []
    for separator in SEPARATORS:
        rows = _rows(path, text, separator)
        try:
            header = [name.strip() for name in next(rows, (1, []))[1]]
        except UserError as error:  # a quote at the end of a column is a fault where the separator is another
            faults.append(error)
            continue
        folded = {name.casefold() for name in header}
        found = sum(name.casefold() in folded for name in needed)
        if best is None or found > best[0]:
            best = found, rows, header
    if best is None:
        raise faults[0]
    return best[1:]


def _rows(path: Path, text: str, separator: str) -> Iterator[Row]:
    """Yields the rows that hold any value.

    Raises:
        UserError: A quote is not closed, or stands within a value.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}: not a readable CSV: line {line}: {error}; look for a quote that is not closed, and double "
                "those within a value"
            ) from None
        if any(field.strip() for field in fields):
            yield line, fields


def _columns(
    path: Path, header: Sequence[str], needed: Sequence[str], known: Sequence[str], others: bool
) -> dict[str, int]:
    """Finds the columns: name -> place, in the header's order.

    Raises:
        UserError: One lacks, or stands twice.
    """
    folded = [name.casefold() for name in header]
    lacking = [name for name in needed if name.casefold() not in folded]
    if lacking:
        there = name_some([shown(name) for name in header if name], 12)
        raise UserError(
            f"{path}: no column '{lacking[0]}', only {there or 'empty ones'}; the first line has to name them"
        )
    own_names = {name.casefold(): name for name in (*known, *needed)}
    places = [place for place, name in enumerate(folded) if name in own_names or (others and name)]
    twice = [name for name, times in Counter(folded[place] for place in places).items() if times > 1]
    if twice:
        same = " and ".join(f"'{shown(name)}'" for name in header if name.casefold() == twice[0])
        raise UserError(f"{path}: columns {same} have one name; keep one of them, or rename it")
    found = {own_names.get(folded[place], header[place]): place for place in places}
    odd = [name for name in found if has_control(name)]
    if odd:
        raise UserError(f"{path}: a line break or another control character in column '{shown(odd[0])}'; take it out")
    return found
