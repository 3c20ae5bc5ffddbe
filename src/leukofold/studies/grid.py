"""A study's grid: the product of its levels as runs, each with its configuration, and the published values beside them.

A study is one YAML file below ``configs/studies/``; every key is explained in ``leukofold.studies.schema.Study``. Files
it names are looked for beside it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leukofold.blending.loading import STUDIES
from leukofold.competitions import get_competition
from leukofold.config import Config, load_config, run_name
from leukofold.errors import UserError
from leukofold.experiment import held_out_always
from leukofold.layers import load_layers
from leukofold.metrics import BINARY_METRICS, metric_titles
from leukofold.studies.schema import SCORED_ON, SEED, UNLABELLED_NAME, VIEWS, Study, need_known


@dataclass(frozen=True)
class Published:
    """A published value; None: not told.

    Attributes:
        mean: The value, or its mean over seeds or folds.
        std: Its standard deviation.
        ci: Half of its 95 % interval.
        min: The lowest one.
        max: The highest one.
    """

    mean: float | None = None
    std: float | None = None
    ci: float | None = None
    min: float | None = None
    max: float | None = None


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
        levels = [
            [*names, ensemble.name] if (ensemble := self.study.ensemble) and axis == ensemble.axis else names
            for axis, names in self._axes()
        ]
        return [dict(zip(self.study.axes, chosen, strict=True)) for chosen in itertools.product(*levels)]

    def is_ensemble(self, levels: Mapping[str, str]) -> bool:
        """Tells whether a row is of averaged runs."""
        ensemble = self.study.ensemble
        return ensemble is not None and levels[ensemble.axis] == ensemble.name

    def members(self, levels: Mapping[str, str], seed: int) -> list[StudyRun]:
        """Returns the runs that a row is made of: one, or an ensemble's, under one seed."""
        wanted = {axis: [level] for axis, level in levels.items()}
        if self.study.ensemble is not None and self.is_ensemble(levels):
            axis = self.study.ensemble.axis
            wanted[axis] = [*(self.study.ensemble.levels or self.study.axes[axis])]
        return [
            run
            for run in self.runs
            if run.seed == seed and all(run.levels[axis] in known for axis, known in wanted.items())
        ]

    @property
    def titles(self) -> dict[str, str]:
        """Metric -> its name for people."""
        return metric_titles(len(get_competition(self.runs[0].config.data.competition).class_names))

    def published(self, levels: Mapping[str, str], on: str, view: str, metric: str) -> Published:
        """Returns the published value of a row, a metric's or a cost's, of which nothing may be told."""
        key = {**levels, "on": on, VIEWS: view}
        row = next((row for row in self.study.published if key.items() <= row.items()), {})
        value = row.get(metric)
        return Published(**value) if isinstance(value, dict) else Published(value)

    def select(self, only: Sequence[str]) -> list[StudyRun]:
        """Chooses the runs to train.

        Args:
            only: ``AXIS=LEVEL`` words, or ``seed=NUMBER``; levels of one axis add up, axes narrow each other down.

        Returns:
            The runs, in the grid's order; all where ``only`` is empty.

        Raises:
            UserError: A word names no axis or no level.
        """
        known = {axis: list(levels) for axis, levels in self._axes()} | {SEED: [str(k) for k in self.study.seeds]}
        wanted: dict[str, set[str]] = {}
        for word in only:
            axis, _, level = word.partition("=")
            need_known(f"--only {word}: axis", axis, list(known))
            need_known(f"--only {word}: level of {axis}", level, known[axis])
            wanted.setdefault(axis, set()).add(level)
        named = [(run, {**run.levels, SEED: str(run.seed)}) for run in self.runs]
        return [run for run, levels in named if all(levels[axis] in chosen for axis, chosen in wanted.items())]

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
    study.check(path)
    if any(override.partition("=")[0].strip() == "training.seed" for override in overrides):
        raise UserError("--set training.seed: a study has seeds of its own; choose some with --only seed=NUMBER")
    name = name or run_name([path])
    name = name if name.startswith(STUDIES) else f"{STUDIES}{name}"  # where blending does not look by itself
    runs: list[StudyRun] = []
    for chosen in itertools.product(*study.axes.values()):
        levels = dict(zip(study.axes, chosen, strict=True))
        for seed in study.seeds:
            run = _run_name(study, name, levels, seed)
            teachers = _teachers(study, name, levels, seed)
            changes = [*overrides, *([f"distillation.teachers={_as_yaml(teachers)}"] if teachers else [])]
            runs.append(StudyRun(run, levels, seed, _resolve(study, path, run, levels, seed, configs, changes)))
    for one, other in itertools.combinations(runs, 2):
        if one.config == other.config:
            raise UserError(
                f"{path}: {one.name} and {other.name} have the same configuration; their levels differ in nothing"
            )
    _check_runs(study, path, runs)
    return Grid(name, study, tuple(runs))


