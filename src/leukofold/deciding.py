"""From logits to the classes of a submission: the highest logit, or a threshold matched to the training set."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leukofold.blending.combining import Blend
from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.metrics import score


@dataclass(frozen=True)
class Decision:
    """The classes of a blend's test images.

    Attributes:
        labels: n class indices.
        rule: ``highest logit`` or ``training prior``.
        threshold: How much higher the second class's logit has to be than the first one's; None for ``highest logit``,
            and without test images.
        prior: Share of the second class among the training images; None for ``highest logit``.
        oof: Scores of the same rule on held-out images, each fold matched by itself; None likewise.
        holdout: Scores of the same rule on the hold-out, matched by itself; None likewise, and without a hold-out.
    """

    labels: np.ndarray
    rule: str = "highest logit"
    threshold: float | None = None
    prior: float | None = None
    oof: dict[str, float] | None = None
    holdout: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns what a submission's JSON tells of it."""
        return {key: value for key, value in vars(self).items() if key != "labels" and value is not None}


def by_highest_logit(blend: Blend) -> Decision:
    """Decides for each image by its own logits."""
    return Decision(blend.test.logits.argmax(axis=1))


def by_training_prior(blend: Blend) -> Decision:
    """Decides for all images together: as large a share of either class as among the training images.

    The winners of C-NMC 2019 did so (Pan et al. 2019). It helps as far as the test set has the training set's shares,
    and uses no label of it. The scores out of fold are honest: a fold's threshold comes from its own logits and from
    the labels that its networks were trained on.

    Args:
        blend: Of two classes.

    Returns:
        The decision.

    Raises:
        UserError: There are not two classes, or a run does not tell what it was trained on.
    """
    need_two_classes(blend.metadata["competition"])
    priors = {fold: _prior(blend, fold) for fold in sorted(set(blend.folds.tolist()))}
    prior = float(np.mean(list(priors.values())))
    own = ~blend.oof.is_external
    moved = blend.oof.logits.astype(np.float64)
    for fold, share in priors.items():
        rows = own & (blend.folds == fold)
        moved[rows, 1] -= matched_threshold(moved[rows], share)
    assert blend.oof.label is not None
    threshold = matched_threshold(blend.test.logits, prior) if len(blend.test.logits) else None
    labels = _moved(blend.test.logits, threshold or 0).argmax(axis=1)
    holdout = None
    if blend.holdout is not None:
        assert blend.holdout.label is not None
        logits = blend.holdout.logits
        holdout = score(blend.holdout.label, _moved(logits, matched_threshold(logits, prior)))
    return Decision(labels, "training prior", threshold, prior, score(blend.oof.label[own], moved[own]), holdout)


def _moved(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Lowers the second of n x 2 logits by a threshold."""
    return np.asarray(logits.astype(np.float64) - np.array([0, threshold]))


def need_two_classes(competition: str) -> None:
    """Refuses to match a threshold where there is none.

    Raises:
        UserError: The competition has more than two classes.
    """
    classes = len(get_competition(competition).class_names)
    if classes != 2:
        raise UserError(
            f"--match-prior: a threshold lies between two classes, {competition} has {classes}; name runs of others "
            "with --run"
        )


def matched_threshold(logits: np.ndarray, share: float) -> float:
    """Finds the threshold above which lies a share of the images.

    Args:
        logits: n x 2, n at least 1.
        share: In [0, 1].

    Returns:
        A difference of logits, half-way between the last image above and the first one below; where all are on one
        side, one beyond the furthest.
    """
    lead = np.sort((logits[:, 1] - logits[:, 0]).astype(np.float64))[::-1]
    count = round(share * len(lead))
    ends = np.concatenate([[lead[0] + 2], lead, [lead[-1] - 2]])
    return float((ends[count] + ends[count + 1]) / 2)


def _prior(blend: Blend, fold: int) -> float:
    """Returns the second class's share among a fold's training images of the competition, the mean over the runs."""
    shares = []
    for run in blend.runs:
        counts = run.folder.fold(fold).metadata().get("training_images")
        if counts is None:
            raise UserError(
                f"--match-prior: {run.folder.fold(fold).path / 'metadata.json'} does not tell the training images' "
                "classes; train the run again"
            )
        shares.append(counts[blend.oof.class_names[1]] / sum(counts.values()))
    return float(np.mean(shares))
