"""Averages of runs: of log-probabilities with any weights, of probabilities, of ranks.

A combiner maps M x K x n log-probabilities (``scores.log_probabilities``) to K x n scores whose softmax over the
classes are probabilities, and tells what it was fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Combiner(Protocol):
    """A method of combination, fitted."""

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Combines M x K x n log-probabilities of any images into K x n scores."""

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Tells what was fitted, by the names of the M runs and K classes, ready for JSON."""


@dataclass(frozen=True)
class Weighted:
    """A log-linear pool: the weighted sum of log-probabilities (equal weights: the mean of logits).

    Attributes:
        weights: M float32, not negative.
    """

    weights: np.ndarray

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Sums M x K x n to K x n."""
        return np.asarray(np.tensordot(self.weights, log_p, axes=1))

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Names each run's weight."""
        return {"weights": {run: round(float(weight), 6) for run, weight in zip(runs, self.weights, strict=True)}}


@dataclass(frozen=True)
class MeanProbabilities:
    """The linear pool: the mean of probabilities, as its logarithm."""

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Averages M x K x n to K x n; subtracts the peak first, so that nothing underflows in all runs at once."""
        peak = log_p.max(axis=0)
        return np.asarray(np.log(np.exp(log_p - peak).mean(axis=0)) + peak)

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """Nothing is fitted."""
        return {}


@dataclass(frozen=True)
class RankAverage:
    """The mean of ranks, on the runs' common scale.

    Within a class, each run's log-probability is replaced by the value of the same rank in the mean of all runs'
    quantile functions (quantile normalisation: Bolstad et al. 2003, Bioinformatics 19:185), and the results are
    averaged. Ranks alone would lose how common a class is; the mean quantile function keeps it, so that classes
    remain comparable; equal values share the mean of their ranks' values. New images are placed between the fitted
    ones by linear interpolation, beyond the outermost ones with slope 1; a single run is returned as it is.

    Attributes:
        quantiles: M x K x n float32, each run's and class's sorted values.
    """

    quantiles: np.ndarray

    def __call__(self, log_p: np.ndarray) -> np.ndarray:
        """Normalises and averages M x K x n to K x n."""
        common = self.quantiles.mean(axis=0)
        total = np.zeros(log_p.shape[1:], dtype=np.float32)
        for own, values in zip(self.quantiles, log_p, strict=True):
            for k, (known, target) in enumerate(zip(own, common, strict=True)):
                levels, first, ties = np.unique(known, return_index=True, return_counts=True)
                inside = np.clip(values[k], known[0], known[-1])
                total[k] += np.interp(inside, levels, np.add.reduceat(target, first) / ties) + (values[k] - inside)
        return total / len(log_p)

    def describe(self, runs: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
        """The quantile functions are the data themselves: nothing to show."""
        return {}


def mean_logits(labels: np.ndarray, log_p: np.ndarray, metric: str) -> Weighted:
    """The plain mean: equal weights, whatever the labels."""
    return Weighted(np.full(len(log_p), 1 / len(log_p), dtype=np.float32))


def mean_probabilities(labels: np.ndarray, log_p: np.ndarray, metric: str) -> MeanProbabilities:
    """The mean of probabilities; nothing is fitted."""
    return MeanProbabilities()


def rank_average(labels: np.ndarray, log_p: np.ndarray, metric: str) -> RankAverage:
    """Takes the quantile functions of M x K x n log-probabilities; labels are not looked at."""
    return RankAverage(np.sort(log_p, axis=2))
