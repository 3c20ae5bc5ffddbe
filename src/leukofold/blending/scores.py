"""Scores of many images with the classes first, and what every method of combination needs to know of them.

Arrays are M x K x n (runs, classes, images), float32: n is long and contiguous, so that a maximum or a sum over
the few classes is K passes over long rows, several times faster than along a short last axis.
"""

import numpy as np


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Takes what logits say: a constant added to all classes of an image says nothing, and drops out here.

    Args:
        logits: M x n x K, of which only the differences between classes count.

    Returns:
        M x K x n float32, contiguous: logits less their log-sum-exp over the classes.
    """
    first = np.ascontiguousarray(np.moveaxis(logits, 2, 1), dtype=np.float32)
    peak = first.max(axis=1, keepdims=True)
    shifted: np.ndarray = first - peak
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def arg_max(scores: np.ndarray) -> np.ndarray:
    """Finds the best class, the first of equal ones.

    Args:
        scores: ... x K x n.

    Returns:
        ... x n class indices, uint8.
    """
    best = scores[..., 0, :].copy()
    index = np.zeros(best.shape, dtype=np.uint8)
    for k in range(1, scores.shape[-2]):
        higher = scores[..., k, :] > best
        np.maximum(best, scores[..., k, :], out=best)
        np.maximum(index, higher.view(np.uint8) * np.uint8(k), out=index)  # far faster than masked copies
    return index


def count_confusions(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts confusion matrices of several predictions of the same images.

    Args:
        labels: n class indices.
        predictions: m x n class indices.
        classes: K.

    Returns:
        m x K x K float64, rows: truth.
    """
    m = len(predictions)
    cell = (np.arange(m)[:, None] * classes + labels) * classes + predictions
    return np.bincount(cell.ravel(), minlength=m * classes**2).reshape(m, classes, classes).astype(np.float64)


def log_loss(labels: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Computes the mean negative log-likelihood of softmaxed scores, and its gradient.

    Args:
        labels: n class indices.
        scores: K x n.

    Returns:
        The loss in nats, and K x n derivatives by the scores: (softmax - one-hot) / n.
    """
    rows = np.arange(len(labels))
    peak = scores.max(axis=0)
    slope = np.exp(scores - peak)
    total = slope.sum(axis=0)
    loss = float(np.mean(np.log(total) + peak - scores[labels, rows], dtype=np.float64))
    slope /= total
    slope[labels, rows] -= 1
    slope /= len(labels)
    return loss, slope
