"""The metrics of the leaderboards, from scikit-learn, over a fixed list of classes.

The list of classes is always given: a class that is absent from both labels and predictions counts
as 0 in a macro average instead of dropping out of it, so that scores of folds compare.
"""

from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sk

METRICS = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_specificity": "macro specificity",
}

DRAWS_AT_ONCE = 100  # of the bootstrap, to bound memory at tens of thousands of groups


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores predictions by every metric of ``METRICS``.

    Args:
        labels: n class indices.
        logits: n x K; the highest is the prediction.

    Returns:
        Metric -> value in [0, 1]. Balanced accuracy is the mean recall of the classes present;
        macro specificity the mean over classes of TN / (TN + FP).
    """
    predictions = logits.argmax(axis=1)
    classes = range(logits.shape[1])
    confusion = sk.confusion_matrix(labels, predictions, labels=classes).astype(np.float64)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    negatives = confusion.sum() - confusion.sum(axis=1)
    false_positives = confusion.sum(axis=0) - np.diag(confusion)
    specificity = 1 - np.divide(false_positives, negatives, out=np.zeros_like(negatives), where=negatives > 0)

    def averaged(function: str, average: str) -> float:
        return float(getattr(sk, function)(labels, predictions, labels=classes, average=average, zero_division=0))

    return {
        "macro_f1": averaged("f1_score", "macro"),
        "weighted_f1": averaged("f1_score", "weighted"),
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": float(recall.mean()),
        "macro_precision": averaged("precision_score", "macro"),
        "macro_specificity": float(specificity.mean()),
    }


@dataclass(frozen=True)
class Interval:
    """A value with the range that holds it at the stated level.

    Attributes:
        value: On all rows.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def interval(
    metric: str,
    labels: np.ndarray,
    logits: np.ndarray,
    groups: np.ndarray,
    reference: np.ndarray | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Estimates how much a score, or the difference of two, owes to the choice of patients.

    Percentile bootstrap over groups (Efron 1979): images of one patient are not independent, so patients
    are drawn with replacement, each with all its images. A class whose patients a draw leaves out drops out of that
    draw's macro averages; counted as 0 it would pull the interval of rare classes down.

    Args:
        metric: A key of ``METRICS``.
        labels: n class indices.
        logits: n x K.
        groups: n patients.
        reference: n x K logits of the same images; then the difference to them, in the same draws (paired).
        draws: Number of bootstrap draws.
        level: Share of the draws inside the interval.
        seed: Of the draws.

    Returns:
        The score on all images and its interval.
    """
    names, group = np.unique(groups, return_inverse=True)
    classes = logits.shape[1]
    tables = [_confusions(labels, each, group, len(names), classes) for each in (logits, reference) if each is not None]
    known = np.bincount(labels, minlength=classes) > 0
    rng = np.random.default_rng(seed)
    values: list[np.ndarray] = []
    for start in range(0, draws, DRAWS_AT_ONCE):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), min(DRAWS_AT_ONCE, draws - start))
        scored = [_from_confusion((times @ table).reshape(-1, classes, classes), known)[metric] for table in tables]
        values.append(scored[0] - scored[1] if reference is not None else scored[0])
    whole = [
        float(_from_confusion(table.sum(axis=0).reshape(1, classes, classes), known)[metric][0]) for table in tables
    ]
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole[0] - whole[1] if reference is not None else whole[0], float(low), float(high))


def _confusions(labels: np.ndarray, logits: np.ndarray, group: np.ndarray, groups: int, classes: int) -> np.ndarray:
    """Counts each group's confusion matrix; groups x K^2."""
    cell = (group * classes + labels) * classes + logits.argmax(axis=1)
    counts: np.ndarray = np.bincount(cell, minlength=groups * classes**2).astype(np.float64)
    return counts.reshape(groups, classes**2)


def _from_confusion(confusion: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """Computes every metric of ``METRICS`` from m x K x K confusion matrices; m values each.

    Macro averages leave out the classes that have images (``known``), but none in this draw.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    given, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = confusion.sum(axis=(1, 2))[:, None]
    present = given > 0
    counted = present | ~known

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0))

    f1 = ratio(2 * hits, given + predicted)
    return {
        "macro_f1": f1.mean(axis=1, where=counted),
        "weighted_f1": (f1 * given).sum(axis=1) / total[:, 0],
        "accuracy": hits.sum(axis=1) / total[:, 0],
        "balanced_accuracy": ratio(hits, given).sum(axis=1) / present.sum(axis=1),
        "macro_precision": ratio(hits, predicted).mean(axis=1, where=counted),
        "macro_specificity": 1 - ratio(predicted - hits, total - given).mean(axis=1, where=counted),
    }
