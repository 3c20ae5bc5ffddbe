"""The check before every training: nothing of a scored image is trained on, neither its patient nor a copy of it.

Folds and the choice of training images keep these apart already; this looks once more, at the very rows that a trainer
is about to train on, and says what it found.
"""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from leukofold.corrections import LEAKING_LISTS, made_with
from leukofold.errors import UserError
from leukofold.experiment import Experiment
from leukofold.runs import RunFolder


def check_leakage(
    experiment: Experiment, fold: int, train: pd.DataFrame, held_out: pd.DataFrame, teachers: Collection[str] = ()
) -> str:
    """Compares what is trained on with all that is scored: held-out, hold-out and test images.

    Args:
        experiment: Data, folds and what is known of equal images.
        fold: The fold that is held out.
        train: The rows that are trained on.
        held_out: The rows that are held out.
        teachers: Runs whose networks teach, if any.

    Returns:
        The verdict, for the log; one line, or a few.

    Raises:
        UserError: An image that is trained on equals a scored one; a group is on both sides, but for an image-level
            split that the user named; or a teacher was trained on copies of test images.
    """
    left_out = experiment.labelled[experiment.folds == experiment.config.folds.left_out]
    parts = {"held out": held_out, "hold-out": experiment.holdout, "left out": left_out, "test": experiment.table.test}
    scored = {name: rows for name, rows in parts.items() if len(rows)}
    copied = {name: _copies(experiment, train, rows) for name, rows in scored.items()}
    shared = {name: sorted(set(train.group) & (set(rows.group) - {""})) for name, rows in scored.items()}
    by_image = experiment.config.folds.by == "image"
    for name, rows in copied.items():
        if len(rows):
            external = int(rows.is_external.sum())
            raise UserError(
                f"fold {fold}: leakage: {len(rows)} images that are trained on equal images of '{name}' "
                f"({len(rows) - external} of the competition, {external} external), {rows.image_id.iloc[0]} first; "
                f"train it afresh, without --resume, under another name (--run)"
            )
    for name, groups in shared.items():
        if groups and not by_image:
            raise UserError(
                f"fold {fold}: leakage: {len(groups)} groups are trained on and among images of '{name}', "
                f"{groups[0]} first; split the images again under another name (--run)"
            )
    _need_clean_teachers(experiment, fold, teachers)
    return _verdict(experiment, train, {name: len(rows) for name, rows in scored.items()}, shared)


def _copies(experiment: Experiment, train: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """Finds the rows that are trained on and equal a scored image, or are one."""
    copies = experiment.copies
    return train[np.isin(copies[train.image_id].to_numpy(), copies[scored.image_id].to_numpy())]


def _need_clean_teachers(experiment: Experiment, fold: int, teachers: Collection[str]) -> None:
    """Refuses teachers that know labels of test images' copies, which are not trained on here."""
    for name in teachers if experiment.test_copies else ():
        known = RunFolder(name, experiment.run.root).fold(fold).metadata().get("test_copies")
        if known != experiment.test_copies:
            raise UserError(
                f"distillation.teachers: {name}: was trained on images that equal test images, by an older version of "
                "this project; train it again"
            )


def _verdict(
    experiment: Experiment, train: pd.DataFrame, scored: Mapping[str, int], shared: Mapping[str, Collection[str]]
) -> str:
    """Words what was found, where training may begin."""
    crossing = [f"{len(groups):,} ({name})" for name, groups in shared.items() if groups]
    leaks = [LEAKING_LISTS] if made_with(experiment.config.data) == "all folds" else []
    if crossing:
        leaks.append(f"groups on both sides, as folds.by: image has it: {', '.join(crossing)}; the scores are too high")
    clean = "no copy on both sides" if crossing or not experiment.patients else "no group and no copy on both sides"
    if not experiment.patients:
        clean += ", patients are not known"
    *parts, last = (f"{count:,} {name}" for name, count in scored.items())
    against, pairs = " and ".join([*([", ".join(parts)] if parts else []), last]), len(experiment.duplicates)
    lines = [
        f"leakage check: {'NOT passed' if leaks else 'passed'} - {len(train):,} images trained on against {against}: "
        f"{clean} ({pairs:,} pair{'' if pairs == 1 else 's'} of equal images known)",
        *leaks,
    ]
    if experiment.test_copies:
        lines.append(f"not trained on, as they equal a test image: {experiment.test_copies:,} labelled images")
    return "\n  ".join(lines)
