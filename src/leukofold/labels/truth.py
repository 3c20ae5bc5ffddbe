"""What is known of rendered images: their true labels, and how well a list of issues finds the planted errors."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from leukofold.lists import read_list
from leukofold.rendering import rendered_info

UNKNOWN = -1  # the true label of an image that was not rendered, or whose class the data do not have


def true_labels(paths: Sequence[str], class_names: Sequence[str]) -> np.ndarray | None:
    """Reads the true labels of rendered images.

    Args:
        paths: n image files.
        class_names: K names.

    Returns:
        n class indices, ``UNKNOWN`` where there is no truth; None if it is known of no image.
    """
    root_of = {folder: _rendered_root(Path(folder)) for folder in {os.path.dirname(path) for path in paths}}
    truth: dict[str, str] = {}
    for root in {root for root in root_of.values() if root is not None}:
        table = read_list(root / "rendered_truth.csv", ("path", "true_label"))
        truth.update(zip(f"{root.as_posix()}/" + table.path, table.true_label, strict=True))
    index = {name: k for k, name in enumerate(class_names)}
    labels = np.array([index.get(truth.get(path, ""), UNKNOWN) for path in paths], dtype=np.int64)
    return labels if (labels != UNKNOWN).any() else None


def _rendered_root(folder: Path) -> Path | None:
    """Finds the rendered folder that a folder lies in."""
    return next((above for above in (folder, *folder.parents) if rendered_info(above) is not None), None)


@dataclass(frozen=True)
class PlantedScore:
    """How well a list of issues finds labels that are known to be wrong.

    Attributes:
        planted: Wrong labels.
        listed: Issues.
        found: Issues whose label is wrong.
        precision: ``found / listed``; NaN where nothing is listed.
        recall: ``found / planted``; NaN where nothing was planted.
        suggested_right: Share of the found ones whose suggestion is the true class; NaN where there are none.
        average_precision: Of the ranking of all images by label quality; NaN where nothing was planted.
    """

    planted: int
    listed: int
    found: int
    precision: float
    recall: float
    suggested_right: float
    average_precision: float


def planted_score(issues: pd.DataFrame, true: np.ndarray) -> PlantedScore:
    """Compares issues with the truth.

    Args:
        issues: n rows of ``find_label_issues``.
        true: n class indices; rows with ``UNKNOWN`` are left out.
    """
    known = issues[true != UNKNOWN].assign(true=true[true != UNKNOWN])
    wrong = known.given != known.true
    found = known[known.is_issue & wrong]

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    planted, listed = int(wrong.sum()), int(known.is_issue.sum())
    return PlantedScore(
        planted,
        listed,
        len(found),
        share(len(found), listed),
        share(len(found), planted),
        share(int((found.suggested == found.true).sum()), len(found)),
        float(average_precision_score(wrong, -known.label_quality)) if planted else float("nan"),
    )
