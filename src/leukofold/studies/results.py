"""What a study found: each row's scores with their uncertainty, and levels compared in pairs.

Scores are of the competition's images out of fold, over all complete folds. With one seed the uncertainty is the
choice of patients (bootstrap, ``leukofold.metrics.interval``), with several it is the seed's.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import LoadedRun, load_run
from leukofold.corrections import LEAKING_LISTS
from leukofold.errors import UserError
from leukofold.metrics import Interval, interval, score
from leukofold.processes import available_cores
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.grid import Grid, StudyRun

Levels = tuple[str, ...]  # one for each axis, in the order of the axes


@dataclass(frozen=True)
class Scored:
    """The competition's images that one row scored under one seed, ordered by id.

    Attributes:
        image_id: n ids.
        label: n class indices.
        group: n groups.
        logits: View -> n x K.
        folds: The complete folds.
        split_by: What the folds keep whole.
        rendered: Whether the images are.
    """

    image_id: np.ndarray
    label: np.ndarray
    group: np.ndarray
    logits: dict[str, np.ndarray]
    folds: tuple[int, ...]
    split_by: str
    rendered: bool


@dataclass(frozen=True)
class Value:
    """A number with its uncertainty.

    Attributes:
        value: The number, the mean over seeds.
        low: Lower end of its 95 % interval; None where there are several seeds, or it was not asked for.
        high: Upper end.
        std: Standard deviation over seeds (n - 1); None for one seed.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        levels: Axis -> level.
        view: Without or with TTA.
        values: Metric -> value; empty where nothing has run.
        folds: Complete folds, over all seeds.
        folds_wanted: Folds, over all seeds.
        images: Images scored under one seed.
        split_by: What the folds keep whole.
        rendered: Whether the images are; None where nothing has run.
        runs: The runs' names.
    """

    levels: dict[str, str]
    view: str
    values: dict[str, Value]
    folds: int
    folds_wanted: int
    images: int
    split_by: str
    rendered: bool | None
    runs: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all folds of all seeds are in the values."""
        return self.folds == self.folds_wanted


@dataclass(frozen=True)
class Comparison:
    """A level against the first one of its axis, on the same images.

    Attributes:
        axis: The axis.
        levels: Axis -> level of the row compared.
        reference: The first level of the axis.
        view: Without or with TTA.
        value: The row's headline metric.
        reference_value: The first level's.
        difference: The row's minus the first level's.
    """

    axis: str
    levels: dict[str, str]
    reference: str
    view: str
    value: float
    reference_value: float
    difference: Value


@dataclass(frozen=True)
class Results:
    """All that a study found.

    Attributes:
        grid: The study.
        rows: By view, then by levels.
        comparisons: By axis, then as the rows.
        remarks: What is to be known of some runs, a line each.
    """

    grid: Grid
    rows: list[Row]
    comparisons: list[Comparison]
    remarks: list[str] = field(default_factory=list)


def collect_results(grid: Grid, root: Path = RUNS, progress: bool = True) -> Results:
    """Scores all runs of a study that have complete folds.

    Args:
        grid: The study.
        root: Where runs lie.
        progress: Whether to show a progress bar.

    Returns:
        Rows for every combination of levels, also those that have not run.
    """
    remarks: list[str] = []
    scored = _score_all(grid, root, remarks)
    rows = [(levels, view) for view in grid.study.views for levels in grid.combinations()]
    pairs = list(_pairs(grid, scored))
    tasks: list[Callable[[], Value]] = [_headline(grid, scored, levels, view) for levels, view in rows]
    tasks += [_difference(grid, scored, *pair) for pair in pairs]
    with ThreadPoolExecutor(available_cores()) as pool:  # NumPy draws and multiplies without the interpreter's lock
        done = pool.map(lambda task: task(), tasks)
        values = list(tqdm(done, "bootstrap", len(tasks), leave=False, disable=not progress))
    headlines, differences = values[: len(rows)], values[len(rows) :]
    return Results(
        grid,
        [_row(grid, scored, *row, headline) for row, headline in zip(rows, headlines, strict=True)],
        [_comparison(grid, scored, *pair, value) for pair, value in zip(pairs, differences, strict=True)],
        remarks,
    )


AllScored = Mapping[tuple[Levels, int], Scored]  # combination of levels, seed -> what it scored


def _score_all(grid: Grid, root: Path, remarks: list[str]) -> AllScored:
    """Loads every run, averages the ensembles, and keeps the competition's images of each."""
    loaded = {run.name: found for run in grid.runs if (found := _load(run, root, remarks)) is not None}
    scored: dict[tuple[Levels, int], Scored] = {}
    for levels in grid.combinations():
        for seed in grid.study.seeds:
            members = grid.members(levels, seed)
            runs = [loaded[run.name] for run in members if run.name in loaded]
            if len(runs) < len(members) or len({tuple(set(run.folds.tolist())) for run in runs}) > 1:
                continue
            try:
                scored[tuple(levels.values()), seed] = _keep_own(runs)
            except UserError as error:
                remarks.append(f"no ensemble: {error}")
    return scored


