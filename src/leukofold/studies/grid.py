"""What a study is: axes of levels, whose product is a grid of runs, and the published values beside them.

A study is one YAML file below ``configs/studies/``; every key is explained in ``Study``. Files it names are
looked for beside it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from leukofold.blending.loading import STUDIES
from leukofold.config import Config, load_config, run_name
from leukofold.errors import UserError, suggest
from leukofold.layers import Section, load_layers
from leukofold.metrics import METRICS

View = Literal["single", "tta"]

ENSEMBLE = "ensemble"
"""The level of the ensemble's axis under which its rows stand."""

RESULT_COLUMNS = (
    "views",
    "metric",
    "value",
    "low",
    "high",
    "std",
    "published",
    "folds",
    "images",
    "split_by",
    "rendered",
    "runs",
)
"""Columns of ``table.csv`` after the axes, so no axis can have such a name."""

Files = Annotated[tuple[Path, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]


class Level(Section):
    """What one level of an axis changes."""

    config: Files = Field((), description="configuration file, or a list of them, laid over the base")
    set: dict[str, Any] = Field({}, description="dotted keys and their values; they win over all files")

    @model_validator(mode="before")
    @classmethod
    def _name_known_keys(cls, given: Any) -> Any:
        """Refuses unknown keys here: behind names of the user's choice, the layers cannot tell the known ones."""
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key '{key}'; {suggest(str(key), list(cls.model_fields))}")
        return given


class Study(Section):
    """A grid of configurations and how its results are told."""

    title: str = Field("", description="printed over the table; empty: the study's name")
    note: str = Field("", description="printed under the title")
    base: Files = Field((), description="configurations under every run")
    set: dict[str, Any] = Field({}, description="dotted keys of every run and their values; levels win over them")
    axes: dict[str, dict[str, Level]] = Field({}, description="axis -> level -> what it changes; runs are the product")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="values of training.seed")
    ensemble: str | None = Field(None, description="axis whose levels' logits are averaged, in rows of their own")
    views: tuple[View, ...] = Field(("single", "tta"), min_length=1, description="without and with TTA")
    metrics: tuple[str, ...] = Field(("macro_f1",), min_length=1, description="of leukofold.metrics; headline first")
    compare: tuple[str, ...] = Field((), description="axes whose levels are compared with their first one, in pairs")
    published: tuple[dict[str, Any], ...] = Field(
        (), description="rows of a publication: a level for each axis, views, and values of metrics"
    )

    @model_validator(mode="after")
    def _levels_are_names(self) -> "Study":
        """Makes names of the levels in published rows, where YAML reads a number."""
        for row in self.published:
            row.update({axis: str(row[axis]) for axis in self.axes if axis in row})
        return self


@dataclass(frozen=True)
class StudyRun:
    """One cell of the grid under one seed.

    Attributes:
        name: The run's name.
        levels: Axis -> level.
        seed: The training's.
        config: The resolved configuration.
    """

    name: str
    levels: dict[str, str]
    seed: int
    config: Config


@dataclass(frozen=True)
class Grid:
    """A study with its runs.

    Attributes:
        name: The study's name; runs lie below it.
        study: What its file says.
        runs: All runs, levels of the last axis changing fastest, then seeds.
    """

    name: str
    study: Study
    runs: tuple[StudyRun, ...]

    def combinations(self) -> list[dict[str, str]]:
        """Returns every row's levels, in the order of the axes, each ensemble after its members' axis."""
        levels = [[*names, ENSEMBLE] if axis == self.study.ensemble else [*names] for axis, names in self._axes()]
        return [dict(zip(self.study.axes, chosen, strict=True)) for chosen in itertools.product(*levels)]

    def members(self, levels: Mapping[str, str], seed: int) -> list[StudyRun]:
        """Returns the runs that a row is made of: one, or an ensemble's, under one seed."""
        fixed = {axis: level for axis, level in levels.items() if (axis, level) != (self.study.ensemble, ENSEMBLE)}
        return [run for run in self.runs if run.seed == seed and fixed.items() <= run.levels.items()]

    def published(self, levels: Mapping[str, str], view: str, metric: str) -> float | None:
        """Returns the published value of a row; None where there is none."""
        key = {**levels, "views": view}
        row = next((row for row in self.study.published if key.items() <= row.items()), {})
        return row.get(metric)

    def select(self, only: Sequence[str]) -> list[StudyRun]:
        """Chooses the runs to train.

        Args:
            only: ``AXIS=LEVEL`` words; levels of one axis add up, axes narrow each other down.

        Returns:
            The runs, in the grid's order; all where ``only`` is empty.

        Raises:
            UserError: A word names no axis or no level.
        """
        wanted: dict[str, set[str]] = {}
        for word in only:
            axis, _, level = word.partition("=")
            _need_known(f"--only {word}: axis", axis, list(self.study.axes))
            _need_known(f"--only {word}: level of {axis}", level, list(self.study.axes[axis]))
            wanted.setdefault(axis, set()).add(level)
        return [run for run in self.runs if all(run.levels[axis] in levels for axis, levels in wanted.items())]

    def _axes(self) -> list[tuple[str, list[str]]]:
        """Returns each axis and its levels' names."""
        return [(axis, list(levels)) for axis, levels in self.study.axes.items()]


