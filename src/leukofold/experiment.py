"""Everything that is settled before the first weight is drawn: data, folds and where results go."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukofold.cells import UNLABELLED, CellTable, image_files, modalities
from leukofold.competitions import Competition, get_competition
from leukofold.config import Config
from leukofold.corrections import LEAKING_LISTS, made_with, read_corrections
from leukofold.domains import read_domain
from leukofold.duplicates import find_duplicates, merge_groups, number_sets
from leukofold.errors import UserError
from leukofold.external import read_source
from leukofold.files import alone, beside_lock
from leukofold.folds import HOLDOUT, NOWHERE, assign_folds, of_split, take_up_folds, training_rows
from leukofold.images.cellimages import CellImages, open_images
from leukofold.images.preparing import Preparation
from leukofold.images.reading import survey_images
from leukofold.provenance import git_commit, library_versions
from leukofold.rendering import RenderSpec, is_current, render, rendered_info
from leukofold.runs import RunFolder

DEBUG_IMAGES = 32  # of the competition and of external data, per fold, and of the test set


@dataclass(frozen=True)
class Experiment:
    """A configuration that has met its data.

    Attributes:
        config: The resolved configuration.
        run: Where results go.
        competition: Whose files they are.
        table: All cells; the groups of images that are the same are merged.
        input_fingerprint: Of the cells as they were read, before that.
        labelled: n rows to train on and score.
        folds: n fold numbers.
        training_label: Held-out fold -> n class indices, as lists of label issues want them trained on; ``UNLABELLED``
            where one leaves the image out. See ``trained_label`` for what is.
        test: The rows to predict.
        images: Every one of these rows' images, prepared.
        duplicates: The pairs of images that are the same, over the whole table; see ``find_duplicates``.
        patients: Whether the data name patients.
        rendered: Whether the project drew the images itself.
        debug: Whether this is a few batches of everything only.
    """

    config: Config
    run: RunFolder
    competition: Competition
    table: CellTable
    input_fingerprint: str
    labelled: pd.DataFrame
    folds: np.ndarray
    training_label: Mapping[int, np.ndarray]
    test: pd.DataFrame
    images: CellImages
    duplicates: pd.DataFrame
    patients: bool
    rendered: bool
    debug: bool

    @property
    def split_by(self) -> str:
        """What keeps training and held-out images apart: ``group``, ``split``, or ``image`` without known patients."""
        return self.config.folds.by if self.patients else "image"

    @cached_property
    def copies(self) -> pd.Series:
        """The set of equal images that each cell of the table is of: image id -> number of the set."""
        return pd.Series(number_sets(len(self.table.frame), self.duplicates), self.table.frame.image_id)

    @cached_property
    def test_copies(self) -> int:
        """Number of labelled images that equal a test image; the test set is the whole one."""
        labelled, copies = self.table.is_labelled, self.copies.to_numpy()
        return int(np.isin(copies[labelled], copies[~labelled]).sum())

    def trained_label(self, fold: int) -> np.ndarray:
        """Returns n class indices to train on when a fold is held out, ``UNLABELLED`` where an image is left out.

        Beside what a list leaves out it is images that would be trained on though they equal a scored one: any test
        image, and, where folds may part copies (by image), one that is held out, of the hold-out, or of a fold that no
        network is to see.
        """
        unseen = np.isin(self.folds, [k for k in (fold, HOLDOUT, self.config.folds.left_out) if k is not None])
        copies = self.copies[self.labelled.image_id].to_numpy()
        scored = np.concatenate([copies[unseen], self.copies.to_numpy()[~self.table.is_labelled]])
        copied = self._kept(fold) & np.isin(copies, scored)
        return np.where(copied, UNLABELLED, self.training_label[fold])

    def training_rows(self, fold: int) -> pd.DataFrame:
        """Returns what is trained on when a fold is held out, under the labels to train on; index 0..n-1."""
        label = self.trained_label(fold)
        rows: pd.DataFrame = self.labelled.assign(label=label)[self._kept(fold) & (label != UNLABELLED)]
        return rows.reset_index(drop=True)

    def _kept(self, fold: int) -> np.ndarray:
        """Returns which labelled rows the folds leave to train on."""
        return training_rows(self.labelled, self.folds, self.config.folds, fold)

    def fold_rows(self, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns the rows that are trained on and those that are held out, each with index 0..n-1.

        Raises:
            UserError: No image is left to train on.
        """
        train = self.training_rows(fold)
        held_out: pd.DataFrame = self.labelled[self.folds == fold].reset_index(drop=True)
        if train.empty:
            raise UserError(
                f"fold {fold}: nothing is left to train on, the patients of all images are held out; where parts of "
                "the data share patients, folds.by: image trains on them all the same, and says so"
            )
        return train, held_out

    @property
    def holdout(self) -> pd.DataFrame:
        """The competition's images that no fold trains on or is chosen by; index 0..n-1."""
        rows: pd.DataFrame = self.labelled[self.folds == HOLDOUT]
        return rows.reset_index(drop=True)

    @property
    def corrected(self) -> tuple[int, int]:
        """Most images that a fold's training leaves out, and most that it sees under another label than given."""
        given = self.labelled.label.to_numpy()
        labels = self.training_label.values()
        left_out = max(int((label == UNLABELLED).sum()) for label in labels)
        return left_out, max(int(((label != given) & (label != UNLABELLED)).sum()) for label in labels)

    def metadata(self, fold: int) -> dict[str, Any]:
        """Tells all that the fold's result depends on, and where it came from."""
        return {
            "run": self.run.name,
            "fold": fold,
            "competition": self.competition.name,
            "metric": self.competition.metric,
            "class_names": list(self.table.class_names),
            "rendered": self.rendered,
            "debug": self.debug,
            "split_by": self.split_by,
            "modalities": list(self.images.modalities),
            "input": str(self.config.data.root),
            "external": sorted(self.config.data.external),
            "input_fingerprint": self.input_fingerprint,
            "data_fingerprint": self.table.fingerprint(),
            "corrections_sha256": self._corrections_digest(),
            "label_lists": made_with(self.config.data),
            "test_copies": self.test_copies,
            "config_digest": self.config.digest(),
            "config": self.config.resolved(),
            "commit": git_commit(),
            "versions": library_versions(),
        }

    def _corrections_digest(self) -> str | None:
        """Digests the labels to train on: the path of a list does not tell what is in it; None: as given."""
        labels = np.stack([self.trained_label(fold) for fold in self.training_label]).astype(np.int64)
        if (labels == self.labelled.label.to_numpy()).all():
            return None
        return hashlib.sha256(labels.tobytes()).hexdigest()


