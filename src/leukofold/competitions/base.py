"""What every competition answers: its files, its classes, its metric and its submission."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from leukofold.cells import CellTable
from leukofold.errors import UserError


@dataclass(frozen=True)
class Scan:
    """What was found in an input folder.

    Attributes:
        table: The images that are there.
        missing: Listed images whose files are not there, as paths; or cells that lack one of their images, and which.
    """

    table: CellTable
    missing: list[str] = field(default_factory=list)


class Competition(ABC):
    """One competition: everything that is particular to it, and nothing else.

    A data set without a leaderboard is one too; it leaves the three methods of submissions as they are.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    metric: str  # headline metric, a key of leukofold.metrics.METRICS
    has_patients: bool = True  # False: groups are single images, so that any split is image-level
    modalities: ClassVar[Sequence[str]] = ()  # images of a cell, as published; none where there is one
    targets: ClassVar[Sequence[str]] = ()  # labelled splits to be scored, never trained on: always held out
    lineages: ClassVar[Mapping[str, Sequence[str]]] = {}  # lineage -> its classes, boxed together in pictures
    submission_suffix: str = ""  # "": no leaderboard
    kaggle_download: tuple[str, ...] = ()  # arguments of the Kaggle client that fetch the files; none: it cannot
    by_hand: str  # how to get the files without it
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]]  # split -> class (or "unlabelled") -> images

    @abstractmethod
    def scan(self, root: Path) -> Scan:
        """Reads the competition's lists and finds the images, without decoding any.

        Args:
            root: Folder that holds the files as downloaded.

        Returns:
            The table and the files that the lists name in vain.

        Raises:
            UserError: A list or a folder is missing, a column is missing, or a label is unknown.
        """

    def read(self, root: Path) -> CellTable:
        """Reads the table of cells; like ``scan``, and refuses missing files.

        Args:
            root: Folder that holds the files as downloaded.

        Returns:
            The table.

        Raises:
            UserError: As ``scan``, or a listed image has no file.
        """
        found = self.scan(root)
        if found.missing:
            what = "cells lack an image" if self.modalities else "listed images have no file"
            raise UserError(
                f"{len(found.missing)} {what}, {found.missing[0]} first; all are named by "
                f"'python scripts/prepare_input.py --competition {self.name} --input {root}'"
            )
        return found.table

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Brings a decoded image to the competition's standard form.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            The same; sub-classes crop.
        """
        return image

    def write_submission(self, path: Path, image_ids: Sequence[str], labels: np.ndarray) -> None:
        """Writes predicted classes in the competition's format.

        Args:
            path: The file to write, with ``submission_suffix``.
            image_ids: Test images, in the order of the competition's list.
            labels: n class indices.

        Raises:
            UserError: There is no leaderboard.
        """
        raise self._no_leaderboard()

    def check_submission(self, path: Path, root: Path) -> list[str]:
        """Checks a submission against the competition's own test list.

        Reads both with other code than what wrote them.

        Args:
            path: The submission.
            root: Folder that holds the competition's files.

        Returns:
            One line per fault, none if the file can be uploaded.

        Raises:
            UserError: The submission or the test list is not there, or there is no leaderboard.
        """
        raise self._no_leaderboard()

    def upload_steps(self, path: Path, message: str) -> tuple[list[str], str]:
        """Says how a submission is uploaded.

        Args:
            path: The submission.
            message: The uploader's note.

        Returns:
            The Kaggle client's arguments (empty where there is no client), and the steps by hand.

        Raises:
            UserError: There is no leaderboard.
        """
        raise self._no_leaderboard()

    def _no_leaderboard(self) -> UserError:
        """What is said of a data set that nobody ranks."""
        return UserError(f"{self.title} has no leaderboard: there is no submission to write, check or upload")


def need_folder(root: Path, competition: Competition) -> None:
    """Refuses a competition's input folder that is missing or empty.

    Raises:
        UserError: It is, and how to fill it.
    """
    if not root.is_dir() or not any(root.iterdir()):
        state = "is empty" if root.is_dir() else "does not exist"
        remedy = f"let 'python scripts/prepare_input.py --competition {competition.name} --download' fetch them"
        raise UserError(
            f"{root}: the input folder {state}; see input/README.md for the files, or "
            f"{remedy if competition.kaggle_download else competition.by_hand}"
        )


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns name -> bytes of a folder's files, in one pass over the folder; none if it is not there."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
