"""Label issues by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70:1373), computed by cleanlab.

Everything here needs logits of networks that have not seen the image: a network agrees with what it was trained on.
"""

import numpy as np
import pandas as pd
from cleanlab import filter as cleanlab_filter
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax

from leukofold.errors import UserError

FILTER = "low_self_confidence"
"""Confident learning estimates how many labels are wrong; so many of the lowest quality are issues. On 3,000 rendered
images with 5 % wrong labels precision (.27) and recall (.81) made the best F1 of cleanlab's filters, together with
``low_normalized_margin``; so they did on two of three smaller sets."""


def find_label_issues(labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Scores every label and decides which ones are issues.

    A label's quality is the probability that the networks give it (self-confidence), the mean over runs: the simplest
    of cleanlab's scores ranked planted errors as well as the others. Classes without a label are left out of all
    probabilities; nothing can be said about them.

    Args:
        labels: n given class indices.
        logits: M x n x K out-of-fold logits, before softmax, of M runs.

    Returns:
        n rows in the order given: ``given`` (class index), ``suggested`` (class index of the highest mean
        probability), ``label_quality`` and ``suggested_probability`` (of the given and the suggested class, in
        [0, 1]), ``agreement`` (share of runs whose own prediction is the suggested class) and ``is_issue``
        (``FILTER``; never where the networks agree with the label).

    Raises:
        UserError: All labels are of one class.
    """
    present, given = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise UserError("all out-of-fold images are of one class, so that no other can be suggested; train more folds")
    single = softmax(logits[..., present].astype(np.float64), axis=-1)
    mean = single.mean(axis=0)
    suggested = mean.argmax(axis=1)
    listed = cleanlab_filter.find_label_issues(given, mean, filter_by=FILTER, n_jobs=1)
    return pd.DataFrame(
        {
            "given": labels,
            "suggested": present[suggested],
            "label_quality": get_label_quality_scores(given, mean, method="self_confidence"),
            "suggested_probability": mean.max(axis=1),
            "agreement": (single.argmax(axis=-1) == suggested).mean(axis=0),
            "is_issue": listed & (suggested != given),
        }
    )