def read_cells(config: Config, progress: bool = True) -> CellTable:
    """Reads the competition's cells and those of the external data sets; draws what is to be rendered.

    Args:
        config: The resolved configuration.
        progress: Whether to show progress bars.

    Returns:
        The table, the competition's rows first.

    Raises:
        UserError: Files are missing, or a list or a class is not what it should be.
    """
    data = config.data
    _render(data.competition, data.root, data.render, progress)
    table = read_competition(config)
    frames = [table.frame]
    if data.external and modalities(table.frame):
        raise UserError("data.external: their cells have one image each, the competition's several; take it out")
    for name, source in data.external.items():
        if name == data.competition:
            raise UserError(f"data.external.{name}: is what is trained on already; take it out")
        _render(name, external_root(config, name), source.render, progress)
        frames.append(read_external(config, name, table.class_names))
    return CellTable(pd.concat(frames, ignore_index=True), table.class_names)


def read_competition(config: Config) -> CellTable:
    """Reads the competition's cells: all, or the labelled ones of some of its splits and the test images; then domains.

    Raises:
        UserError: As the competition's ``read``, a split has no labelled image, or a target domain cannot be read or
            has the name of a split.
    """
    table = get_competition(config.data.competition).read(config.data.root)
    if config.data.splits is not None:
        chosen = [of_split(table.labelled, name, "data.splits") for name in config.data.splits]
        kept = ~table.is_labelled
        kept[table.is_labelled] = np.any(chosen, axis=0)
        table = CellTable(table.frame[kept].reset_index(drop=True), table.class_names)
    frames = [table.frame]
    several = modalities(table.frame)
    for name in config.data.modalities or ():
        if name not in several:
            known = f"there are {', '.join(several)}" if several else "its cells have one image each; leave it out"
            raise UserError(f"data.modalities: {config.data.competition} has no '{name}'; {known}")
    if config.data.domains and several:
        raise UserError("data.domains: their cells have one image each, the competition's several; take it out")
    for name, domain in config.data.domains.items():
        if name in {*table.frame.split, *get_competition(config.data.competition).published_counts}:
            raise UserError(f"data.domains.{name}: the competition has a split of that name; choose another")
        frames.append(read_domain(name, domain.root, table.class_names, domain.names))
    return CellTable(pd.concat(frames, ignore_index=True), table.class_names)


