"""The whole analysis of a data set's labels, from the out-of-fold logits of one or several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leukofold.blending.aligning import align_runs
from leukofold.blending.loading import LoadedRun
from leukofold.cells import FILES_OF, modalities
from leukofold.competitions import Competition
from leukofold.embeddings import run_embeddings
from leukofold.labels.issues import find_label_issues
from leukofold.labels.outliers import find_outliers, small_folds
from leukofold.labels.truth import PlantedScore, planted_score, true_labels
from leukofold.reopening import ReopenedRun, reopen


@dataclass(frozen=True)
class LabelAnalysis:
    """What runs say of the labels that they were trained on.

    Attributes:
        runs: M runs.
        competition: Whose images they are.
        images: One row per out-of-fold image, in the order of the first run: the columns of ``find_label_issues``,
            ``image_id``, ``group``, ``source``, ``path``, ``fold``, and ``predicted_by_<run>``, a class index per run.
        outliers: As ``find_outliers``; None where embeddings were not asked for.
        small_folds: Folds too small to look for outliers in.
        files: ``path`` of an image -> all files of its cell, where there are several.
        planted: How many planted errors were found, where images are rendered; None elsewhere.
    """

    runs: Sequence[LoadedRun]
    competition: Competition
    images: pd.DataFrame
    outliers: pd.DataFrame | None
    small_folds: Sequence[int]
    files: Mapping[str, tuple[str, ...]]
    planted: PlantedScore | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K classes in the order of the indices."""
        return self.runs[0].oof.class_names

    @property
    def title(self) -> str:
        """The competition's title, for pages; it says where the cells are no photographs."""
        drawn = ", RENDERED cells" if self.runs[0].metadata["rendered"] else ""
        return f"{self.competition.title}{drawn}"

    @property
    def issues(self) -> pd.DataFrame:
        """Rows of ``images`` that are issues, the lowest label quality first."""
        return self.images[self.images.is_issue].sort_values("label_quality", kind="stable")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of given and suggested class among the issues, the most frequent first."""
        counts = self.issues.groupby(["given", "suggested"]).size().sort_values(ascending=False, kind="stable")
        return [(int(given), int(suggested)) for given, suggested in counts.index]


def analyse_labels(runs: Sequence[LoadedRun], with_embeddings: bool = True) -> LabelAnalysis:
    """Judges the labels of all images that runs have out-of-fold logits for, the competition's and others together.

    Args:
        runs: At least one, all of the same competition, data, classes, split and folds.
        with_embeddings: Whether to look for outliers and near duplicates, for which each fold's network embeds its
            held-out images.

    Returns:
        The analysis.

    Raises:
        UserError: Runs do not belong together, or the input is not what they were trained on.
    """
    aligned = align_runs(runs)
    issues = find_label_issues(aligned.labels, aligned.oof)
    reopened = [reopen(run) for run in (runs if with_embeddings else runs[:1])]
    cells = reopened[0].cells
    predicted = {
        f"predicted_by_{name}": logits.argmax(axis=1) for name, logits in zip(aligned.names, aligned.oof, strict=True)
    }
    images = pd.concat([issues, cells[["image_id", "group", "source", "path"]]], axis=1)
    images = images.assign(fold=aligned.folds, **predicted)
    outliers = _outliers(reopened, aligned.folds) if with_embeddings else None
    columns = [FILES_OF + name for name in modalities(cells)] or ["path"]
    files = dict(zip(cells.path, cells[columns].itertuples(index=False, name=None), strict=True))
    true = true_labels(cells.path.tolist(), aligned.class_names)
    planted = planted_score(issues, true) if true is not None else None
    return LabelAnalysis(runs, reopened[0].competition, images, outliers, small_folds(aligned.folds), files, planted)


def _outliers(reopened: Sequence[ReopenedRun], folds: np.ndarray) -> pd.DataFrame:
    """Embeds the images of all runs, in the order of the first one's rows, and finds outliers."""
    ids = pd.Index(reopened[0].run.oof.image_id)
    vectors = [run_embeddings(each)[pd.Index(each.run.oof.image_id).get_indexer(ids)] for each in reopened]
    return find_outliers(vectors, folds, ids.to_numpy())
