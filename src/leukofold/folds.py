"""Stratified folds in which no patient crosses from one fold to another."""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from leukofold.config import FoldsConfig
from leukofold.errors import UserError

IN_EVERY_TRAINING_SET = -1
"""The fold of external images that are never held out (``folds.external: train``)."""


def assign_folds(labelled: pd.DataFrame, units: np.ndarray, config: FoldsConfig) -> np.ndarray:
    """Splits labelled images into K folds.

    Units stay whole: groups (``folds.by: group``), or sets of duplicates where an image-level split is
    named. The competition's images are split first and alone, so that external data do not move them.
    Classes with fewer images than folds are spread as far as they go; they are absent from some folds.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        units: n names; images of one name stay together.
        config: Number of folds, kind of split, seed, and what becomes of external images.

    Returns:
        n fold numbers, 0..K-1; ``IN_EVERY_TRAINING_SET`` for external images that are not split.

    Raises:
        UserError: There are fewer units than folds, or every class is rarer than that.
    """
    external = labelled.is_external.to_numpy()
    folds = np.full(len(labelled), IN_EVERY_TRAINING_SET)
    folds[~external] = _split(labelled[~external], units[~external], config)
    fold_of = dict(zip(units[~external], folds[~external], strict=True))
    folds[external] = [fold_of.get(unit, IN_EVERY_TRAINING_SET) for unit in units[external]]
    if config.external == "split":
        free = external & (folds == IN_EVERY_TRAINING_SET)
        folds[free] = _split_external(labelled[free], units[free], config)
    check_folds(labelled, folds, config)
    return folds


def _split(rows: pd.DataFrame, units: np.ndarray, config: FoldsConfig) -> np.ndarray:
    """Splits the competition's images, stratified by class, their units kept whole."""
    count = len(np.unique(units))
    if count < config.count:
        raise UserError(f"folds.count: {config.count} folds need as many {config.by}s, the input has {count}")
    if _most_of_a_class(rows, units if config.by == "image" else rows.index.to_numpy()) < config.count:
        raise UserError(f"folds.count: no class has {config.count} images to spread over the folds; lower folds.count")
    if config.by == "image":
        return _split_units(rows, units, config)
    splitter = StratifiedGroupKFold(config.count, shuffle=True, random_state=config.seed)
    folds = np.empty(len(rows), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(rows)), rows.label, units)):
            folds[held_out] = fold
    return folds


def _split_units(rows: pd.DataFrame, units: np.ndarray, config: FoldsConfig) -> np.ndarray:
    """Splits many small units, stratified by the class of each one's first image.

    Every class comes out even to one unit, which StratifiedGroupKFold's one by one choice does not promise.
    """
    _, first, unit_of_row = np.unique(units, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of the rows, not of the names
    folds = np.empty(len(first), dtype=np.int64)
    splitter = StratifiedKFold(config.count, shuffle=True, random_state=config.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        labels = rows.label.to_numpy()[first[order]]
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
            folds[order[held_out]] = fold
    return folds[unit_of_row]


def _most_of_a_class(rows: pd.DataFrame, units: np.ndarray) -> int:
    """Returns how many units the most common class has, counted by each unit's first image."""
    _, first = np.unique(units, return_index=True)
    return int(np.bincount(rows.label.to_numpy()[first]).max())


def _split_external(rows: pd.DataFrame, units: np.ndarray, config: FoldsConfig) -> np.ndarray:
    """Splits external images; a handful of a class that is no use to stratify goes to folds in turn."""
    if not len(rows) or _most_of_a_class(rows, units) < config.count:
        return np.asarray(np.unique(units, return_inverse=True)[1] % config.count)
    return _split_units(rows, units, config)


def check_folds(labelled: pd.DataFrame, folds: np.ndarray, config: FoldsConfig) -> None:
    """Refuses folds that would make a score dishonest or meaningless.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        folds: n fold numbers.
        config: Number of folds, kind of split, and what becomes of external images.

    Raises:
        UserError: A group crosses folds, an image has no fold, or a fold has none of the competition's images.
    """
    own = ~labelled.is_external.to_numpy()
    unsplit = (folds == IN_EVERY_TRAINING_SET) & ~own & (config.external == "train")
    outside = ~np.isin(folds, range(config.count)) & ~unsplit
    if outside.any():
        raise UserError(f"folds: {labelled.image_id[outside].iloc[0]} has no fold of 0..{config.count - 1}")
    sizes = np.bincount(folds[own], minlength=config.count)
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