def modalities_seen(config: Config) -> Sequence[str]:
    """Returns the images of a cell that a run's network is to see, before any file is read; none where there is one."""
    return config.data.modalities or get_competition(config.data.competition).modalities


def held_out_always(config: Config) -> tuple[str, ...]:
    """Returns the splits that no fold trains on whatever the folds: the competition's targets, and target domains."""
    targets = get_competition(config.data.competition).targets
    return (*(name for name in targets if name not in config.folds.splits), *config.data.domains)


def external_root(config: Config, name: str) -> Path:
    """Returns the folder of an external data set's files."""
    return config.data.external[name].root or Path("input/external") / name


def read_external(config: Config, name: str, class_names: Sequence[str]) -> pd.DataFrame:
    """Reads the rows of one external data set; what is rendered may be of any size."""
    source = config.data.external[name]
    partial = source.partial or source.render is not None
    return read_source(name, external_root(config, name), class_names, source.classes, partial)


def open_experiment(config: Config, run: RunFolder, debug: bool = False, progress: bool = True) -> Experiment:
    """Reads the data of a configuration, checks every image, settles the folds and prepares the images.

    Args:
        config: The resolved configuration.
        run: Where results go.
        debug: Keep a few images of each fold and of the test set, and train two epochs.
        progress: Whether to show progress bars.

    Returns:
        The experiment.

    Raises:
        UserError: Files are missing or unreadable, or the folds cannot be made.
    """
    data = config.data
    competition = get_competition(data.competition)
    preparation = Preparation(config.image, competition.preprocess)
    table = read_cells(config, progress)
    _need_known_crops(config, competition, table)
    input_fingerprint, files = table.fingerprint(), image_files(table.frame)
    hashes = survey_images(files, data.cache, progress)
    pairs = find_duplicates(table.frame, hashes, data.cache, progress)
    external = table.frame.is_external.to_numpy()
    grouped = table.frame.assign(group=merge_groups(table.frame.group.tolist(), pairs, external))
    units = grouped.group.to_numpy()
    if config.folds.by == "image":
        units = merge_groups(table.frame.image_id.tolist(), pairs, external)
    patients = competition.has_patients and table.knows_patients
    table = CellTable(grouped, table.class_names)
    targets = held_out_always(config)
    labelled, test = table.labelled, table.test
    # A split made by other settings is not taken up: either all its folds are replaced, or need_same refuses
    if run.folds_csv.exists() and run.split_settings() == config.folds and not debug:
        folds = take_up_folds(run.split(), labelled, config.folds, targets)
    else:
        folds = assign_folds(labelled, units[table.is_labelled], config.folds, targets)
    training_label = read_corrections(data, labelled, table.class_names, folds, config.folds.numbers)
    if debug:
        kept = _a_few(labelled, folds)
        labelled, folds, test = labelled.iloc[kept].reset_index(drop=True), folds[kept], test.head(DEBUG_IMAGES)
        training_label = {fold: label[kept] for fold, label in training_label.items()}
        epochs = min(2, config.training.epochs)
        config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})
    images = open_images(pd.concat([labelled, test]), preparation, competition.name, data, progress)
    rendered = _any_rendered(files.path)
    return Experiment(
        config,
        run,
        competition,
        table,
        input_fingerprint,
        labelled,
        folds,
        training_label,
        test,
        images,
        pairs,
        patients,
        rendered,
        debug,
    )


def _need_known_crops(config: Config, competition: Competition, table: CellTable) -> None:
    """Refuses a crop for a part that the data do not have."""
    data = config.data
    parts = dict.fromkeys((*competition.published_counts, *data.domains, *data.external, *table.frame.split))
    unknown = [name for name in config.image.crops if name not in parts]
    if unknown:
        raise UserError(f"image.crops: there is no split or target domain '{unknown[0]}'; known are {', '.join(parts)}")


def _a_few(labelled: pd.DataFrame, folds: np.ndarray) -> np.ndarray:
    """Chooses a few rows of each fold, of the competition and of external data; classes in turn: files lie by class."""
    place = pd.DataFrame({"fold": folds, "external": labelled.is_external, "label": labelled.label})
    place["part"] = labelled.split.where(folds == HOLDOUT, "")  # a few of every target
    turn = place.groupby(["fold", "external", "part", "label"]).cumcount()
    in_turn = place.loc[turn.sort_values(kind="stable").index]
    return np.sort(in_turn.groupby(["fold", "external", "part"]).head(DEBUG_IMAGES).index.to_numpy())