def _run_name(study: Study, name: str, levels: Mapping[str, str], seed: int) -> str:
    """Names a run after its levels, and after its seed where there are several."""
    return f"{name}/{'-'.join(levels.values())}" + (f"-seed{seed}" if len(study.seeds) > 1 else "")


def _teachers(study: Study, name: str, levels: Mapping[str, str], seed: int) -> list[str]:
    """Names the runs that teach a run of some levels."""
    return [
        _run_name(study, name, {**levels, axis: teacher}, seed)
        for axis, level in levels.items()
        for teacher in study.axes[axis][level].teachers
    ]


def held_out_parts(config: Config) -> tuple[str, ...]:
    """Returns the splits and the target domains that a run scores by their names."""
    return tuple(dict.fromkeys((*config.folds.splits, *config.folds.holdout_splits, *held_out_always(config))))


def holds_out(config: Config, on: str) -> bool:
    """Tells whether a run scores what a row is scored on."""
    if on == "holdout":
        return config.folds.holdout is not None or bool(held_out_always(config))
    return on == "folds" or on in held_out_parts(config)


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


def _check_runs(study: Study, path: Path, runs: Sequence[StudyRun]) -> None:
    """Refuses what the runs' data do not have: two classes, a hold-out, splits and classes."""
    binary = [metric for metric in study.metrics if metric in BINARY_METRICS]
    for name in dict.fromkeys(run.config.data.competition for run in runs if binary):
        classes = len(get_competition(name).class_names)
        if classes != 2:
            raise UserError(f"{path}: metrics: {binary[0]} is of two classes, {name} has {classes}; take another one")
    for on in study.on:
        if any(holds_out(run.config, on) for run in runs):
            continue
        if on == "holdout":
            raise UserError(f"{path}: on: holdout: no run has a hold-out; set folds.holdout")
        parts = [part for run in runs for part in held_out_parts(run.config)]
        need_known(f"{path}: on:", on, [*SCORED_ON, *dict.fromkeys(parts)])
    for on in study.maps.on if study.maps else ():
        parts = [part for run in runs for part in held_out_parts(run.config)]
        need_known(f"{path}: maps: on: part", on, list(dict.fromkeys(parts)))
    for name in study.look_at.published if study.look_at else ():
        known = get_competition(runs[0].config.data.competition).class_names
        need_known(f"{path}: look_at: published: class", name, known)
    for part in study.composition:
        competition = get_competition(runs[0].config.data.competition)
        where = f"{path}: composition: {part.part}:"
        for split in part.splits:
            need_known(f"{where} split", split, [*competition.published_counts, *runs[0].config.data.domains])
        for class_name in part.groups:
            need_known(f"{where} class", class_name, competition.class_names)
        for class_name in part.images:
            need_known(f"{where} class", class_name, [*competition.class_names, UNLABELLED_NAME])
