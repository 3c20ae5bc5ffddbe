"""Images in a folder per class: target domains named in the configuration, and what readers share with them.

No list names these images, so links in the folders are the user's own and may lead anywhere.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from leukofold.cells import CellTable
from leukofold.containment import need_walkable
from leukofold.errors import UserError
from leukofold.images.reading import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ClassImage:
    """An image and the class of the folder that it lies in.

    Attributes:
        path: The file.
        label: Index into the class names.
    """

    path: Path
    label: int


def read_domain(name: str, root: Path, class_names: Sequence[str], names: Mapping[str, str]) -> pd.DataFrame:
    """Reads a target domain as rows of a table of cells.

    Nothing is known of patients, so every image is a group of its own.

    Args:
        name: The domain's name, its key in ``data.domains``.
        root: Folder that holds a folder per class; a class may be without one.
        class_names: All K classes in the order of the label indices.
        names: Name of a folder -> its class, where they differ; "": the folder is left out.

    Returns:
        One row per image with the columns of ``leukofold.cells.COLUMNS``, sorted by class and path. ``image_id`` and
        ``group`` are the domain's name and the path below ``root``; ``source`` and ``split`` its name.

    Raises:
        UserError: There is no folder or no image, a folder is no class, or ``names`` names an unknown class.
    """
    key = f"data.domains.{name}"
    if not root.is_dir():
        raise UserError(f"{key}.root: {root}: no such folder; put the images there, a folder per class")
    wrong = [given for given in names.values() if given and given not in class_names]
    if wrong:
        raise UserError(f"{key}.names: '{wrong[0]}' is no class; known ones are {', '.join(class_names)}")
    images = class_images(root, class_names, names, f"name its class in {key}.names, or '' to leave it out")
    if not images:
        raise UserError(f"{root}: no image ({', '.join(IMAGE_SUFFIXES)}) in a folder of a class ({key})")
    ids = [f"{name}/{image.path.relative_to(root).as_posix()}" for image in images]
    return CellTable.from_columns(
        class_names,
        image_id=ids,
        path=[image.path.as_posix() for image in images],
        bytes=[image.path.stat().st_size for image in images],
        label=[image.label for image in images],
        group=ids,
        source=[name] * len(images),
        is_external=[False] * len(images),
        split=[name] * len(images),
    ).frame


def class_images(root: Path, class_names: Sequence[str], names: Mapping[str, str], advice: str) -> list[ClassImage]:
    """Finds the images in the folders of classes, however deep in them.

    Folders are told by their names, whatever the case. Hidden files and folders, other files, and images outside a
    folder of a class are passed over.

    Args:
        root: Folder that holds the folders of the classes.
        class_names: All K classes in the order of the label indices.
        names: Name of a folder -> its class, where they differ; "": the folder is left out.
        advice: What to do about a folder that is no class, for the message.

    Returns:
        The images, sorted by class and path.

    Raises:
        UserError: A folder is no class.
    """
    labels = {name.casefold(): label for label, name in enumerate(class_names)}
    renamed = {folder.casefold(): name for folder, name in names.items()}
    images = []
    for folder in visible(entry.name for entry in root.iterdir() if entry.is_dir()):
        name = renamed.get(folder.casefold(), folder)
        if not name:
            continue
        if name.casefold() not in labels:
            raise UserError(f"{root / folder}: no class; known ones are {', '.join(class_names)}; {advice}")
        images += [ClassImage(path, labels[name.casefold()]) for path in images_below(root / folder)]
    return sorted(images, key=lambda image: (image.label, image.path))


def images_below(root: Path) -> Iterator[Path]:
    """Yields the images of a folder and of the folders in it, but for hidden ones (``._NAME`` is a Mac's).

    Raises:
        UserError: A link leads back to a folder that it lies in, or a name cannot stand in a list.
    """
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = visible(folders)
        images = [name for name in visible(files) if name.lower().endswith(IMAGE_SUFFIXES)]
        need_walkable(folder, [*folders, *images])
        yield from (Path(folder) / name for name in images)


def visible(names: Iterable[str]) -> list[str]:
    """Sorts the names of files or folders, without hidden ones and what a Mac's archiver leaves behind."""
    return sorted(name for name in names if not name.startswith(".") and name != "__MACOSX")
