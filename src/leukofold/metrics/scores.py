"""The metrics of the leaderboards, from scikit-learn, over a fixed list of classes.

The list of classes is always given: a class that is absent from both labels and predictions counts
as 0 in a macro average instead of dropping out of it, so that scores of folds compare. Where every class has an image,
as in the competitions' own data, this is scikit-learn's default.
"""

import numpy as np
from scipy.special import softmax
from sklearn import metrics as sk

from leukofold.metrics.weighted import AREAS, areas, rankings

METRICS = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_specificity": "macro specificity",
    "weighted_specificity": "weighted specificity",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
}

BINARY_METRICS = {
    "precision": "precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1",
}
"""Of two classes only; class 1 is the positive one."""


def metric_titles(classes: int) -> dict[str, str]:
    """Names every metric that K classes have, for people; of two classes the AUC is no mean."""
    if classes == 2:
        return {**METRICS, **BINARY_METRICS, **dict.fromkeys(AREAS, "AUC")}
    return {**METRICS, **AREAS}


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores predictions by every metric of ``METRICS`` and, of two classes, of ``BINARY_METRICS``.

    Args:
        labels: n class indices.
        logits: n x K; the highest is the prediction.

    Returns:
        Metric -> value in [0, 1]. Balanced accuracy is the mean recall of the classes present;
        macro specificity the mean over classes of TN / (TN + FP), class against rest; weighted averages weigh a class
        by its images, so that weighted recall is the accuracy. Sensitivity is the recall of class 1, specificity that
        of class 0
        (Prellberg and Kramer 2019, section 4); 0 where such a class has no image.
    """
    predictions = logits.argmax(axis=1)
    classes = range(logits.shape[1])
    confusion = sk.confusion_matrix(labels, predictions, labels=classes).astype(np.float64)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion)[present] / confusion.sum(axis=1)[present]
    negatives = confusion.sum() - confusion.sum(axis=1)
    false_positives = confusion.sum(axis=0) - np.diag(confusion)
    specificity = 1 - np.divide(false_positives, negatives, out=np.zeros_like(negatives), where=negatives > 0)

    def averaged(average: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns precision, recall and F1; without an average one of each per class."""
        found = sk.precision_recall_fscore_support(
            labels, predictions, labels=classes, average=average, zero_division=0
        )
        return found[0], found[1], found[2]

    macro, weighted = averaged("macro"), averaged("weighted")
    values = {
        "macro_f1": float(macro[2]),
        "weighted_f1": float(weighted[2]),
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": float(recall.mean()),
        "macro_precision": float(macro[0]),
        "macro_specificity": float(specificity.mean()),
        "weighted_specificity": float(confusion.sum(axis=1) @ specificity / confusion.sum()),
        "weighted_precision": float(weighted[0]),
        "weighted_recall": float(weighted[1]),
    }
    if len(classes) > 2:
        return values
    precisions, recalls, f1s = averaged(None)
    positive = {"precision": float(precisions[1]), "sensitivity": float(recalls[1])}
    return {**values, **positive, "specificity": float(recalls[0]), "f1": float(f1s[1])}


def areas_under_curves(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Scores how predictions rank the images: the values of ``AREAS`` in ``metrics.bootstrap.intervals``.

    Args:
        labels: n class indices.
        logits: n x K.

    Returns:
        Metric -> value in [0, 1]; NaN where there is one class only.
    """
    together = np.zeros(len(labels), dtype=np.int64)
    ranked = rankings(labels, softmax(logits.astype(np.float64), axis=1), together)
    return {name: float(values[0]) for name, values in areas(ranked, np.ones((1, 1))).items()}
