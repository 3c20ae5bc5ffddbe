"""Whether a network is as often right as it is sure: temperature scaling and its reliability (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

LOWEST, HIGHEST = 0.05, 20.0  # temperatures; a perfect ranking would otherwise drive it to 0, a useless one to infinity


@dataclass(frozen=True)
class Reliability:
    """How sure and how often right the predictions are, in b bins of confidence (Guo et al. 2017, eq. 1 to 3).

    Attributes:
        edges: Borders of the bins, b + 1 evenly spaced values from 0 to 1; a bin holds its upper border.
        confidence: Mean probability of the predicted class in each bin; NaN in empty ones.
        accuracy: Share of each bin that is predicted right; NaN in empty ones.
        count: Images of each bin.
        ece: Expected calibration error, in [0, 1].
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ece: float


@dataclass(frozen=True)
class Calibration:
    """What temperature scaling does to out-of-fold predictions.

    Attributes:
        temperature: Fitted on all of them; for the logits of one fold's network. The mean of several networks' logits
            is milder, and softened too much by it.
        before: Of the logits as they are.
        after: Every fold scaled by the temperature of the other folds; None where there is one fold only, as a
            temperature is not to be judged on the images that it was fitted to.
        nll_before: Mean negative log-likelihood of the logits as they are, in nats.
        nll_after: The same for ``after``.
    """

    temperature: float
    before: Reliability
    after: Reliability | None
    nll_before: float
    nll_after: float | None

    @property
    def helps(self) -> bool:
        """Whether temperatures of other folds made the likelihood higher."""
        return self.nll_after is not None and self.nll_after < self.nll_before

    @property
    def at_limit(self) -> bool:
        """Whether no temperature fits: rankings that are perfect or useless drive it to the end of its range."""
        return not 1.01 * LOWEST < self.temperature < 0.99 * HIGHEST


def calibrate(labels: np.ndarray, logits: np.ndarray, folds: np.ndarray) -> Calibration:
    """Fits a temperature to out-of-fold logits and judges it on folds that it has not seen.

    Args:
        labels: n class indices.
        logits: n x K.
        folds: n fold numbers.

    Returns:
        The temperature, with reliability and likelihood before and after.

    Raises:
        ValueError: A logit is not finite.
    """
    temperature, logits = fit_temperature(labels, logits), logits.astype(np.float64)
    before, nll_before = reliability(labels, softmax(logits, axis=1)), _nll(labels, logits)
    if len(np.unique(folds)) == 1:
        return Calibration(temperature, before, None, nll_before, None)
    scaled = logits / nested_temperature(labels, logits, folds)[:, None]
    after, nll_after = reliability(labels, softmax(scaled, axis=1)), _nll(labels, scaled)
    return Calibration(temperature, before, after, nll_before, nll_after)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Fits the temperature T of softmax(logits / T) by maximum likelihood (Guo et al. 2017, eq. 9).

    The predicted classes stay what they are. The likelihood has one peak: its logarithm is concave in 1 / T.

    Args:
        labels: n class indices.
        logits: n x K.

    Returns:
        T in [.05, 20]; above 1 where the network is too sure.

    Raises:
        ValueError: A logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite")
    exact = logits.astype(np.float64)
    found = minimize_scalar(
        lambda log_t: _nll(labels, exact / np.exp(log_t)),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(np.exp(found.x))


def nested_temperature(labels: np.ndarray, logits: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Fits the temperature of each fold to the other folds alone.

    Args:
        labels: n class indices.
        logits: n x K.
        folds: n fold numbers, at least two different ones.

    Returns:
        n temperatures.

    Raises:
        ValueError: There is one fold only, or a logit is not finite.
    """
    numbers, fold = np.unique(folds, return_inverse=True)
    if len(numbers) == 1:
        raise ValueError("one fold only: nothing else to fit its temperature to")
    return np.array([fit_temperature(labels[fold != k], logits[fold != k]) for k in range(len(numbers))])[fold]


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Averages the gap between confidence and accuracy over bins of the top class's probability.

    Source: Guo et al. 2017, eq. 5, with bins of equal width.

    Args:
        labels: n class indices.
        probabilities: n x K, rows that add up to 1.
        bins: Number of bins.

    Returns:
        The error, in [0, 1].
    """
    return reliability(labels, probabilities, bins).ece


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> Reliability:
    """Sorts predictions by the top class's probability into bins of equal width.

    Args:
        labels: n class indices.
        probabilities: n x K, rows that add up to 1.
        bins: Number of bins.

    Returns:
        Confidence and accuracy of each bin, and the error over all.
    """
    edges = np.linspace(0, 1, bins + 1)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    at = np.searchsorted(edges[1:-1], sure, side="left")
    count = np.bincount(at, minlength=bins)
    confidence, accuracy = (
        np.divide(np.bincount(at, each, bins), count, out=np.full(bins, np.nan), where=count > 0)
        for each in (sure, right)
    )
    ece = np.nansum(count * np.abs(accuracy - confidence)) / len(labels)
    return Reliability(edges, confidence, accuracy, count, float(ece))


def _nll(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns the mean negative log-likelihood, in nats."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
