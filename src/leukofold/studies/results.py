"""What a study found: each row's scores with their uncertainty, and levels compared in pairs.

Scores are of the competition's images, out of fold or of the hold-out, over all complete folds. With one seed the
uncertainty is the choice of patients (bootstrap, ``leukofold.metrics.interval``), or the folds' where each is scored
alone; with several it is the seed's.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy.stats import mannwhitneyu
from scipy.stats import t as student_t
from tqdm import tqdm

from leukofold.metrics import Interval, interval
from leukofold.processes import available_cores
from leukofold.runs import RUNS, Predictions, chosen_on_scored
from leukofold.studies.composition import Composition, count_composition
from leukofold.studies.costs import Costs, count_costs
from leukofold.studies.grid import Grid, holds_out
from leukofold.studies.schema import SCORED_ON, VIEWS, LookedAt, Study, View
from leukofold.studies.scoring import AllScored, Scored, labelled_logits, score_all, scores_of

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Value:
    """A number with its uncertainty.

    Attributes:
        value: The number, the mean over seeds or folds.
        low: Lower end of its 95 % interval: over groups, or of the mean over seeds or folds where the study asks for
            intervals; None where it was not asked for.
        high: Upper end.
        std: Standard deviation over seeds or folds (n - 1); None for one.
        lowest: The lowest over seeds or folds; None for one.
        highest: The highest.
    """

    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    lowest: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class Place:
    """Where a row stands.

    Attributes:
        on: Scored out of fold or on the hold-out.
        view: Without or with TTA.
        levels: Axis -> level.
    """

    on: str
    view: View
    levels: dict[str, str]

    def level(self, axis: str) -> str:
        """Returns the level of an axis, or the view."""
        return self.view if axis == VIEWS else self.levels[axis]

    def moved(self, axis: str, level: Any) -> "Place":
        """Returns the row of another level of an axis, or of another view."""
        if axis == VIEWS:
            return replace(self, view=level)
        return replace(self, levels={**self.levels, axis: level})


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        place: Its levels, its view and what it is scored on.
        values: Metric -> value; empty where nothing has run, or the runs have no hold-out.
        folds: Complete folds, over all seeds.
        folds_wanted: Folds, over all seeds; 0 where the runs have no hold-out to be scored on.
        images: Images scored under one seed.
        split_by: What the folds keep whole.
        rendered: Whether the images are; None where nothing has run.
        runs: The runs' names.
        optimistic: Whether the epochs were chosen on the images that are scored.
        by_seed: Headline metric of each seed, the mean over its folds where each is scored alone.
    """

    place: Place
    values: dict[str, Value]
    folds: int
    folds_wanted: int
    images: int
    split_by: str
    rendered: bool | None
    runs: tuple[str, ...]
    optimistic: bool = False
    by_seed: tuple[float, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all folds of all seeds are in the values."""
        return self.folds == self.folds_wanted


@dataclass(frozen=True)
class Comparison:
    """A level against the first one of its axis, or a view against the first one.

    Attributes:
        axis: The axis, or ``views``.
        place: The row compared.
        reference: The first level of the axis, or the first view.
        value: The row's headline metric.
        reference_value: The first level's.
        difference: The row's minus the first level's.
        paired: Whether both scored the same images; folds of another kind, or another hold-out, did not.
        p: Of a one-sided Mann-Whitney U test over seeds: how likely the first level is so much better by chance
            (Prellberg and Kramer 2019, section 4.4). None for one seed.
    """

    axis: str
    place: Place
    reference: str
    value: float
    reference_value: float
    difference: Value
    paired: bool
    p: float | None


@dataclass(frozen=True)
class Best:
    """The single run that is looked at: the one with the best headline metric, or the one nearest to a row's mean.

    Attributes:
        run: Its name.
        place: Its row.
        value: Its headline metric.
        among: Number of runs it was chosen from: see ``_best``.
        scored: Its images.
        mean: The row's mean that it is nearest to; None: it is the best.
    """

    run: str
    place: Place
    value: float
    among: int
    scored: Scored
    mean: float | None = None


@dataclass(frozen=True)
class Results:
    """All that a study found.

    Attributes:
        grid: The study.
        rows: By what they are scored on, by view, then by levels.
        comparisons: By axis, then as the rows.
        composition: The data counted; None where the study does not ask for it.
        best: The run to be looked at; None where nothing has run.
        remarks: What is to be known of some runs, a line each.
        costs: Levels of a row -> what its networks cost; empty where the study does not ask for it.
    """

    grid: Grid
    rows: list[Row]
    comparisons: list[Comparison]
    composition: Composition | None = None
    best: Best | None = None
    remarks: list[str] = field(default_factory=list)
    costs: Costs = field(default_factory=dict)


def collect_results(grid: Grid, root: Path = RUNS, progress: bool = True) -> Results:
    """Scores all runs of a study that have complete folds.

    Args:
        grid: The study.
        root: Where runs lie.
        progress: Whether to show progress bars.

    Returns:
        Rows for every combination of levels, also those that have not run.
    """
    remarks: list[str] = []
    study = grid.study
    scored = score_all(grid, root, remarks)
    places = [Place(on, view, levels) for on in study.on for view in study.views for levels in grid.combinations()]
    compared = [(axis, place) for axis in study.compare for place in places if _paired(grid, scored, axis, place)]
    return Results(
        grid,
        _each(lambda place: _row(grid, scored, place), places, "scores", progress),
        _each(lambda pair: _comparison(grid, scored, *pair), compared, "comparisons", progress),
        count_composition(study.composition, grid.runs[0].config) if study.composition else None,
        _best(grid, scored) if study.look_at is None else _nearest_to_mean(grid, scored, study.look_at),
        remarks,
        count_costs(grid, root) if study.complexity else {},
    )


def _each(function: Callable[[Item], Found], items: Sequence[Item], title: str, progress: bool) -> list[Found]:
    """Computes something of each item, on all cores: NumPy draws and multiplies without the interpreter's lock."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(tqdm(pool.map(function, items), title, len(items), leave=False, disable=not progress))


def _seeds(grid: Grid, scored: AllScored, place: Place) -> list[Scored]:
    """Returns what a row scored under each seed that has run."""
    keys = [(place.on, tuple(place.levels.values()), seed) for seed in grid.study.seeds]
    return [scored[key] for key in keys if key in scored]


def _parts(grid: Grid, scored: Scored) -> tuple[Predictions, ...]:
    """Returns what of a row is scored at a time."""
    return scored.parts if grid.study.over == "folds" else (scored.pooled,)


def _by_seed(grid: Grid, found: Sequence[Scored], view: str, metric: str) -> list[list[float]]:
    """Scores each part of each seed."""
    return [[scores_of(part, view, [metric])[metric] for part in _parts(grid, each)] for each in found]


def _spread(grid: Grid, by_seed: Sequence[Sequence[float]]) -> Value:
    """Returns mean, deviation and range: over the parts of the one seed that is wanted, or over the seeds' means."""
    values = by_seed[0] if len(grid.study.seeds) == 1 else [float(np.mean(parts)) for parts in by_seed]
    mean = float(np.mean(values))
    if len(values) == 1:
        return Value(mean)
    std = float(np.std(values, ddof=1))
    found = Value(mean, std=std, lowest=min(values), highest=max(values))
    if grid.study.spread == "deviation":
        return found
    half = float(student_t.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5
    return replace(found, low=mean - half, high=mean + half)


def _row(grid: Grid, scored: AllScored, place: Place) -> Row:
    """Scores a row."""
    study, found, seeds = grid.study, _seeds(grid, scored, place), grid.study.seeds
    members = [run for seed in seeds for run in grid.members(place.levels, seed)]
    config = members[0].config
    wanted = 1 if place.on in config.folds.splits else len(config.folds.numbers)
    values: dict[str, Value] = {}
    by_part = [[scores_of(part, place.view, study.metrics) for part in _parts(grid, each)] for each in found]
    if found:
        for metric in grid.study.metrics:
            values[metric] = _spread(grid, [[part[metric] for part in parts] for parts in by_part])
        if len(seeds) == 1 and grid.study.over == "pooled":
            metric, pooled = grid.study.metrics[0], found[0].pooled
            values[metric] = _with_interval(interval(metric, *labelled_logits(pooled, place.view), pooled.group))
    return Row(
        place,
        values,
        sum(len(each.folds) for each in found),
        wanted * len(seeds) if holds_out(config, place.on) else 0,
        max((len(each.pooled.image_id) for each in found), default=0),
        kept_whole(found[0].metadata, place.on) if found else config.folds.by,
        found[0].metadata["rendered"] if found else None,
        tuple(run.name for run in members),
        bool(found) and chosen_on_scored(found[0].metadata) and place.on in ("folds", *config.folds.splits),
        tuple(float(np.mean([part[study.metrics[0]] for part in parts])) for parts in by_part),
    )


def kept_whole(metadata: Mapping[str, Any], on: str) -> str:
    """Tells what is on one side of the split only.

    Args:
        metadata: Of a fold.
        on: What is scored; of a part by name it is told by what its own images share with the training.

    Returns:
        ``group``, ``split`` or ``image``.
    """
    shared = metadata.get("shared_groups")
    if on in SCORED_ON or shared is None:
        return str(metadata["split_by"])
    return "image" if shared.get(on) else "group"


def _with_interval(found: Interval) -> Value:
    return Value(found.value, *((found.low, found.high) if found.known else (None, None)))


def _first(grid: Grid, axis: str) -> str:
    """Returns the first level of an axis, or the first view."""
    return grid.study.views[0] if axis == VIEWS else next(iter(grid.study.axes[axis]))


def _paired(grid: Grid, scored: AllScored, axis: str, place: Place) -> list[tuple[Scored, Scored]]:
    """Pairs a row with its axis' first level, for each seed under which both scored the same images.

    Folds of another kind (by patient, by image) cover other images where there is a hold-out: rows of all their folds
    are compared all the same.
    """
    first = _first(grid, axis)
    if place.level(axis) == first:
        return []
    keys = [
        [(row.on, tuple(row.levels.values()), seed) for row in (place, place.moved(axis, first))]
        for seed in grid.study.seeds
    ]
    both = [(scored[one], scored[other]) for one, other in keys if one in scored and other in scored]
    return [(a, b) for a, b in both if a.metadata["rendered"] == b.metadata["rendered"] and _comparable(a, b)]


def _comparable(one: Scored, other: Scored) -> bool:
    """Tells whether two rows scored the same images, or as many folds of another kind."""
    if _same_images(one.pooled, other.pooled):
        return True
    return one.metadata["split_by"] != other.metadata["split_by"] and len(one.folds) == len(other.folds)


def _same_images(one: Predictions, other: Predictions) -> bool:
    """Tells whether two rows scored the same images under the same labels."""
    assert one.label is not None
    assert other.label is not None
    return np.array_equal(one.image_id, other.image_id) and np.array_equal(one.label, other.label)


def _comparison(grid: Grid, scored: AllScored, axis: str, place: Place) -> Comparison:
    """Compares a row with its axis' first level."""
    metric, first = grid.study.metrics[0], _first(grid, axis)
    pairs, seeds = _paired(grid, scored, axis, place), len(grid.study.seeds)
    views = (place.view, place.moved(axis, first).view)
    ones, others = (_by_seed(grid, [pair[i] for pair in pairs], views[i], metric) for i in (0, 1))
    same = all(_same_images(one.pooled, other.pooled) for one, other in pairs)
    if grid.study.over == "folds":
        same = same and all(map(_same_images, *(pair.parts for pair in pairs[0])))
    if seeds == 1 and not same:
        difference = Value(float(np.mean(ones) - np.mean(others)))
    elif seeds == 1 and grid.study.over == "pooled":
        one, other = (pair.pooled for pair in pairs[0])
        reference = labelled_logits(other, views[1])[1]
        found = interval(metric, *labelled_logits(one, views[0]), other.group, reference)
        difference = _with_interval(found)
    elif seeds == 1:
        difference = _spread(grid, [np.subtract(ones[0], others[0]).tolist()])
    else:
        difference = _spread(grid, [[float(np.mean(a) - np.mean(b))] for a, b in zip(ones, others, strict=True)])
    means = [[float(np.mean(parts)) for parts in values] for values in (ones, others)]
    tested = len(pairs) > 1 and grid.study.spread == "deviation"  # an interval says as much
    p = float(mannwhitneyu(means[1], means[0], alternative="greater").pvalue) if tested else None
    return Comparison(axis, place, first, float(np.mean(means[0])), float(np.mean(means[1])), difference, same, p)


def _nearest_to_mean(grid: Grid, scored: AllScored, look: LookedAt) -> Best | None:
    """Finds the run of a row whose headline metric is nearest to the mean over its seeds, with TTA if there is."""
    place = Place(look.on, looked_at_view(grid.study), {axis: look.levels[axis] for axis in grid.study.axes})
    found, metric = _seeds(grid, scored, place), grid.study.metrics[0]
    if not found:
        return None
    values = [scores_of(each.pooled, place.view, [metric])[metric] for each in found]
    mean = float(np.mean(values))
    nearest = int(np.argmin(np.abs(np.subtract(values, mean))))
    return Best(found[nearest].metadata["run"], place, values[nearest], len(values), found[nearest], mean)


def looked_at_view(study: Study) -> View:
    """Returns the view that runs are looked at and drawn by: with TTA if there is one."""
    return "tta" if "tta" in study.views else "single"


def _best(grid: Grid, scored: AllScored) -> Best | None:
    """Finds the single run with the best headline metric, of the hold-out if there is one, with TTA if there is.

    Runs whose patients cross folds are passed over if there are others, and so are those with fewer folds.
    """
    metric: str = grid.study.metrics[0]
    view = looked_at_view(grid.study)
    on = "holdout" if any(key[0] == "holdout" for key in scored) else grid.study.on[0]
    runs = {
        key: found
        for key, found in scored.items()
        if key[0] == on and not grid.is_ensemble(dict(zip(grid.study.axes, key[1], strict=True)))
    }
    ranks = {key: (found.metadata["split_by"] != "image", len(found.folds)) for key, found in runs.items()}
    values = {
        key: scores_of(found.pooled, view, [metric])[metric]
        for key, found in runs.items()
        if ranks[key] == max(ranks.values())
    }
    if not values:
        return None
    _, levels, seed = best = max(values, key=lambda key: values[key])
    place = Place(on, view, dict(zip(grid.study.axes, levels, strict=True)))
    (run,) = grid.members(place.levels, seed)
    return Best(run.name, place, values[best], len(values), runs[best])
