"""Several runs made one: by the plain mean of their logits, or by a method that is better than that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leukofold.blending.aligning import align_runs
from leukofold.blending.averaging import Combiner
from leukofold.blending.judging import Choice, choose
from leukofold.blending.loading import LoadedRun, average_logits
from leukofold.blending.methods import PLAIN
from leukofold.blending.scores import log_probabilities
from leukofold.metrics import score
from leukofold.runs import Predictions


@dataclass(frozen=True)
class Blend:
    """Runs of one competition, combined.

    Attributes:
        runs: The runs.
        oof: Held-out images; logits combined by the method taken. Those of a fitted method are nested, each
            image's by a combiner that was fitted (and, of ``all``, chosen) on other folds, so that their score is
            honest. ``single_view`` is always the plain mean.
        folds: The fold of each row of ``oof``.
        test: Test images; logits combined by the method taken, fitted on all of ``oof``: those of each fold's
            networks, as it was fitted and judged, and then averaged over the folds.
        plain: Held-out images with averaged logits; ``oof`` itself where the plain mean was taken.
        choice: Which method was asked for, which one was taken, and why.
        holdout: Images that no fold trained on or was chosen by, combined as ``test``; None where runs have none.
    """

    runs: Sequence[LoadedRun]
    oof: Predictions
    folds: np.ndarray
    test: Predictions
    plain: Predictions
    choice: Choice
    holdout: Predictions | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What all runs have in common: competition, metric, input, data fingerprint, classes."""
        return self.runs[0].metadata

    def scores(self) -> dict[str, float]:
        """Scores the blend on the competition's held-out images."""
        return competition_scores(self.oof)

    def holdout_scores(self) -> dict[str, float] | None:
        """Scores the blend on the hold-out; None where there is none."""
        return competition_scores(self.holdout) if self.holdout is not None else None


def blend_runs(runs: Sequence[LoadedRun], method: str = PLAIN, insist: bool = False) -> Blend:
    """Combines runs.

    Args:
        runs: At least one, all of the same competition, data, classes, split and folds.
        method: The plain mean of logits, or another one of ``method_names`` or ``all``, which is taken if its gain
            over the plain mean under nested folds is real.
        insist: Take it whatever it gains.

    Returns:
        The blend, its rows in the order of the first run.

    Raises:
        UserError: Runs do not belong together; says which and in what they differ. Or a method is to be fitted
            and there are fewer than two folds.
    """
    aligned = align_runs(runs)
    choice = choose(aligned, method, insist)
    plain = average_logits([run.oof for run in runs])
    oof, test = plain, average_logits([run.test for run in runs])
    held = [run.holdout for run in runs]
    holdout = average_logits([part for part in held if part is not None]) if all(held) else None
    if choice.taken:
        oof = replace(plain, logits=choice.taken.nested)
        test = replace(test, logits=_combine_folds(choice.taken.combiner, aligned.tests))
        if holdout is not None and aligned.holdouts is not None:
            holdout = replace(holdout, logits=_combine_folds(choice.taken.combiner, aligned.holdouts))
    return Blend(runs, oof, aligned.folds, test, plain, choice, holdout)


def _combine_folds(combiner: Combiner, tests: np.ndarray) -> np.ndarray:
    """Combines the runs' networks of each fold, F x M x t x K, and averages over the folds: t x K.

    The other way round would put milder logits before the combiner than those that it was fitted to.
    """
    combined = [combiner(log_probabilities(fold)).T for fold in tests]
    return np.asarray(np.mean(combined, axis=0, dtype=np.float32))


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
