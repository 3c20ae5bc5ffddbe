"""Several runs' logits side by side: aligned, refused where they do not belong together, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukofold.blending.loading import LoadedRun, average_logits, need_equal
from leukofold.metrics import score
from leukofold.runs import Predictions


@dataclass(frozen=True)
class Blend:
    """Runs of one competition, combined.

    Attributes:
        runs: The runs.
        oof: Held-out images with averaged logits.
        folds: The fold of each row of ``oof``.
        test: Test images with averaged logits.
    """

    runs: Sequence[LoadedRun]
    oof: Predictions
    folds: np.ndarray
    test: Predictions

    @property
    def metadata(self) -> dict[str, Any]:
        """What all runs have in common: competition, metric, input, data fingerprint, classes."""
        return self.runs[0].metadata

    def scores(self) -> dict[str, float]:
        """Scores the blend on the competition's held-out images."""
        return competition_scores(self.oof)


def blend_runs(runs: Sequence[LoadedRun]) -> Blend:
    """Averages logits over runs, with equal weights.

    Args:
        runs: At least one, all of the same competition, data, classes, split and folds.

    Returns:
        The blend, its rows in the order of the first run.

    Raises:
        UserError: Runs do not belong together; says which and in what they differ.
    """
    first = runs[0]
    for run in runs[1:]:
        for title, key in (("data", "data_fingerprint"), ("class order", "class_names"), ("rendering", "rendered")):
            need_equal(f"{run.name} and {first.name}", title, run.metadata[key], first.metadata[key])
        folds, others = (r.split.set_index("image_id").fold.to_dict() for r in (run, first))
        need_equal(f"{run.name} and {first.name}", "split into folds", folds, others)
        trained = [sorted(set(r.folds.tolist())) for r in (run, first)]
        need_equal(f"{run.name} and {first.name}", f"trained folds ({trained[0]}, {trained[1]})", *trained)
    oof = average_logits([run.oof for run in runs])
    test = average_logits([run.test for run in runs])
    return Blend(runs, oof, first.folds, test)


def competition_scores(oof: Predictions, rows: np.ndarray | None = None) -> dict[str, float]:
    """Scores out-of-fold logits on the competition's own images.

    Args:
        oof: With labels.
        rows: n booleans that choose rows; None: all.

    Returns:
        As ``metrics.score``.
    """
    assert oof.label is not None
    kept = ~oof.is_external if rows is None else ~oof.is_external & rows
    return score(oof.label[kept], oof.logits[kept])
