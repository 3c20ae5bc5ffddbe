"""Finding the registered images of cells: a folder for each modality, or a CSV with a column for each.

::

    <root>/<modality>/.../<cell>.png     one cell's images lie at the same place below their modalities' folders
    <list>.csv                           a column for each modality, of paths relative to the list's own folder
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from leukofold.domains import images_below, visible
from leukofold.errors import UserError, name_some
from leukofold.images.reading import IMAGE_SUFFIXES


def find_modalities(root: Path) -> list[str]:
    """Returns the folders of a folder that hold images, however deep, in alphabetical order."""
    folders = visible(entry.name for entry in root.iterdir() if entry.is_dir())
    return [name for name in folders if next(images_below(root / name), None) is not None]


def registered_files(root: Path, modalities: Sequence[str]) -> pd.DataFrame:
    """Finds the images of each cell in the folders of modalities.

    Args:
        root: Folder that holds a folder for each modality.
        modalities: Their names.

    Returns:
        One row per cell that has any image, in the order of the index: its place below the folders, without the file's
        suffix. A column for each modality: the file as a path, "" where the cell lacks it.

    Raises:
        UserError: There is no image, or two files of one modality claim the same cell.
    """
    columns: dict[str, dict[str, str]] = {}
    for name in modalities:
        files = columns.setdefault(name, {})
        for path in images_below(root / name):
            cell = path.relative_to(root / name).with_suffix("").as_posix()
            if cell in files:
                raise UserError(f"{path}: the same cell as {files[cell]}, which has another suffix; keep one of them")
            files[cell] = path.as_posix()
    table = pd.DataFrame({name: pd.Series(files, dtype=str) for name, files in columns.items()}).fillna("").sort_index()
    if table.empty:
        raise UserError(
            f"{root}: no images ({' '.join(IMAGE_SUFFIXES)}) in folders of the modalities "
            f"{', '.join(modalities) if modalities else '(none found)'}"
        )
    return table


def listed_files(path: Path, table: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    """Turns the paths of a list into files, wherever they lie: see ``containment`` for lists that are not trusted.

    Args:
        path: The list.
        table: n rows, a column for each modality; an empty path: the cell lacks it.
        modalities: Their names.

    Returns:
        n rows, a column for each modality: the file as a path, "" where the cell lacks it or it is not there.

    Raises:
        UserError: A file stands twice.
    """
    given = {name: [(path.parent / file).as_posix() if file else "" for file in table[name]] for name in modalities}
    times = Counter(file for files in given.values() for file in files if file)
    twice = [file for file, count in times.items() if count > 1] or _same_but_for_case(list(times))
    if twice:
        raise UserError(f"{path}: {len(twice)} images are listed more than once: {name_some(twice)}; keep one of each")
    there = {name: [file if file and Path(file).is_file() else "" for file in files] for name, files in given.items()}
    return pd.DataFrame(there, dtype=str)


def _same_but_for_case(files: Sequence[str]) -> list[str]:
    """Finds files that stand in a list in another case, too, where the file system takes both names for one."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(file.casefold(), file), file) for file in files]
    return [b for a, b in pairs if a != b and Path(a).is_file() and Path(b).is_file() and os.path.samefile(a, b)]


def lacking_modalities(cells: Sequence[str], files: pd.DataFrame) -> list[str]:
    """Names what is lacking, one line for each cell without all its images.

    Args:
        cells: n names.
        files: n rows as of ``registered_files``.
    """
    absent = (files == "").to_numpy()
    names = files.columns.to_numpy()
    return [
        f"{cell}: no image of {', '.join(names[lacks])}"
        for cell, lacks in zip(cells, absent, strict=True)
        if lacks.any()
    ]
