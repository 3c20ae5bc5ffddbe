"""What a study's file says: axes of levels, how results are scored and compared, and what was published.

Every key is explained here. What can be checked before any run's configuration is known is checked here too.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from leukofold.blending.loading import Mean
from leukofold.errors import UserError, suggest
from leukofold.layers import Section
from leukofold.metrics import metric_titles

View = Literal["single", "tta"]

VIEWS = "views"
"""What compares views where axes are named."""

UNLABELLED_NAME = "unlabelled"
"""The class under which a composition counts images without a label."""

SCORED_ON = ("folds", "holdout")
"""What rows are scored on besides splits and target domains by name: images out of fold, or all of the hold-out."""

SEED = "seed"
"""What chooses runs of a seed where axes are named."""

COSTS = ("multiply_adds", "parameters")
"""What a publication may tell of a network's cost, in millions."""

SPREAD = ("mean", "std", "ci", "min", "max")
"""What a publication may tell of a value; ci: half of its 95 % interval."""

OF_A_CLASS = ("precision", "recall", "f1")
"""What a publication may tell of a class."""

KNOWN_METRICS = metric_titles(2)
"""Every metric that a study may name; those of two classes alone are checked when the runs are known."""

RESULT_COLUMNS = (
    "on",
    "views",
    "metric",
    "value",
    "low",
    "high",
    "std",
    "min",
    "max",
    "published",
    "published_std",
    "published_ci",
    "published_min",
    "published_max",
    *COSTS,
    "folds",
    "images",
    "split_by",
    "rendered",
    "runs",
)
"""Columns of ``table.csv`` after the axes, so no axis can have such a name."""

Files = Annotated[tuple[Path, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]


class _Named(Section):
    """A part of a study that stands where layers cannot tell the known keys: in a list, or under names of choice."""

    @model_validator(mode="before")
    @classmethod
    def _name_keys(cls, given: Any) -> Any:
        """Refuses unknown keys, with the nearest known one, and names those that lack."""
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'; {suggest(str(key), list(cls.model_fields))}")
            for key, field in cls.model_fields.items():
                if field.is_required() and key not in given:
                    raise ValueError(f"no '{key}' there")
        return given


class Level(_Named):
    """What one level of an axis changes."""

    config: Files = Field((), description="configuration file, or a list of them, laid over the base")
    set: dict[str, Any] = Field({}, description="dotted keys and their values; they win over all files")
    teachers: tuple[str, ...] = Field(
        (),
        description="levels of the same axis, earlier ones, whose runs (of the same other levels and seed) teach this "
        "level's: distillation.teachers",
    )
    note: str = Field("", description="what has to be known of the level's numbers; printed below the table")


class Ensemble(_Named):
    """Runs averaged, in a row of their own."""

    axis: str = Field(description="the axis whose levels are averaged")
    levels: tuple[str, ...] = Field((), description="those levels; none: all of the axis")
    mean: Mean = Field("logits", description="what is averaged: logits, or probabilities")
    name: str = Field("ensemble", description="what its rows are called, as if it were a level of the axis")


class LookedAt(_Named):
    """A row whose run is looked at closely: its classes, its confusion, its patients."""

    levels: dict[str, str] = Field(description="axis -> level")
    on: str = Field("folds", description="what it is scored on")
    published: dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]] = Field(
        {}, description="class -> precision, recall and f1 of a publication"
    )


class Maps(_Named):
    """Which networks' features are drawn as maps (t-SNE), a panel each, the parts of the data side by side."""

    levels: tuple[dict[str, str], ...] = Field(min_length=1, description="axis -> level, for each panel")
    on: tuple[str, ...] = Field(min_length=1, max_length=7, description="splits or target domains, a mark each")
    per_class: int = Field(39, ge=1, description="images of each class and part at most, drawn at random")


class DataPart(_Named):
    """A part of the data, as a publication counts it; counted ours beside it."""

    part: str = Field(description="the publication's name of it")
    splits: tuple[str, ...] = Field(min_length=1, description="the competition's own splits that make it up")
    groups: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="class -> published number of subjects")
    images: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="class, or unlabelled -> published number of images"
    )


