"""Label issues by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70:1373), computed by cleanlab.

Everything here needs logits of networks that have not seen the image: a network agrees with what it was trained on.
"""

import numpy as np
import pandas as pd
from cleanlab.count import num_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax

from leukofold.errors import UserError


def find_label_issues(labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Scores every label and decides which ones are issues.

    A label's quality is the probability that the networks give it, less what they give the labels of its class on
    average (cleanlab's self-confidence, adjusted): a class that is always doubted does not fill the list. The shift
    back into [0, 1] leaves right labels well below 1 too, so that the order of qualities means more than their size.
    Confident learning estimates how many labels are wrong; so many of the lowest quality are issues, unless the
    networks agree with them. On planted errors this ranking was better than cleanlab's others, and the list as good
    as those of its filters.

    Classes without a label are left out of all probabilities; nothing can be said about them.

    Args:
        labels: n given class indices.
        logits: M x n x K out-of-fold logits, before softmax, of M runs.

    Returns:
        n rows in the order given: ``given`` (class index), ``suggested`` (class index of the highest mean
        probability), ``label_quality`` (in [0, 1], the runs' mean),
        ``agreement`` (share of runs whose own prediction is the suggested class), ``given_probability``,
        ``suggested_probability`` (means over runs, in [0, 1]) and ``is_issue``.

    Raises:
        UserError: All labels are of one class.
    """
    present, given = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise UserError("all out-of-fold images are of one class, so that no other can be suggested; train more folds")
    single = softmax(logits[..., present].astype(np.float64), axis=-1)
    mean = single.mean(axis=0)
    suggested = mean.argmax(axis=1)
    quality = np.mean([get_label_quality_scores(given, each, adjust_pred_probs=True) for each in single], axis=0)
    worst = np.argsort(quality, kind="stable")[: num_label_issues(given, mean)]
    rows = np.arange(len(labels))
    return pd.DataFrame(
        {
            "given": labels,
            "suggested": present[suggested],
            "label_quality": quality,
            "agreement": (single.argmax(axis=-1) == suggested).mean(axis=0),
            "given_probability": mean[rows, given],
            "suggested_probability": mean[rows, suggested],
            "is_issue": np.isin(rows, worst) & (suggested != given),
        }
    )
