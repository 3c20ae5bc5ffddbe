"""Stacking: a regularised logistic regression on the log-probabilities of all runs (Wolpert 1992)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from leukofold.blending.scores import log_probabilities
from leukofold.errors import UserError

STRENGTH = 0.1  # C of the regression; of 0.01, 0.1 and 1 the best under nested folds on 300 to 12,000 drawn images
RIDGE = 0.01  # of the mean variance, added to every axis's: keeps the faintest ones from being blown up
FLOOR = -12.0  # log-probabilities below it are as good as impossible, and would outweigh all others
NEVER = -30.0  # score of a class without an image to fit on, below any other class's


@dataclass(frozen=True)
class Stacked:
    """A fitted regression.

    Attributes:
        present: The classes it was fitted on.
        coefficients: Their weights of the M x K log-probabilities, present x M x K.
        intercepts: One for each of them.
    """

    present: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Combines M x K x n to K x n log-probabilities."""
        runs, classes, images = log_p.shape
        features = np.maximum(log_p, FLOOR).reshape(runs * classes, images)
        found = self.coefficients.reshape(len(self.present), -1) @ features + self.intercepts[:, None]
        scores = np.full(log_p.shape[1:], NEVER, dtype=np.float32)
        scores[self.present] = np.maximum(log_probabilities(found.T[None])[0], NEVER + 1)
        return scores

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Names each run's share of the absolute coefficients."""
        sizes = np.abs(self.coefficients).sum(axis=(0, 2))
        shares = sizes / sizes.sum()
        return {"shares": {run: round(float(share), 6) for run, share in zip(runs, shares, strict=True)}}


def stack(labels: np.ndarray, log_p: np.ndarray, metric: str) -> Stacked:
    """Fits the regression, on whitened features.

    The runs say nearly the same, so that their raw log-probabilities make the solver crawl (hundreds of iterations
    instead of tens), and the penalty would depend on their scale.

    Args:
        labels: n class indices; at least two classes.
        log_p: M x K x n.
        metric: Not used: the regression is fitted by its log-loss.

    Returns:
        The combiner; a class that no label names is never predicted.

    Raises:
        UserError: The runs say the same of all images.
    """
    runs, classes, _ = log_p.shape
    features = np.maximum(log_p, FLOOR).reshape(runs * classes, -1)
    centre = features.mean(axis=1, dtype=np.float64)
    spread, axes = np.linalg.eigh(np.cov(features))
    if spread.mean() <= 0:
        raise UserError("--method stacking: the runs' logits are the same for all images; train them longer")
    rotation = axes / np.sqrt(spread.clip(0) + RIDGE * spread.mean())
    whitened = (features - centre[:, None].astype(np.float32)).T @ rotation.astype(np.float32)
    fitted = LogisticRegression(C=STRENGTH, max_iter=200, tol=1e-4).fit(whitened, labels)
    coefficients = fitted.coef_ @ rotation.T
    intercepts = fitted.intercept_ - coefficients @ centre
    if len(fitted.classes_) == 2:  # scikit-learn then fits the second class's logit alone
        coefficients, intercepts = (np.stack([-0.5 * each[0], 0.5 * each[0]]) for each in (coefficients, intercepts))
    shape = (len(fitted.classes_), runs, classes)
    return Stacked(fitted.classes_, coefficients.reshape(shape).astype(np.float32), intercepts.astype(np.float32))