def _any_rendered(paths: pd.Series) -> bool:
    """Tells whether an image lies anywhere below a rendered folder."""
    folders = {Path(folder) for folder in {os.path.dirname(path) for path in paths}}
    return any(rendered_info(above) is not None for above in {above for f in folders for above in (f, *f.parents)})


def _render(name: str, root: Path, spec: RenderSpec | None, progress: bool) -> None:
    """Draws a folder that the configuration wants drawn, unless it is there already."""
    if spec is None or is_current(root, name, spec):
        return
    with alone(beside_lock(root), f"is drawing {root}" if progress else None):
        if not is_current(root, name, spec):
            render(name, root, spec, progress=progress)


def experiment_summary(experiment: Experiment) -> str:
    """Describes the data and the split in a few lines, for the log."""
    labelled, by = experiment.labelled, experiment.split_by
    own = ~labelled.is_external & ~labelled.split.isin(held_out_always(experiment.config))
    counts = np.bincount(labelled.label[own], minlength=len(experiment.table.class_names))
    classes = "  ".join(f"{name} {n}" for name, n in zip(experiment.table.class_names, counts, strict=True))
    expansion = [
        f"  + {source}: "
        + "  ".join(
            f"{name} {int((part == k).sum())}" for k, name in enumerate(experiment.table.class_names) if k in set(part)
        )
        for source, part in labelled[labelled.is_external].groupby("source", sort=False).label
    ]
    if len(experiment.duplicates):
        expansion.append(
            f"  {len(experiment.duplicates)} pairs of images are the same and kept in one fold: "
            "see scripts/check_duplicates.py"
        )
    if experiment.test_copies:
        expansion.append(f"  {experiment.test_copies} labelled images equal a test image: no fold trains on them")
    made = made_with(experiment.config.data)
    if made:
        left_out, relabelled = experiment.corrected
        expansion.append(
            f"  label issues: {left_out} images are not trained on, {relabelled} under another label"
            f"{' (the most of a fold)' if made == 'other folds' else ''}; all are scored as given"
        )
    if made == "all folds":
        expansion.append(f"  {LEAKING_LISTS}")
    if experiment.config.folds.left_out is not None:
        expansion.append(f"  fold {experiment.config.folds.left_out} is left out: no network of this run sees it")
    expansion += _holdout_lines(experiment)
    beside = int((experiment.folds == NOWHERE).sum())
    if beside:
        what = "copies of them" if by == "image" else "other images of these groups, or copies,"
        expansion.append(f"  {beside} {what} are neither trained on nor scored")
    drawn = "  (RENDERED images, drawn by this project: no result on them says anything about patients)"
    leak = "  (image-level: patients cross folds, scores are too high)" if by == "image" else ""
    if experiment.config.folds.splits:
        leak = f": {', '.join(experiment.config.folds.splits)}{leak}"
    return "\n".join(
        [
            f"{experiment.competition.title}, {experiment.config.data.root}{drawn if experiment.rendered else ''}",
            f"  {own.sum()} labelled images of {labelled.group[own].nunique()} groups, "
            f"{len(experiment.test)} to predict",
            f"  {classes}",
            *_modality_lines(experiment),
            *expansion,
            f"  {experiment.config.folds.count} fold{'' if experiment.config.folds.count == 1 else 's'} by {by}{leak}",
        ]
    )


def _modality_lines(experiment: Experiment) -> list[str]:
    """Names the images of a cell that are seen, where there are several."""
    seen = experiment.images.modalities
    others = [name for name in modalities(experiment.table.frame) if name not in seen]
    beside = f", not {', '.join(others)}" if others else ""
    return [f"  {len(seen)} images of each cell: {', '.join(seen)}{beside}"] if seen else []


def _holdout_lines(experiment: Experiment) -> list[str]:
    """Describes the parts of the hold-out: a share, splits of the competition, target domains."""
    held, config = experiment.holdout, experiment.config
    targets = held_out_always(config)
    parts: dict[str, pd.DataFrame] = {}
    if isinstance(config.folds.holdout, float):
        parts["by share"] = held[~held.split.isin(targets)]
    named = dict.fromkeys((*config.folds.holdout_splits, *targets))
    parts |= {f"the split {name}": rows for name in named if len(rows := held[held.split == name])}
    by_image = experiment.split_by == "image"
    return [
        f"  hold-out, {what}: {len(rows)} images{'' if by_image else f' of {rows.group.nunique()} groups'} "
        "that no fold trains on or is chosen by"
        for what, rows in parts.items()
    ]