def _load(run: StudyRun, root: Path, remarks: list[str]) -> LoadedRun | None:
    """Loads a run; None where it has no complete fold or its files do not belong together."""
    folder = RunFolder(run.name, root)
    if not folder.complete_folds():
        return None
    try:
        loaded = load_run(folder)
    except UserError as error:
        remarks.append(str(error))
        return None
    if loaded.metadata["config_digest"] != run.config.digest():
        remarks.append(f"{run.name}: trained with other settings than the study's now")
    if loaded.metadata.get("label_lists") == "all folds":
        remarks.append(f"{run.name}: {LEAKING_LISTS}")
    return loaded


def _keep_own(runs: Sequence[LoadedRun]) -> Scored:
    """Averages runs, and keeps the competition's images in the order of their ids."""
    oof = blend_runs(runs).oof
    assert oof.label is not None
    kept = np.flatnonzero(~oof.is_external)
    kept = kept[np.argsort(oof.image_id[kept])]
    return Scored(
        oof.image_id[kept],
        oof.label[kept],
        oof.group[kept],
        {"single": oof.single_view[kept], "tta": oof.logits[kept]},
        tuple(sorted(set(runs[0].folds.tolist()))),
        str(runs[0].metadata["split_by"]),
        bool(runs[0].metadata["rendered"]),
    )


def _seeds(grid: Grid, scored: AllScored, levels: Mapping[str, str]) -> list[Scored]:
    """Returns what a combination of levels scored under each seed that has run."""
    key = tuple(levels.values())
    return [scored[key, seed] for seed in grid.study.seeds if (key, seed) in scored]


def _headline(grid: Grid, scored: AllScored, levels: Mapping[str, str], view: str) -> Callable[[], Value]:
    """Prepares the value of the headline metric."""
    metric, found = grid.study.metrics[0], _seeds(grid, scored, levels)

    def compute() -> Value:
        if len(found) == 1 and len(grid.study.seeds) == 1:
            (one,) = found
            return _with_interval(interval(metric, one.label, one.logits[view], one.group))
        return _over_seeds([score(each.label, each.logits[view])[metric] for each in found])

    return compute


def _difference(grid: Grid, scored: AllScored, axis: str, levels: Mapping[str, str], view: str) -> Callable[[], Value]:
    """Prepares the difference of the headline metric to the axis' first level."""
    metric, pairs = grid.study.metrics[0], _paired(grid, scored, axis, levels)

    def compute() -> Value:
        if len(pairs) == 1 and len(grid.study.seeds) == 1:
            ((one, other),) = pairs
            reference = other.logits[view]
            return _with_interval(interval(metric, one.label, one.logits[view], other.group, reference))
        values = [[score(each.label, each.logits[view])[metric] for each in pair] for pair in pairs]
        return _over_seeds([one - other for one, other in values])

    return compute


def _with_interval(found: Interval) -> Value:
    return Value(found.value, *((found.low, found.high) if found.known else (None, None)))


def _over_seeds(values: Sequence[float]) -> Value:
    """Returns mean and standard deviation; not a number where there is no value."""
    if not values:
        return Value(float("nan"))
    return Value(float(np.mean(values)), std=float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _pairs(grid: Grid, scored: AllScored) -> list[tuple[str, dict[str, str], str]]:
    """Finds the rows that can be compared: axis, levels and view."""
    return [
        (axis, levels, view)
        for axis in grid.study.compare
        for view in grid.study.views
        for levels in grid.combinations()
        if levels[axis] != _first(grid, axis) and _paired(grid, scored, axis, levels)
    ]


def _paired(grid: Grid, scored: AllScored, axis: str, levels: Mapping[str, str]) -> list[tuple[Scored, Scored]]:
    """Pairs a row with its axis' first level, for each seed under which both scored the same images."""
    one, other = tuple(levels.values()), tuple({**levels, axis: _first(grid, axis)}.values())
    both = [
        (scored[one, seed], scored[other, seed])
        for seed in grid.study.seeds
        if {(one, seed), (other, seed)} <= set(scored)
    ]
    return [
        (a, b)
        for a, b in both
        if np.array_equal(a.image_id, b.image_id) and np.array_equal(a.label, b.label) and a.rendered == b.rendered
    ]


def _first(grid: Grid, axis: str) -> str:
    """Returns the first level of an axis."""
    return next(iter(grid.study.axes[axis]))


def _row(grid: Grid, scored: AllScored, levels: dict[str, str], view: str, headline: Value) -> Row:
    """Puts a row together."""
    found = _seeds(grid, scored, levels)
    members = [run for seed in grid.study.seeds for run in grid.members(levels, seed)]
    scores = [score(each.label, each.logits[view]) for each in found]
    values = {metric: _over_seeds([each[metric] for each in scores]) for metric in grid.study.metrics}
    return Row(
        levels,
        view,
        {**values, grid.study.metrics[0]: headline} if found else {},
        sum(len(each.folds) for each in found),
        len(members[0].config.folds.numbers) * len(grid.study.seeds),
        max((len(each.image_id) for each in found), default=0),
        found[0].split_by if found else members[0].config.folds.by,
        found[0].rendered if found else None,
        tuple(run.name for run in members),
    )


def _comparison(
    grid: Grid, scored: AllScored, axis: str, levels: dict[str, str], view: str, difference: Value
) -> Comparison:
    """Puts a comparison together."""
    metric, pairs = grid.study.metrics[0], _paired(grid, scored, axis, levels)
    value, reference = (
        float(np.mean([score(pair[i].label, pair[i].logits[view])[metric] for pair in pairs])) for i in (0, 1)
    )
    return Comparison(axis, levels, _first(grid, axis), view, value, reference, difference)
