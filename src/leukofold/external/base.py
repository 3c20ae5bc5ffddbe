"""What every external data set answers: how to get it, which classes it has, and where its images lie.

No list names these images, so links in the folders are the user's own and may lead anywhere.
"""

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pandas as pd

from leukofold.cells import CellTable
from leukofold.containment import need_walkable
from leukofold.errors import UserError, name_some
from leukofold.images.reading import IMAGE_SUFFIXES

UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp", ".aria2")
PACKED = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".parquet")

DEEPEST = 4  # folders below the root: two of the packaging, the data set's own and the class


class ExternalSource(ABC):
    """One external data set: everything that is particular to it, and nothing else."""

    name: str
    title: str
    labels: ClassVar[Mapping[str, str | None]]  # its own class -> the competitions'; None: no class of theirs
    published_counts: ClassVar[Mapping[str, int]]  # its own class -> images, where that is known
    published_total: int | None = None  # images of all its classes, where the counts of some are not known
    marker: str | None = None  # its own top folder: where one of that name is found, all else is passed over
    licence: str
    by_hand: str  # how to get it

    @abstractmethod
    def class_of(self, path: Path) -> str:
        """Tells an image's class, in the data set's own words and any spelling, from where it lies."""

    def scan(self, root: Path) -> pd.DataFrame:
        """Finds all images of the data set, without decoding any.

        Args:
            root: Folder that holds the files as downloaded, with up to two more folders around them.

        Returns:
            One row per image, sorted by path: ``path`` (as ``root`` is given), ``relative`` (to ``root``,
            with forward slashes), ``bytes`` and ``class`` (a key of ``labels``).

        Raises:
            UserError: The folder is missing, empty or holds no images, or an image's class is unknown.
        """
        files = self._files(root)
        images = [(name, size) for name, size in files if name.lower().endswith(IMAGE_SUFFIXES)]
        need_walkable(str(root), (name for name, _ in images))
        if not images:
            raise UserError(_why_no_images(root, [name for name, _ in files]))
        known = {_spelt(label): label for label in self.labels}
        rows = []
        for relative, size in self._own(root, images):
            path = root / relative
            given = self.class_of(path)
            if _spelt(given) not in known:
                raise UserError(
                    f"{path}: '{given}' is no class of {self.title}; known ones are {', '.join(self.labels)}"
                )
            rows.append((path.as_posix(), relative, size, known[_spelt(given)]))
        return pd.DataFrame(rows, columns=["path", "relative", "bytes", "class"])

    def read(self, root: Path, class_names: Sequence[str], take: Sequence[str] | None, partial: bool) -> pd.DataFrame:
        """Reads the images of some classes as rows of a competition's table of cells.

        Nothing is known of patients, so every image is a group of its own.

        Args:
            root: Folder that holds the files as downloaded.
            class_names: The competition's classes in the order of its label indices.
            take: Classes to take, by the data set's own names; None: all that the competition has.
            partial: Whether a subset is read on purpose, so that counts need not be the published ones.

        Returns:
            One row per image with the columns of ``leukofold.cells.COLUMNS``, sorted by path. ``image_id`` and
            ``group`` are the data set's name and the path below ``root``; ``source`` and ``split`` its name.

        Raises:
            UserError: As ``scan``; ``take`` names a class that is unknown or has no counterpart in
                ``class_names``; or there are fewer or more images than published and ``partial`` is false.
        """
        taken = self._taken(class_names, take)
        found = self.scan(root)
        counts = Counter(found["class"])
        if not partial:
            self._need_published(root, {label: counts[label] for label in taken})
            if self.published_total is not None and len(found) != self.published_total:
                raise UserError(
                    f"{root}: {len(found)} images, {self.title} has {self.published_total}; finish the download or "
                    f"keep one copy, or take what is there with data.external.{self.name}.partial: true"
                )
        found = found[found["class"].isin(taken)]
        if found.empty:
            raise UserError(
                f"{root}: no image of {', '.join(taken)}; see input/README.md for the files of {self.title}"
            )
        index = {name: i for i, name in enumerate(class_names)}
        ids = [f"{self.name}/{relative}" for relative in found.relative]
        return CellTable.from_columns(
            class_names,
            image_id=ids,
            path=found.path,
            bytes=found.bytes,
            label=[index[taken[label]] for label in found["class"]],
            group=ids,
            source=[self.name] * len(found),
            is_external=[True] * len(found),
            split=[self.name] * len(found),
        ).frame

    def _files(self, root: Path) -> list[tuple[str, int]]:
        """Lists all files, by path below ``root``, with their bytes.

        Raises:
            UserError: There are none, and how to get them.
        """
        files = sorted(_files_below(str(root), "", DEEPEST)) if root.is_dir() else []
        if not files:
            state = "is empty" if root.is_dir() else "is a file" if root.exists() else "does not exist"
            raise UserError(
                f"{root}: the folder of {self.title} {state}; {self.by_hand} (licence: {self.licence}), "
                "as input/README.md shows"
            )
        return files

    def _own(self, root: Path, images: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Keeps what lies below the data set's own top folder, where there is one of that name."""
        if self.marker is None:
            return images
        inside: dict[str, list[tuple[str, int]]] = {}
        for relative, size in images:
            above, found, _ = f"/{relative}".partition(f"/{self.marker}/")
            if found:
                inside.setdefault(f"{above}/{self.marker}".lstrip("/"), []).append((relative, size))
        if len(inside) > 1:
            raise UserError(f"{root}: holds {self.title} twice, in {name_some(sorted(inside))}; keep one of them")
        return next(iter(inside.values()), images)

    def _taken(self, class_names: Sequence[str], take: Sequence[str] | None) -> dict[str, str]:
        """Returns the classes to take and the competition's class of each."""
        usable = {
            label: target for label, target in self.labels.items() if target is not None and target in class_names
        }
        if take is None:
            if not usable:
                raise UserError(
                    f"data.external.{self.name}: {self.title} has none of the classes {', '.join(class_names)}; "
                    "take this data set out"
                )
            return usable
        key = f"data.external.{self.name}.classes"
        hint = f"known ones are {', '.join(usable) or 'none'}"
        if not take:
            raise UserError(f"{key}: names no class; {hint}, or leave the key out to take them all")
        known = {_spelt(label): label for label in self.labels}
        taken = {}
        for given in take:
            label = known.get(_spelt(given))
            if label is None:
                raise UserError(f"{key}: {self.title} has no class '{given}'; {hint}")
            if label not in usable:
                raise UserError(f"{key}: '{given}' corresponds to none of the classes {', '.join(class_names)}; {hint}")
            taken[label] = usable[label]
        return taken

    def _need_published(self, root: Path, counts: Mapping[str, int]) -> None:
        """Refuses numbers of images that are not the published ones."""
        published = {label: self.published_counts[label] for label in counts if label in self.published_counts}
        key = f"data.external.{self.name}.partial: true"
        for differ, fault, cause in (
            (int.__lt__, "fewer", "finish the download, or take a subset on purpose with"),
            (int.__gt__, "more", "keep one copy if it was unpacked twice, or take them all with"),
        ):
            wrong = [
                f"{label} {counts[label]} of {number}"
                for label, number in published.items()
                if differ(counts[label], number)
            ]
            if wrong:
                raise UserError(f"{root}: {fault} images than published ({', '.join(wrong)}); {cause} {key}")


def _spelt(label: str) -> str:
    """Brings spellings of a class together: case, spaces, underscores and hyphens do not count."""
    return re.sub(r"[\s_-]+", "", label).casefold()


def _files_below(folder: str, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """Yields relative path and bytes of the files of a tree, without what file managers leave behind."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":  # .DS_Store, ._copies of a Mac's archive
                continue
            if entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif depth and entry.is_dir():
                need_walkable(entry.path, ())
                yield from _files_below(entry.path, f"{prefix}{entry.name}/", depth - 1)


def _why_no_images(root: Path, names: Sequence[str]) -> str:
    """Says what a folder without images holds instead, and what to do."""
    unfinished = [name for name in names if name.lower().endswith(UNFINISHED)]
    if unfinished:
        return f"{root}: no images, only {name_some(unfinished)}; finish the download and unpack it there"
    packed = [name for name in names if name.lower().endswith(PACKED)]
    if packed:
        return f"{root}: no images, only {name_some(packed)}; unpack it there, see input/README.md"
    return f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) up to {DEEPEST} folders deep; see input/README.md"
