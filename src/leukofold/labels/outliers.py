"""Outliers and near duplicates among embeddings, found by cleanlab's Datalab.

Each fold's held-out images are embedded by that fold's own network, and spaces of different networks do not compare.
So every image is compared with its own fold's. That loses no copies: copies that were found before training are
kept in one fold. What is found here besides are images that the networks hardly tell apart, however they are turned.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from cleanlab import Datalab
from sklearn.preprocessing import normalize

SMALLEST_FOLD = 20
"""Images that a fold needs: Datalab looks at the 10 nearest, who are no neighbours where they are half of all."""


def find_outliers(embeddings: Sequence[np.ndarray], folds: np.ndarray, image_ids: np.ndarray) -> pd.DataFrame:
    """Finds images that lie far from all others, or right beside another.

    Distances are cosine distances, averaged over the runs (those of unit vectors side by side).

    Args:
        embeddings: Of each run n x D, where D may differ between runs.
        folds: The fold of each image; the same in all runs.
        image_ids: n ids.

    Returns:
        A row per image of the folds that are not too small (see ``small_folds``), in the order given: ``row``
        (position), ``image_id``, ``outlier_score`` and ``near_duplicate_score`` (in [0, 1], low where there is one),
        ``is_outlier``, ``is_near_duplicate`` and ``near_duplicates`` (their ids, a tuple).
    """
    vectors = np.concatenate([normalize(part) for part in embeddings], axis=1)
    small = small_folds(folds)
    parts = [
        _outliers_of_fold(vectors[rows], image_ids[rows]).assign(row=rows)
        for rows in (np.flatnonzero(folds == fold) for fold in np.unique(folds) if fold not in small)
    ]
    columns = [
        "row", "image_id", "outlier_score", "is_outlier", "near_duplicate_score", "is_near_duplicate", "near_duplicates"
    ]  # fmt: skip
    found = pd.concat(parts) if parts else pd.DataFrame(columns=columns)
    return found.sort_values("row")[columns].reset_index(drop=True)


def small_folds(folds: np.ndarray) -> list[int]:
    """Names the folds with fewer than ``SMALLEST_FOLD`` images."""
    values, counts = np.unique(folds, return_counts=True)
    return [int(fold) for fold in values[counts < SMALLEST_FOLD]]


def _outliers_of_fold(vectors: np.ndarray, image_ids: np.ndarray) -> pd.DataFrame:
    """Asks Datalab about one fold."""
    lab = Datalab({"image_id": image_ids.tolist()}, verbosity=0)
    with contextlib.redirect_stdout(io.StringIO()):
        lab.find_issues(features=vectors, issue_types={"outlier": {}, "near_duplicate": {}})
    outliers, duplicates = lab.get_issues("outlier"), lab.get_issues("near_duplicate")
    return pd.DataFrame(
        {
            "image_id": image_ids,
            "outlier_score": outliers["outlier_score"].to_numpy(),
            "is_outlier": outliers["is_outlier_issue"].to_numpy(),
            "near_duplicate_score": duplicates["near_duplicate_score"].to_numpy(),
            "is_near_duplicate": duplicates["is_near_duplicate_issue"].to_numpy(),
            "near_duplicates": [tuple(image_ids[sorted(found)]) for found in duplicates["near_duplicate_sets"]],
        }
    )
