"""One additive bias per class, so that decisions serve the competition's metric instead of the log-loss.

A network's probabilities follow the classes' frequencies in its training; macro-F1 wants rare classes predicted
more often than they are the likeliest. Additive biases on log-probabilities are the thresholds of many classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukofold.blending.averaging import Combiner
from leukofold.blending.scores import arg_max
from leukofold.metrics.weighted import from_confusions

GRID = np.linspace(-3, 3, 61)  # biases tried, in nats
PENALTY = 0.002  # of the squared biases: what a bias has to gain, since a few rare images always gain something
STARTS = 4  # the search is local: from no biases, from two that follow the classes' frequencies, from a random one
ROUNDS = 10  # over all classes, at most


@dataclass(frozen=True)
class Biased:
    """A combiner with biases.

    Attributes:
        inner: The combiner.
        biases: K, added to the scores.
    """

    inner: Combiner
    biases: np.ndarray

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Combines M x K x n to K x n, and adds the biases."""
        return np.asarray(self.inner(log_p) + self.biases[:, None])

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Names each class's bias, beside what the inner combiner tells."""
        named = {name: round(float(bias), 6) for name, bias in zip(class_names, self.biases, strict=True)}
        return {**self.inner.describe(runs, class_names), "biases": named}


def add_biases(inner: Combiner, labels: np.ndarray, log_p: np.ndarray, metric: str) -> Biased:
    """Finds biases for a fitted combiner.

    Args:
        inner: Fitted on the same images.
        labels: n class indices.
        log_p: M x K x n.
        metric: A key of ``METRICS``; what the biases raise.

    Returns:
        The combiner with biases.
    """
    return Biased(inner, fit_biases(labels, inner(log_p), metric).astype(np.float32))


def fit_biases(labels: np.ndarray, scores: np.ndarray, metric: str) -> np.ndarray:
    """Climbs from several starts to the biases that are best in the metric, less ``PENALTY`` times their squares.

    Args:
        labels: n class indices.
        scores: K x n.
        metric: A key of ``METRICS``.

    Returns:
        K biases, values of ``GRID``.
    """
    classes = len(scores)
    prior = np.log(np.bincount(labels, minlength=classes) + 1)
    lean = 0.25 * (prior - prior.mean())
    random = np.random.default_rng(0).normal(0, 0.3, (STARTS - 3, classes))
    climbed = [_climb(labels, scores, start, metric) for start in (np.zeros(classes), lean, -lean, *random)]
    return max(climbed, key=lambda found: found[0])[1]


def _climb(labels: np.ndarray, scores: np.ndarray, start: np.ndarray, metric: str) -> tuple[float, np.ndarray]:
    """Sets one class's bias after the other to its best value, until a round gains nothing."""
    biases, value = np.clip(start, GRID[0], GRID[-1]), -np.inf
    for _ in range(ROUNDS):
        before = value
        for k in range(len(scores)):
            gained = from_confusions(_tables(labels, scores, biases, k))[metric]
            biases[k] = 0
            penalised = gained - PENALTY * (biases @ biases + GRID**2)
            best = int(penalised.argmax())
            biases[k], value = GRID[best], float(penalised[best])
        if value <= before + 1e-6:
            break
    return value, biases


def _tables(labels: np.ndarray, scores: np.ndarray, biases: np.ndarray, k: int) -> np.ndarray:
    """Counts the confusion matrices at every bias of class k in one pass: values of ``GRID`` x K x K.

    An image goes to class k at the biases that exceed the lead of its best other class. Counting images by lead,
    label and other class, and summing up along the grid, gives all matrices at once.
    """
    classes = len(scores)
    shifted = scores + biases[:, None].astype(np.float32)
    shifted[k] = -np.inf
    other = arg_max(shifted)
    steps = (shifted.max(axis=0) - scores[k] - GRID[0]) / (GRID[1] - GRID[0])
    first = np.floor(steps.clip(-1, len(GRID) - 1)).astype(np.int64) + 1  # the lowest bias that wins the image
    cell = (first * classes + labels) * classes + other
    counts = np.bincount(cell, minlength=(len(GRID) + 1) * classes**2).reshape(-1, classes, classes).astype(float)
    won = np.cumsum(counts, axis=0)[:-1]
    tables: np.ndarray = counts.sum(axis=0) - won
    tables[:, :, k] += won.sum(axis=2)
    return tables
