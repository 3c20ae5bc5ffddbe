"""Scores class by class and patient by patient."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn import metrics as sk

from leukofold.metrics.bootstrap import bootstrap
from leukofold.metrics.weighted import confusion_counts, confusions, ratio


def per_class(
    labels: np.ndarray,
    logits: np.ndarray,
    groups: np.ndarray,
    class_names: Sequence[str],
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores every class, with intervals by bootstrap over groups.

    Args:
        labels: n class indices.
        logits: n x K; the highest is the prediction.
        groups: n patients.
        class_names: K names.
        draws: Number of bootstrap draws; those without an image of a class do not count for that class.
        level: Share of the draws inside the interval.
        seed: Of the draws.

    Returns:
        One row per class: ``class``; ``images`` and ``groups`` that have it; ``predicted``, the images taken
        for it; ``precision``, ``recall``, ``f1`` in [0, 1], each with ``_low`` and ``_high``; ``auc``, class against
        rest by softmax probability. The means of ``precision`` and ``f1`` are the macro averages: both are 0 for
        a class that is never predicted. Without images of a class its recall, AUC and intervals
        are NaN; AUC also where there is no other class, intervals also of a class that one group alone has: all draws
        that hold it hold the same images.
    """
    classes = range(logits.shape[1])
    predictions, probabilities = logits.argmax(axis=1), softmax(logits.astype(np.float64), axis=1)
    precision, recall, f1, images = sk.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0
    )
    group = np.unique(groups, return_inverse=True)[1]
    table = pd.DataFrame(
        {
            "class": list(class_names),
            "images": images,
            "groups": pd.Series(group).groupby(labels).nunique().reindex(classes, fill_value=0),
            "predicted": np.bincount(predictions, minlength=len(classes)),
            "precision": precision,
            "recall": np.where(images > 0, recall, np.nan),
            "f1": f1,
            "auc": [
                sk.roc_auc_score(labels == k, probabilities[:, k]) if 0 < images[k] < len(labels) else np.nan
                for k in classes
            ],
        }
    )
    counts = confusion_counts(labels, logits, group)
    found = bootstrap(lambda weights: _by_class(confusions(counts, weights)), group, draws, level, seed)
    for metric, (_, low, high) in found.items():
        table[f"{metric}_low"], table[f"{metric}_high"] = (
            np.where(table.groups > 1, end, np.nan) for end in (low, high)
        )
    return table


def group_accuracies(labels: np.ndarray, logits: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Counts what is right in each group.

    The accuracy is the subject-level cell classification accuracy of Prellberg and Kramer 2019, Fig. 3: the share of
    a subject's cells that are right.

    Args:
        labels: n class indices.
        logits: n x K; the highest is the prediction.
        groups: n patients.

    Returns:
        One row per group, the worst first: ``group``, ``images``, ``correct`` (count), ``accuracy`` in [0, 1] and
        ``majority_label``, the index of its most frequent class (of equals the lowest).
    """
    names, group = np.unique(groups, return_inverse=True)
    classes = logits.shape[1]
    cells = np.bincount(group * classes + labels, minlength=len(names) * classes).reshape(len(names), classes)
    images = cells.sum(axis=1)
    correct = np.bincount(group[logits.argmax(axis=1) == labels], minlength=len(names))
    table = pd.DataFrame(
        {
            "group": names,
            "images": images,
            "correct": correct,
            "accuracy": correct / images,
            "majority_label": cells.argmax(axis=1),
        }
    )
    return table.sort_values("accuracy", kind="stable", ignore_index=True)


def _by_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Computes precision, recall and F1 from m x K x K confusion matrices; m x K, NaN where a class has no image."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    given, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    values = {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, given),
        "f1": ratio(2 * hits, given + predicted),
    }
    return {metric: np.where(given > 0, value, np.nan) for metric, value in values.items()}
