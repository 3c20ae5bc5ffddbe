"""Stratified folds in which no patient crosses from one fold to another."""

import warnings
from collections.abc import Collection
from fractions import Fraction

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from leukofold.config import FoldsConfig
from leukofold.errors import UserError

IN_EVERY_TRAINING_SET = -1
"""The fold of images that are never held out: external ones (``folds.external: train``), or other splits' images."""

HOLDOUT = -2
"""The fold of images that are in no training set, and that no fold is chosen by (``folds.holdout``)."""

NOWHERE = -3
"""The fold of other images of the hold-out's patients, and of copies of its images: neither trained on nor scored."""


def assign_folds(
    labelled: pd.DataFrame, units: np.ndarray, config: FoldsConfig, domains: Collection[str] = ()
) -> np.ndarray:
    """Splits labelled images into K folds.

    Units stay whole: groups (``folds.by: group``), or sets of duplicates where an image-level split is
    named. The competition's images are split first and alone, so that external data do not move them.
    Classes with fewer images than folds are spread as far as they go; they are absent from some folds.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        units: n names; images of one name stay together.
        config: Number of folds, kind of split, seed, and what becomes of external images.
        domains: Splits that are target domains: in the hold-out always.

    Returns:
        n fold numbers, 0..K-1; ``IN_EVERY_TRAINING_SET`` for images that are not split, ``HOLDOUT``, or ``NOWHERE``.

    Raises:
        UserError: There are fewer units than folds, or every class is rarer than that.
    """
    external = labelled.is_external.to_numpy()
    folds = np.full(len(labelled), IN_EVERY_TRAINING_SET)
    held = np.isin(labelled.split.to_numpy(dtype=str), list(domains))
    free = ~external & ~held
    held[free] = _choose_holdout(labelled[free], units[free], config, domains)
    folds[held] = HOLDOUT
    beside = np.isin(units, units[held]) & ~held
    own = ~external & ~held & ~beside
    folds[own] = _split(labelled[own], units[own], config)
    if config.by == "image" and config.splits:  # no patient is kept whole here, but no image is on both sides
        scored = np.isin(units, units[own & (folds >= 0)])
        folds[own & scored & (folds == IN_EVERY_TRAINING_SET)] = NOWHERE
    # a copy of a held-out image shares its fold, and so is never trained on when it is held out
    fold_of = dict(zip(units[own], folds[own], strict=True))
    folds[external] = [fold_of.get(unit, IN_EVERY_TRAINING_SET) for unit in units[external]]
    folds[beside] = NOWHERE
    if config.external == "split" and not config.splits:
        free = external & (folds == IN_EVERY_TRAINING_SET)
        folds[free] = _split_external(labelled[free], units[free], config)
    check_folds(labelled, folds, config, domains)
    return folds


def training_rows(labelled: pd.DataFrame, folds: np.ndarray, config: FoldsConfig, fold: int) -> np.ndarray:
    """Chooses the rows to train on when a fold is held out.

    Where images are held out by the competition's own splits, a patient may have images in several: all images of
    a patient who is held out are left out of the training set.

    Args:
        labelled: The n labelled rows of a ``CellTable``.
        folds: n fold numbers.
        config: Kind of split.
        fold: The fold that is held out.

    Returns:
        n booleans.
    """
    away = (folds == fold) | (folds <= HOLDOUT)
    if config.left_out is not None:
        away |= folds == config.left_out
    if config.by == "image":  # patients cross on purpose
        kept: np.ndarray = ~away
    else:
        kept = ~labelled.group.isin(set(labelled.group[away])).to_numpy()
    return kept


def _choose_holdout(rows: pd.DataFrame, units: np.ndarray, config: FoldsConfig, domains: Collection[str]) -> np.ndarray:
    """Chooses the hold-out among the competition's images that are no targets: splits by name, or a share.

    The images are split as folds are, into as many parts as make the share up: .1 is one part of ten, .15 three of
    twenty. The parts are taken that bring the number of each class closest to its share.
    """
    if not isinstance(config.holdout, float):
        named = [of_split(rows, name, "folds.holdout") for name in config.holdout_splits if name not in domains]
        return np.any(named, axis=0) if named else np.zeros(len(rows), dtype=bool)
    share = Fraction(config.holdout).limit_denominator(20)
    kind = "image" if config.by == "image" else "group"
    settings = config.model_copy(update={"count": share.denominator, "by": kind})
    parts = _split(rows, units, settings, "folds.holdout")
    counts = pd.crosstab(parts, rows.label.to_numpy()).reindex(range(share.denominator), fill_value=0).to_numpy()
    wanted, taken = float(share) * counts.sum(axis=0), np.zeros(share.denominator, dtype=bool)
    for _ in range(share.numerator):
        away = np.abs(counts[taken].sum(axis=0) + counts - wanted).sum(axis=1)
        taken[np.where(taken, np.inf, away).argmin()] = True
    return np.asarray(taken[parts])


