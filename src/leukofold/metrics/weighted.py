"""Metrics of images that weigh as often as a bootstrap drew their groups, for many draws together.

Images are counted once, in a sparse matrix with a column per group; its product with the groups' weights then holds
the counts of every draw, whether there are a dozen groups or every image is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

AREAS = {"macro_auc": "macro AUC", "weighted_auc": "weighted AUC"}
"""The metrics of ranks, for people; ``score`` does not have them."""


def confusion_counts(labels: np.ndarray, logits: np.ndarray, group: np.ndarray) -> csr_array:
    """Counts each group's confusion matrix.

    Args:
        labels: n class indices.
        logits: n x K.
        group: n group indices, 0..G-1, each of them there.

    Returns:
        K^2 x G.
    """
    classes = logits.shape[1]
    return _count(labels * classes + logits.argmax(axis=1), group, (classes**2, int(group.max()) + 1))


def confusions(counts: csr_array, weights: np.ndarray) -> np.ndarray:
    """Weighs the groups' confusion matrices (K^2 x G) by the columns of G x m weights; m x K x K, rows labels."""
    classes = round(counts.shape[0] ** 0.5)
    return np.asarray(counts @ weights).T.reshape(-1, classes, classes)


def from_confusions(confusion: np.ndarray, known: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Computes every metric of ``METRICS``, and of two classes of ``BINARY_METRICS``, from confusion matrices.

    Args:
        confusion: m x K x K, rows labels.
        known: K booleans: the classes that have images. Those that a draw leaves without any drop out of
            its macro averages; classes that have none anyway count as 0. None: no class drops out.

    Returns:
        Metric -> m values; NaN where a metric of one class alone is of a class that drops out.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    given, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = confusion.sum(axis=(1, 2))[:, None]
    present = given > 0
    counted = present | (True if known is None else ~known)
    precision, recall, f1 = ratio(hits, predicted), ratio(hits, given), ratio(2 * hits, given + predicted)
    fallout = ratio(predicted - hits, total - given)
    values = {
        "macro_f1": f1.mean(axis=1, where=counted),
        "weighted_f1": (f1 * given).sum(axis=1) / total[:, 0],
        "accuracy": hits.sum(axis=1) / total[:, 0],
        "balanced_accuracy": recall.sum(axis=1) / present.sum(axis=1),
        "macro_precision": precision.mean(axis=1, where=counted),
        "macro_specificity": 1 - fallout.mean(axis=1, where=counted),
        "weighted_specificity": 1 - (fallout * given).sum(axis=1) / total[:, 0],
        "weighted_precision": (precision * given).sum(axis=1) / total[:, 0],
        "weighted_recall": hits.sum(axis=1) / total[:, 0],
    }
    if confusion.shape[1] > 2:
        return values
    of_one = {"precision": (precision, 1), "sensitivity": (recall, 1), "specificity": (recall, 0), "f1": (f1, 1)}
    return values | {name: np.where(counted[:, k], by_class[:, k], np.nan) for name, (by_class, k) in of_one.items()}


def ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0) -> np.ndarray:
    """Divides element by element; ``otherwise`` where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(above.shape, float(otherwise)), where=below > 0))


@dataclass(frozen=True)
class Ranking:
    """One class against the rest: all that its AUC needs, sorted once for all draws.

    Attributes:
        positives: L x G, images of the class at each of its L different scores, ascending.
        passed: L x G, images of other classes that score l passes and score l - 1 does not; one that ties
            with score l counts half there and half at score l + 1.
        negatives: G, images of other classes.
    """

    positives: csr_array
    passed: csr_array
    negatives: np.ndarray

    @classmethod
    def of(cls, positive: np.ndarray, scores: np.ndarray, group: np.ndarray) -> "Ranking":
        """Ranks n images.

        Args:
            positive: n booleans, whether an image is of the class.
            scores: n values that should be higher for those.
            group: n group indices, 0..G-1, each of them there.

        Returns:
            The ranking.
        """
        levels, level = np.unique(scores[positive], return_inverse=True)
        others, owner, groups = scores[~positive], group[~positive], int(group.max()) + 1
        passed_at = np.concatenate([np.searchsorted(levels, others, side) for side in ("left", "right")])
        passed = _count(passed_at, np.tile(owner, 2), (len(levels) + 1, groups), each=0.5)
        return cls(
            _count(level, group[positive], (len(levels), groups)),
            passed[:-1],  # the last row is above every image of the class
            np.bincount(owner, minlength=groups).astype(np.float64),
        )

    def auc(self, weights: np.ndarray) -> np.ndarray:
        """Computes the weighted area under the ROC curve: the share of pairs in the right order, ties half.

        Args:
            weights: G x m.

        Returns:
            m values in [0, 1]; NaN where one side has no weight.
        """
        positives = self.positives @ weights
        pairs = np.einsum("lm,lm->m", positives, np.cumsum(self.passed @ weights, axis=0))
        return ratio(pairs, positives.sum(axis=0) * (self.negatives @ weights), otherwise=np.nan)


def rankings(labels: np.ndarray, probabilities: np.ndarray, group: np.ndarray) -> list[Ranking]:
    """Ranks the images once per class that has both images and others beside it.

    Two classes mirror each other, so only class 1 is ranked, as is usual of a binary problem.

    Args:
        labels: n class indices.
        probabilities: n x K.
        group: n group indices, 0..G-1, each of them there.

    Returns:
        At most K rankings; none where there is one class only.
    """
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    images = np.bincount(labels, minlength=probabilities.shape[1])
    return [Ranking.of(labels == k, probabilities[:, k], group) for k in classes if 0 < images[k] < len(labels)]


def areas(ranked: Sequence[Ranking], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Averages the classes' AUC for each column of G x m weights.

    Returns:
        Metric of ``AREAS`` -> m values: the plain mean, and that weighted by the classes' images; NaN where no class
        has an AUC.
    """
    shape = (len(ranked), weights.shape[1])
    found = np.array([ranking.auc(weights) for ranking in ranked]).reshape(shape)
    images = np.array([(ranking.positives @ weights).sum(axis=0) for ranking in ranked]).reshape(shape)
    known = np.isfinite(found)
    return {
        "macro_auc": ratio(np.nansum(found, axis=0), known.sum(axis=0), otherwise=np.nan),
        "weighted_auc": ratio(np.nansum(found * images, axis=0), (images * known).sum(axis=0), otherwise=np.nan),
    }


def _count(row: np.ndarray, group: np.ndarray, shape: tuple[int, int], each: float = 1) -> csr_array:
    """Adds ``each`` at row and group for every entry; rows x G."""
    return coo_array((np.full(len(row), float(each)), (row, group)), shape=shape).tocsr()