def load_study(
    path: Path, name: str | None = None, configs: Sequence[Path] = (), overrides: Sequence[str] = ()
) -> Grid:
    """Reads a study and settles the configuration of each run.

    A run's files are laid over each other in this order: the base, its levels' files in the order of the
    axes, ``configs``. Over them come what the study and its levels ``set``, the seed, and ``overrides``.

    Args:
        path: The study's YAML file.
        name: The study's name; None: the file's path below ``configs/``. It gets ``studies/`` in front.
        configs: Configurations laid over every run's files.
        overrides: ``dotted.key=value`` strings laid over everything.

    Returns:
        The grid.

    Raises:
        UserError: A file is missing, a key or a name is unknown, a value does not fit, or two runs are the same.
    """
    study = load_layers(Study, [path])
    _check_names(study, path)
    _check_results(study, path)
    name = name or run_name([path])
    name = name if name.startswith(STUDIES) else f"{STUDIES}{name}"  # where blending does not look by itself
    runs: list[StudyRun] = []
    for chosen in itertools.product(*study.axes.values()):
        levels = dict(zip(study.axes, chosen, strict=True))
        for seed in study.seeds:
            run = f"{name}/{'-'.join(chosen)}" + (f"-seed{seed}" if len(study.seeds) > 1 else "")
            runs.append(StudyRun(run, levels, seed, _resolve(study, path, run, levels, seed, configs, overrides)))
    for one, other in itertools.combinations(runs, 2):
        if one.config == other.config:
            raise UserError(
                f"{path}: {one.name} and {other.name} have the same configuration; their levels differ in nothing"
            )
    return Grid(name, study, tuple(runs))


def _resolve(
    study: Study,
    path: Path,
    run: str,
    levels: Mapping[str, str],
    seed: int,
    configs: Sequence[Path],
    overrides: Sequence[str],
) -> Config:
    """Resolves the configuration of one run; its mistakes are told with the run's name."""
    chosen = [study.axes[axis][level] for axis, level in levels.items()]
    files = [path.parent / file for file in (*study.base, *(file for level in chosen for file in level.config))]
    settings = [study.set, *(level.set for level in chosen)]
    changes = [f"{key}={_as_yaml(value)}" for each in settings for key, value in each.items()]
    try:
        return load_config([*files, *configs], [*changes, f"training.seed={seed}", *overrides])
    except UserError as error:
        raise UserError(f"{run}: {error}") from None


def _as_yaml(value: Any) -> str:
    """Writes a value as YAML in one line; inside a list, where scalars need no end mark."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf"), sort_keys=False).strip()[1:-1]


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
        if axis in (*RESULT_COLUMNS, *METRICS):
            raise UserError(f"{path}: axes.{axis}: the table has a column of that name; choose another")
        if ENSEMBLE in levels:
            raise UserError(f"{path}: axes.{axis}: '{ENSEMBLE}' is the name of averaged runs; choose another")
    for key, axes in (("ensemble", [study.ensemble] if study.ensemble else []), ("compare", study.compare)):
        for axis in axes:
            _need_known(f"{path}: {key}: axis", axis, list(study.axes))


def _check_results(study: Study, path: Path) -> None:
    """Refuses metrics that are unknown, repetitions, and published rows that are no rows of the table."""
    for metric in study.metrics:
        _need_known(f"{path}: metrics: metric", metric, list(METRICS))
    for key in ("seeds", "views", "metrics", "compare"):
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
    seen: list[dict[str, Any]] = []
    for number, row in enumerate(study.published, start=1):
        where = f"{path}: published row {number}:"
        columns = {
            axis: [*levels, *([ENSEMBLE] if axis == study.ensemble else [])] for axis, levels in study.axes.items()
        }
        columns["views"] = list(study.views)
        for column, known in columns.items():
            if column not in row:
                raise UserError(f"{where} no '{column}'; a row names a level of every axis, and its views")
            _need_known(f"{where} level of {column}", str(row[column]), known)
        place = {column: row[column] for column in columns}
        if place in seen:
            raise UserError(f"{where} an earlier row has the same levels and views; keep one of them")
        seen.append(place)
        for metric, value in row.items():
            if metric in columns:
                continue
            _need_known(f"{where} key", metric, [*columns, *study.metrics])
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"{where} {metric}: expected a number from 0 to 1, got {value!r}")


def _need_known(what: str, name: str, known: Sequence[str]) -> None:
    """Refuses a name that is not known, with the nearest known one."""
    if name not in known:
        raise UserError(f"{what} '{name}' is unknown; {suggest(name, known)}")
