"""Checking an input folder before anything is trained on it, and fetching it."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from leukofold import kaggle
from leukofold.archives import unpack
from leukofold.cells import image_files
from leukofold.competitions import Competition
from leukofold.errors import UserError
from leukofold.images.reading import unreadable_images


@dataclass(frozen=True)
class InputReport:
    """What an input folder holds, against what the organisers published.

    Attributes:
        counts: One row per split and class: images found and published.
        missing: Listed images without a file.
        unreadable: One line per image that cannot be decoded.
        groups: Number of groups per labelled split.
    """

    counts: pd.DataFrame
    missing: list[str]
    unreadable: list[str]
    groups: Mapping[str, int]

    @property
    def differing(self) -> pd.DataFrame:
        """The rows of ``counts`` that differ from what was published."""
        return self.counts[self.counts.found != self.counts.published]


def inspect_input(competition: Competition, root: Path, progress: bool = True) -> InputReport:
    """Finds, counts and decodes all images of a competition.

    Args:
        competition: Whose files they are.
        root: Folder that holds them as downloaded.
        progress: Whether to show a progress bar.

    Returns:
        The report.

    Raises:
        UserError: The folder, a list or a column is missing, or a label is unknown.
    """
    scan = competition.scan(root)
    found = scan.table.counts()
    rows = []
    for split in dict.fromkeys([*competition.published_counts, *found.index]):
        for name in found.columns:
            here = int(found.loc[split, name]) if split in found.index else 0
            rows.append((split, name, here, competition.published_counts.get(split, {}).get(name, 0)))
    counts = pd.DataFrame(rows, columns=["split", "class", "found", "published"])
    labelled = scan.table.labelled
    return InputReport(
        counts=counts[(counts.found > 0) | (counts.published > 0)].reset_index(drop=True),
        missing=scan.missing,
        unreadable=unreadable_images(image_files(scan.table.frame).path.tolist(), progress=progress),
        groups={str(split): int(n) for split, n in labelled.groupby("split").group.nunique().items()},
    )


def describe(report: InputReport) -> str:
    """Writes a report for people: a line per split, then every fault by name."""
    lines = []
    for split in report.counts.split.unique():
        part = report.counts[report.counts.split == split]
        classes = "  ".join(
            f"{name} {found}" + ("" if found == published else f" (published {published})")
            for name, found, published in zip(part["class"], part.found, part.published, strict=True)
        )
        groups = f" of {report.groups[split]} groups" if split in report.groups else ""
        lines.append(f"  {split}: {part.found.sum()} of {part.published.sum()} images{groups}\n    {classes}")
    lines += [f"  missing: {path}" for path in report.missing]
    lines += [f"  unreadable: {fault}" for fault in report.unreadable]
    return "\n".join(lines)


def fetch_input(competition: Competition, root: Path) -> Path:
    """Downloads a competition's files through the Kaggle client and unpacks them.

    A whole archive that lies there already, since unpacking was interrupted, is unpacked without a download. It is
    removed when all its files are there.

    Args:
        competition: Whose files to fetch.
        root: Folder to fetch them into.

    Returns:
        The archive that was unpacked, and removed.

    Raises:
        UserError: The client has no such files, is missing, not signed in or fails, or brought no sound archive; or
            the archive is not one to be unpacked (see ``leukofold.archives``).
    """
    by_hand = f"{competition.by_hand}; put the files into {root} as input/README.md shows"
    if not competition.kaggle_download:
        raise UserError(f"{competition.title} cannot be fetched by the Kaggle client; by hand: {by_hand}")
    slug = competition.kaggle_download[-1].rpartition("/")[2]  # the client names the archive after it
    archive = root / f"{slug}.zip"
    if not zipfile.is_zipfile(archive):  # its list of members is at its end: a download that was cut short has none
        kaggle.need_client(by_hand)
        root.mkdir(parents=True, exist_ok=True)
        kaggle.run([*competition.kaggle_download, "-p", str(root)], by_hand)
    if not archive.is_file():
        raise UserError(f"{root}: the Kaggle client brought no {archive.name}; by hand: {by_hand}")
    unpack(archive, root)
    archive.unlink()
    return archive
