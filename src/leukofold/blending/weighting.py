"""Weights of runs, found on held-out images: by greedy selection, and as the optimum of a convex loss."""

import numpy as np
from scipy.optimize import minimize

from leukofold.blending.averaging import Weighted
from leukofold.blending.scores import arg_max, count_confusions, log_loss
from leukofold.errors import UserError
from leukofold.metrics.weighted import from_confusions

STEPS = 30  # of the greedy selection: weights are multiples of 1/30 at the finest


def greedy(labels: np.ndarray, log_p: np.ndarray, metric: str) -> Weighted:
    """Selects runs one after the other, with replacement (Caruana et al. 2004, ICML, sections 2.1 to 2.2).

    Starts from the best N runs, N chosen by the score (sorted initialisation); adds whichever run makes the mean
    best; returns the best selection on the way. The score is the metric, which is piecewise constant;
    among equal scores the lowest log-loss decides. (On drawn runs, under nested folds, selection by log-loss alone
    gained less with thousands of images, and more with 300.)

    Args:
        labels: n class indices.
        log_p: M x K x n.
        metric: A key of ``METRICS``.

    Returns:
        How often each run was taken, as shares that sum to 1.
    """
    runs = len(log_p)
    alone = _scores(labels, log_p, metric)
    ranking = sorted(range(runs), key=lambda run: (-alone[run], _loss(labels, log_p[run])))
    sums = np.cumsum(log_p[ranking], axis=0)
    size = 1 + _best(labels, sums, metric, np.arange(1, runs + 1))[0]
    counts = np.bincount(ranking[:size], minlength=runs)
    total, path = sums[size - 1].copy(), []
    path.append((_scores(labels, total[None], metric)[0], -_loss(labels, total / size), counts.copy()))
    while counts.sum() < STEPS:
        taken, score, loss = _best(labels, total + log_p, metric, np.full(runs, counts.sum() + 1))
        total += log_p[taken]
        counts[taken] += 1
        path.append((score, -loss, counts.copy()))
    chosen = max(path, key=lambda step: step[:2])[2]
    return Weighted((chosen / chosen.sum()).astype(np.float32))


def _best(labels: np.ndarray, sums: np.ndarray, metric: str, sizes: np.ndarray) -> tuple[int, float, float]:
    """Finds the best of m x K x n sums of so many runs each; its index, score and log-loss."""
    scores = _scores(labels, sums, metric)
    equal = np.flatnonzero(scores == scores.max())
    losses = [_loss(labels, sums[k] / np.float32(sizes[k])) for k in equal]
    return int(equal[np.argmin(losses)]), float(scores.max()), min(losses)


def _scores(labels: np.ndarray, scores: np.ndarray, metric: str) -> np.ndarray:
    """Scores m x K x n by the metric; m values."""
    return from_confusions(count_confusions(labels, arg_max(scores), scores.shape[1]))[metric]


def _loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the log-loss of K x n scores."""
    return log_loss(labels, scores)[0]


def convex(labels: np.ndarray, log_p: np.ndarray, metric: str) -> Weighted:
    """Finds the weights of the log-linear pool that are best in log-loss.

    Convex, so that the optimum found is the global one: each image's loss is the log-sum-exp, which is convex, of
    scores that are linear in the weights, less one linear score. The sum of the weights is free; it sets how sure
    the pool is, and changes no prediction.

    Args:
        labels: n class indices.
        log_p: M x K x n.
        metric: Not used: it is piecewise constant, and has no gradient.

    Returns:
        Weights of at least 0, of which one is higher.

    Raises:
        UserError: All weights are best at 0: every run is worse than equal probabilities.
    """
    runs = len(log_p)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = log_loss(labels, np.tensordot(weights.astype(np.float32), log_p, axes=1))
        return value, (log_p.reshape(runs, -1) @ slope.ravel()).astype(np.float64)

    found = minimize(loss, np.full(runs, 1 / runs), jac=True, method="L-BFGS-B", bounds=[(0, None)] * runs)
    if not found.x.any():
        raise UserError(
            "--method log_loss: every run is worse than guessing, so that all weights are 0; look at the runs first"
        )
    return Weighted(found.x.astype(np.float32))