class Study(Section):
    """A grid of configurations and how its results are told."""

    title: str = Field("", description="printed over the table; empty: the study's name")
    note: str = Field("", description="printed under the title")
    base: Files = Field((), description="configurations under every run")
    set: dict[str, Any] = Field({}, description="dotted keys of every run and their values; levels win over them")
    axes: dict[str, dict[str, Level]] = Field({}, description="axis -> level -> what it changes; runs are the product")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="values of training.seed")
    ensemble: Annotated[
        Ensemble | None, BeforeValidator(lambda given: {"axis": given} if isinstance(given, str) else given)
    ] = Field(None, description="an axis whose levels are averaged in rows of their own: its name, or more (Ensemble)")
    on: tuple[str, ...] = Field(
        ("folds",),
        min_length=1,
        description="folds: rows of the images out of fold; holdout: rows of the images that no fold trains on or "
        "selects by (folds.holdout, data.domains); or a split or a target domain that runs hold out, by its name",
    )
    over: Literal["pooled", "folds"] = Field(
        "pooled",
        description="pooled: all images are scored together, those of the hold-out by the mean logits of the folds' "
        "networks; folds: each fold is scored alone, the hold-out by each fold's network, and the table has "
        "mean and standard deviation (n - 1) over folds",
    )
    spread: Literal["deviation", "interval"] = Field(
        "deviation",
        description="what stands behind the mean over seeds or folds; deviation: the standard deviation (n - 1); "
        "interval: half of the mean's 95 % interval (Student's t)",
    )
    views: tuple[View, ...] = Field(("single", "tta"), min_length=1, description="without and with TTA")
    metrics: tuple[str, ...] = Field(("macro_f1",), min_length=1, description="of leukofold.metrics; headline first")
    compare: tuple[str, ...] = Field(
        (),
        description="axes whose levels are compared with their first one, in pairs; views: each view with the first",
    )
    published: tuple[dict[str, Any], ...] = Field(
        (),
        description="rows of a publication: a level for each axis, views, on where there are several, and values of "
        "metrics: a number from 0 to 1, or some of mean, std, ci, min and max",
    )
    look_at: LookedAt | None = Field(
        None,
        description="the row of which the run nearest to the mean over seeds is looked at; null: the best run of all",
    )
    complexity: bool = Field(False, description="multiply-adds of one cell, and parameters, in the table")
    confidences: dict[str, str] | None = Field(
        None,
        description="axis -> level of MM-MIMO runs whose heads' confidences are drawn: of cells with all their images, "
        "and with one of them in the place of all",
    )
    maps: Maps | None = Field(None, description="networks whose features are drawn as maps; null: none")
    composition: tuple[DataPart, ...] = Field((), description="the data as a publication counts them")

    @model_validator(mode="after")
    def _levels_are_names(self) -> "Study":
        """Makes names of the levels in published rows, where YAML reads a number."""
        for row in self.published:
            row.update({axis: str(row[axis]) for axis in self.axes if axis in row})
            if len(self.on) == 1:
                row.setdefault("on", self.on[0])
        return self

    def check(self, path: Path) -> None:
        """Refuses what the schema cannot: unknown and ambiguous names, repetitions, rows that are no rows of the table.

        Args:
            path: The study's file, for the messages.

        Raises:
            UserError: Something is wrong; says what and where.
        """
        _check_names(self, path)
        _check_results(self, path)
        _check_published(self, path)
        _check_looks(self, path)


def need_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is not known, with the nearest known one."""
    if name not in known:
        raise UserError(f"{what} '{name}' is unknown; {suggest(name, list(known))}")


def _check_names(study: Study, path: Path) -> None:
    """Refuses names of axes and levels that cannot be told apart from others, or make no folder's name."""
    if not study.axes:
        raise UserError(f"{path}: axes: name at least one axis, and its levels")
    for axis, levels in study.axes.items():
        if not levels:
            raise UserError(f"{path}: axes.{axis}: name at least one level")
        for name in (axis, *levels):
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise UserError(f"{path}: axes.{axis}: '{name}' is no name; take lower-case letters, digits and _")
        if axis in (*RESULT_COLUMNS, *KNOWN_METRICS, SEED):
            raise UserError(f"{path}: axes.{axis}: the table has a column of that name; choose another")
        _check_teachers(levels, f"{path}: axes.{axis}")
    if study.ensemble:
        ensemble = study.ensemble
        need_known(f"{path}: ensemble: axis", ensemble.axis, study.axes)
        if ensemble.name in study.axes[ensemble.axis]:
            raise UserError(
                f"{path}: axes.{ensemble.axis}: '{ensemble.name}' is the name of averaged runs; choose another"
            )
        for level in ensemble.levels:
            need_known(f"{path}: ensemble: level of {ensemble.axis}", level, study.axes[ensemble.axis])
    for axis in study.compare:
        need_known(f"{path}: compare: axis", axis, [*study.axes, VIEWS])


