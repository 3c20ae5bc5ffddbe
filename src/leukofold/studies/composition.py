"""What the data are made of: subjects and images by class, ours beside a publication's (such as its Table 1)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from leukofold.cells import UNLABELLED, CellTable
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import read_competition
from leukofold.rendering import is_current, rendered_info
from leukofold.studies.schema import UNLABELLED_NAME, DataPart


@dataclass(frozen=True)
class Count:
    """One class of one part of the data.

    Attributes:
        part: The publication's name of the part.
        class_name: The class, or ``unlabelled``.
        groups: Our subjects, as the competition names them; None where they are not known.
        images: Our images; None where the input is missing.
        published_groups: As published; None: not told.
        published_images: As published; None: not told.
    """

    part: str
    class_name: str
    groups: int | None
    images: int | None
    published_groups: int | None
    published_images: int | None


@dataclass(frozen=True)
class Composition:
    """The data counted.

    Attributes:
        counts: By part, then by class; classes that neither we nor the publication count are left out.
        remarks: What is to be known of our counts, a line each.
    """

    counts: tuple[Count, ...]
    remarks: tuple[str, ...]


def count_composition(parts: Sequence[DataPart], config: Config) -> Composition:
    """Counts the competition's subjects and images; nothing is rendered for it.

    Args:
        parts: The parts of the data, with what is published of them.
        config: Which competition and target domains, and where their files are.

    Returns:
        The counts; where the input is missing, a remark that says so.
    """
    data, competition = config.data, get_competition(config.data.competition)
    remarks: tuple[str, ...] = ()
    table = None
    try:
        if data.render is not None and not is_current(data.root, data.competition, data.render):
            raise UserError(f"{data.root}: still to be rendered")
        whole = config.model_copy(update={"data": data.model_copy(update={"splits": None})})
        table = read_competition(whole)
        if rendered_info(data.root) is not None:
            remarks = ("RENDERED images: ours are what the project has drawn.",)
    except UserError as error:
        remarks = (f"Ours are not counted, the input is missing: {error}",)
    names = [*competition.class_names, UNLABELLED_NAME]
    patients = competition.has_patients and (table is None or table.knows_patients)
    counts = [count for part in parts for count in _count(part, table, names, patients)]
    return Composition(tuple(counts), remarks)


def _count(part: DataPart, table: CellTable | None, names: Sequence[str], has_patients: bool) -> Iterator[Count]:
    """Counts one part by class, unlabelled images last; of a part without any label no class can be counted."""
    rows = None if table is None else table.frame[table.frame.split.isin(part.splits)]
    labels = set() if rows is None else set(rows.label)
    for k, name in enumerate(names):
        label = UNLABELLED if name == UNLABELLED_NAME else k
        groups = images = None
        if rows is not None and (label in labels or labels != {UNLABELLED}):
            of_class = rows[rows.label == label]
            images = len(of_class)
            groups = _subjects(of_class) if has_patients and label != UNLABELLED else None
        published = part.groups.get(name), part.images.get(name)
        if images or published != (None, None):
            yield Count(part.part, name, groups, images, *published)


def _subjects(rows: pd.DataFrame) -> int:
    """Counts subjects; the name of a group of several, merged because they share images, names each of them."""
    return int(rows.group.str.split("+").explode().nunique())