def of_split(rows: pd.DataFrame, name: str, key: str) -> np.ndarray:
    """Finds the rows of one of the competition's splits.

    Args:
        rows: n of the competition's labelled rows.
        name: The split.
        key: Of the configuration, for the message.

    Returns:
        n booleans.

    Raises:
        UserError: There are none.
    """
    found: np.ndarray = (rows.split == name).to_numpy()
    if not found.any():
        known = ", ".join(dict.fromkeys(rows.split))
        raise UserError(f"{key}: no labelled image is of a split '{name}'; there are {known}")
    return found


def _split(rows: pd.DataFrame, units: np.ndarray, config: FoldsConfig, key: str = "folds.count") -> np.ndarray:
    """Splits the competition's images, stratified by class, their units kept whole; or takes its own splits."""
    if config.splits:
        folds = np.full(len(rows), IN_EVERY_TRAINING_SET)
        for fold, name in enumerate(config.splits):
            folds[of_split(rows, name, "folds.splits")] = fold
        return folds
    count = len(np.unique(units))
    if count < config.count:
        raise UserError(f"{key}: {config.count} folds need as many {config.by}s, the input has {count}")
    if _most_of_a_class(rows, units if config.by == "image" else rows.index.to_numpy()) < config.count:
        raise UserError(f"{key}: no class has {config.count} images to spread over the folds; change it")
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


def check_folds(labelled: pd.DataFrame, folds: np.ndarray, config: FoldsConfig, domains: Collection[str] = ()) -> None:
    """Refuses folds that would make a score dishonest or meaningless.

    Args:
        labelled: The labelled rows of a ``CellTable``.
        folds: n fold numbers.
        config: Number of folds, kind of split, and what becomes of external images.
        domains: Splits that are target domains.

    Raises:
        UserError: A group crosses folds, an image has no fold, or a fold has none of the competition's images.
    """
    own = ~labelled.is_external.to_numpy()
    unsplit = (folds == IN_EVERY_TRAINING_SET) & ((~own & (config.external == "train")) | bool(config.splits))
    copies = config.by == "image" and bool(config.splits)
    held = (folds <= HOLDOUT) & (config.holdout is not None or bool(domains) or copies)
    outside = ~np.isin(folds, range(config.count)) & ~unsplit & ~held
    if outside.any():
        raise UserError(f"folds: {labelled.image_id[outside].iloc[0]} has no fold of 0..{config.count - 1}")
    sizes = np.bincount(folds[own & (folds >= 0)], minlength=config.count)
    if (sizes == 0).any():
        raise UserError(f"folds.count: fold {int(np.argmin(sizes))} is empty, too few groups; lower folds.count")
    if config.by == "group":
        placed = np.maximum(folds, HOLDOUT)  # what is nowhere lies beside the hold-out's images
        spread = pd.Series(placed).groupby(labelled.group.to_numpy()).nunique()
        crossing = spread[spread > 1]
        if len(crossing):
            raise UserError(
                f"folds: group {crossing.index[0]} is in {crossing.iloc[0]} folds ({len(crossing)} groups cross); "
                "training on it would leak patients. Split again, or name an image-level split with folds.by: image"
            )


def take_up_folds(
    saved: pd.DataFrame, labelled: pd.DataFrame, config: FoldsConfig, domains: Collection[str] = ()
) -> np.ndarray:
    """Takes up the split that a run saved, which outlives changes of scikit-learn.

    Args:
        saved: The run's image_id, group and fold.
        labelled: The labelled rows of a ``CellTable``.
        config: Number of folds and kind of split.
        domains: Splits that are target domains.

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
    check_folds(labelled, folds, config, domains)
    return folds
