"""Several runs' logits side by side: brought to one order of rows, refused where they do not belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leukofold.blending.loading import LoadedRun, need_equal
from leukofold.errors import UserError
from leukofold.runs import Predictions

TOGETHER = {
    "data": "data_fingerprint",
    "class order": "class_names",
    "rendering": "rendered",
    "metric": "metric",
}  # what runs have in common, and the key of their metadata


@dataclass(frozen=True)
class AlignedRuns:
    """Logits of M runs, row by row of the same images.

    Attributes:
        names: The M runs.
        class_names: K classes.
        metric: The competition's, a key of ``METRICS``.
        oof: Held-out images, M x n x K float32.
        tests: Test images by the networks of each of F folds, F x M x t x K float32.
        labels: n class indices.
        folds: n folds.
        groups: n groups.
        is_external: n booleans; external images are neither fitted to nor scored.
        holdouts: The hold-out as ``tests``, F x M x h x K float32; None where a run has none.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    metric: str
    oof: np.ndarray
    tests: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    is_external: np.ndarray
    holdouts: np.ndarray | None = None


def align_runs(runs: Sequence[LoadedRun]) -> AlignedRuns:
    """Puts runs side by side, in the order of the first one's rows.

    Args:
        runs: At least one, all of the same competition, data, classes, split and folds.

    Returns:
        Their logits.

    Raises:
        UserError: Runs do not belong together; says which and in what they differ.
    """
    first = runs[0]
    for run in runs[1:]:
        for title, key in TOGETHER.items():
            need_equal(f"{run.name} and {first.name}", title, run.metadata[key], first.metadata[key])
        if not run.split.equals(first.split):  # they may still differ in their order alone
            folds, others = (r.split.set_index("image_id").fold.to_dict() for r in (run, first))
            need_equal(f"{run.name} and {first.name}", "split into folds", folds, others)
    _need_same_folds(runs)
    for run in runs[1:]:
        _need_same_rows(run, first)
    assert first.oof.label is not None
    return AlignedRuns(
        tuple(run.name for run in runs),
        first.oof.class_names,
        first.metadata["metric"],
        np.stack([run.oof.logits[_order(run, run.oof, first, first.oof)] for run in runs]),
        np.stack([_in_order(run, first, "tests") for run in runs], axis=1),
        first.oof.label,
        first.folds,
        first.oof.group,
        first.oof.is_external,
        np.stack([_in_order(run, first, "holdouts") for run in runs], axis=1)
        if all(run.holdouts for run in runs)
        else None,
    )


def _need_same_folds(runs: Sequence[LoadedRun]) -> None:
    """Refuses runs of which one lacks a fold that another has, naming all that lack one."""
    trained = {run.name: set(run.folds.tolist()) for run in runs}
    known = set.union(*trained.values())
    lacking = {name: sorted(known - folds) for name, folds in trained.items() if folds != known}
    if lacking:
        each = "; ".join(f"{name} lacks fold {', '.join(map(str, folds))}" for name, folds in lacking.items())
        raise UserError(
            f"different trained folds: {each}; train what is missing (scripts/train_fold.py --run NAME --fold K), "
            "or leave that run out"
        )


def _need_same_rows(run: LoadedRun, first: LoadedRun) -> None:
    """Refuses runs that give an image another label, group or origin."""
    order = _order(run, run.oof, first, first.oof)
    for title in ("label", "group", "is_external"):
        differ = getattr(run.oof, title)[order] != getattr(first.oof, title)
        if differ.any():
            image_id = first.oof.image_id[differ][0]
            raise UserError(f"{run.name} and {first.name}: {title} of {image_id} differs; train them on the same input")


def _in_order(run: LoadedRun, first: LoadedRun, kind: str) -> np.ndarray:
    """Returns the logits of a run's F folds, F x t x K, in the order of the first run's test or hold-out images."""
    wanted = getattr(first, kind)[0]
    return np.stack([part.logits[_order(run, part, first, wanted)] for part in getattr(run, kind)])


def _order(run: LoadedRun, part: Predictions, first: LoadedRun, wanted: Predictions) -> np.ndarray:
    """Finds the rows of a run's predictions that are the first run's rows, in their order."""
    if np.array_equal(part.image_id, wanted.image_id):  # the usual case; comparing is a fiftieth of sorting
        return np.arange(len(wanted.image_id))
    differing = np.setxor1d(part.image_id, wanted.image_id)
    if len(differing):
        raise UserError(
            f"{run.name} and {first.name}: different images, {differing[0]} first of {len(differing)} that only one "
            "of them scored; train them on the same input"
        )
    order = np.argsort(part.image_id)
    return np.asarray(order[np.searchsorted(part.image_id, wanted.image_id, sorter=order)])