def _check_teachers(levels: Mapping[str, Level], where: str) -> None:
    """Refuses teachers that are not trained before those they teach."""
    earlier: list[str] = []
    for name, level in levels.items():
        for teacher in level.teachers:
            need_known(f"{where}.{name}.teachers: level", teacher, levels)
            if teacher not in earlier:
                raise UserError(f"{where}.{name}.teachers: {teacher} is trained later; put it before {name}")
        earlier.append(name)


def _check_results(study: Study, path: Path) -> None:
    """Refuses metrics that are unknown, repetitions, and seeds in the wrong place."""
    for metric in study.metrics:
        need_known(f"{path}: metrics: metric", metric, KNOWN_METRICS)
    for key in ("seeds", "on", "views", "metrics", "compare"):
        values = getattr(study, key)
        if len(set(values)) < len(values):
            raise UserError(f"{path}: {key}: a value stands twice; keep one of each")
    settings = {"set": study.set}
    settings |= {
        f"axes.{axis}.{n}.set": level.set for axis, levels in study.axes.items() for n, level in levels.items()
    }
    for where, values in settings.items():
        if "training.seed" in values:
            raise UserError(f"{path}: {where}: training.seed is not set here; name the seeds under seeds:")


def _check_published(study: Study, path: Path) -> None:
    """Refuses published rows that are no rows of the table, or values that are none."""
    columns: dict[str, Sequence[str]] = {
        axis: [*levels, *([study.ensemble.name] if study.ensemble and axis == study.ensemble.axis else [])]
        for axis, levels in study.axes.items()
    }
    columns |= {VIEWS: study.views, "on": study.on}
    seen: list[dict[str, Any]] = []
    for number, row in enumerate(study.published, start=1):
        where = f"{path}: published row {number}:"
        for column, known in columns.items():
            if column not in row:
                also = " and what it is scored on" if len(study.on) > 1 else ""
                raise UserError(f"{where} no '{column}'; a row names a level of every axis, its views{also}")
            need_known(f"{where} level of {column}", str(row[column]), known)
        place = {column: row[column] for column in columns}
        if place in seen:
            raise UserError(f"{where} an earlier row has the same levels and views; keep one of them")
        seen.append(place)
        for metric, value in row.items():
            if metric in columns:
                continue
            costs = COSTS if study.complexity else ()
            need_known(f"{where} key", str(metric), [*columns, *study.metrics, *costs])
            if metric in costs:
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise UserError(f"{where} {metric}: expected a number of millions, got {value!r}")
                continue
            _check_value(f"{where} {metric}:", value)


def _check_looks(study: Study, path: Path) -> None:
    """Refuses rows to look at that are no rows of the table, and maps of no networks."""
    chosen = [("look_at", study.look_at.levels)] if study.look_at else []
    chosen += [("maps", levels) for levels in study.maps.levels] if study.maps else []
    chosen += [("confidences", study.confidences)] if study.confidences else []
    for key, levels in chosen:
        for axis in study.axes:
            if axis not in levels:
                raise UserError(f"{path}: {key}: levels: no '{axis}'; name a level of every axis")
        for axis, level in levels.items():
            need_known(f"{path}: {key}: levels: axis", axis, study.axes)
            need_known(f"{path}: {key}: level of {axis}", level, study.axes[axis])
    if study.look_at is not None:
        need_known(f"{path}: look_at: on:", study.look_at.on, study.on)
        for name, values in study.look_at.published.items():
            for measure in values:
                need_known(f"{path}: look_at: published: {name}:", measure, OF_A_CLASS)


def _check_value(where: str, value: Any) -> None:
    """Refuses what is neither a number from 0 to 1 nor a mapping of such numbers."""
    if isinstance(value, dict):
        for name, number in value.items():
            need_known(where, str(name), SPREAD)
            _check_value(f"{where} {name}:", number)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{where} expected a number from 0 to 1, got {value!r}")
