"""The metrics of the leaderboards, from scikit-learn, over a fixed list of classes.

The list of classes is always given: a class that is absent from both labels and predictions counts
as 0 in a macro average instead of dropping out of it, so that scores of folds compare. Where every class has an image,
as in the competitions' own data, this is scikit-learn's default.
"""

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
