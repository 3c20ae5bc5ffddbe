"""Stratified folds in which no patient crosses from one fold to another."""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from leukofold.config import FoldsConfig
from leukofold.errors import UserError


def assign_folds(labelled: pd.DataFrame, config: FoldsConfig) -> np.ndarray:
    """Splits labelled images into K folds.

    Groups stay whole (``folds.by: group``) unless an image-level split is named. Classes with fewer
    images than folds are spread as far as they go; they are absent from some folds.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        config: Number of folds, kind of split and seed.

    Returns:
        n fold numbers, 0..K-1.

    Raises:
        UserError: There are fewer groups (or images) than folds, or every class is rarer than that.
    """
    units = labelled.group.nunique() if config.by == "group" else len(labelled)
    if units < config.count:
        raise UserError(f"folds.count: {config.count} folds need as many {config.by}s, the input has {units}")
    splitter = (StratifiedGroupKFold if config.by == "group" else StratifiedKFold)(
        config.count, shuffle=True, random_state=config.seed
    )
    if labelled.label.value_counts().max() < config.count:
        raise UserError(f"folds.count: no class has {config.count} images to spread over the folds; lower folds.count")
    folds = np.full(len(labelled), -1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        groups = labelled.group if config.by == "group" else None  # an image-level split warns of groups
        splits = splitter.split(np.zeros(len(labelled)), labelled.label, groups)
        for fold, (_, held_out) in enumerate(splits):
            folds[held_out] = fold
    check_folds(labelled, folds, config)
    return folds


def check_folds(labelled: pd.DataFrame, folds: np.ndarray, config: FoldsConfig) -> None:
    """Refuses folds that would make a score dishonest or meaningless.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        folds: n fold numbers.
        config: Number of folds and kind of split.

    Raises:
        UserError: A group crosses folds, an image has no fold, or a fold is empty.
    """
    outside = ~np.isin(folds, range(config.count))
    if outside.any():
        raise UserError(f"folds: {labelled.image_id[outside].iloc[0]} has no fold of 0..{config.count - 1}")
    sizes = np.bincount(folds, minlength=config.count)
    if (sizes == 0).any():
        raise UserError(f"folds.count: fold {int(np.argmin(sizes))} is empty, too few groups; lower folds.count")
    if config.by == "group":
        spread = pd.Series(folds).groupby(labelled.group.to_numpy()).nunique()
        crossing = spread[spread > 1]
        if len(crossing):
            raise UserError(
                f"folds: group {crossing.index[0]} is in {crossing.iloc[0]} folds ({len(crossing)} groups cross); "
                "training on it would leak patients. Split again, or name an image-level split with folds.by: image"
            )


def take_up_folds(saved: pd.DataFrame, labelled: pd.DataFrame, config: FoldsConfig) -> np.ndarray:
    """Takes up the split that a run saved, which outlives changes of scikit-learn.

    Args:
        saved: The run's image_id, group and fold.
        labelled: The labelled rows of a ``CellTable``.
        config: Number of folds and kind of split.

    Returns:
        n fold numbers.

    Raises:
        UserError: The split is of other images or another number of folds, or a group crosses folds.
    """
    if list(saved.image_id) != list(labelled.image_id):
        raise UserError("the run's folds.csv is of other images than the input; name another run with --run NAME")
    folds = saved.fold.to_numpy()
    if folds.max() + 1 != config.count:
        raise UserError(
            f"folds.count: the run's folds.csv has {folds.max() + 1} folds, not {config.count}; "
            "name another run with --run NAME"
        )
    check_folds(labelled, folds, config)
    return folds
