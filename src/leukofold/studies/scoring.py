"""What the runs of a study scored: runs loaded, ensembles averaged, the competition's images of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import LoadedRun, average_logits, load_run
from leukofold.corrections import LEAKING_LISTS
from leukofold.errors import UserError
from leukofold.metrics import AUC, area_under_curve, score
from leukofold.runs import Predictions, RunFolder, digest_of
from leukofold.studies.grid import Grid, StudyRun


@dataclass(frozen=True)
class Scored:
    """The competition's images that one row scored under one seed, ordered by id.

    Attributes:
        pooled: All of them; those of the hold-out with the mean logits of the folds' networks.
        parts: By fold: its own images, or all of the hold-out by its network.
        folds: The complete folds.
        metadata: What the first run is made of.
    """

    pooled: Predictions
    parts: tuple[Predictions, ...]
    folds: tuple[int, ...]
    metadata: Mapping[str, Any]


AllScored = Mapping[tuple[str, tuple[str, ...], int], Scored]
"""Scored on, combination of levels, seed -> what it scored."""


def score_all(grid: Grid, root: Path, remarks: list[str]) -> AllScored:
    """Loads every run, averages the ensembles, and keeps the competition's images of each.

    Args:
        grid: The study.
        root: Where runs lie.
        remarks: Gets a line for each run that cannot be used, or not without a word of caution.

    Returns:
        What every combination of levels scored under every seed, where all its runs have the same complete folds.
    """
    loaded = {run.name: found for run in grid.runs if (found := _load(run, root, remarks)) is not None}
    scored: dict[tuple[str, tuple[str, ...], int], Scored] = {}
    for levels in grid.combinations():
        for seed in grid.study.seeds:
            members = grid.members(levels, seed)
            runs = [loaded[run.name] for run in members if run.name in loaded]
            if len(runs) < len(members) or len({tuple(set(run.folds.tolist())) for run in runs}) > 1:
                continue
            try:
                scored.update({(on, tuple(levels.values()), seed): each for on, each in _combine(runs, grid.study.on)})
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
    if digest_of(loaded.metadata) != run.config.digest():
        remarks.append(f"{run.name}: trained with other settings than the study's now")
    if loaded.metadata.get("label_lists") == "all folds":
        remarks.append(f"{run.name}: {LEAKING_LISTS}")
    return loaded


def _combine(runs: Sequence[LoadedRun], on: Sequence[str]) -> Iterator[tuple[str, Scored]]:
    """Averages runs, out of fold and on the hold-out that all of them have."""
    blend = blend_runs(runs)
    folds = tuple(sorted(set(runs[0].folds.tolist())))
    if "folds" in on:
        parts = tuple(_own(blend.oof, blend.folds == fold) for fold in folds)
        yield "folds", Scored(_own(blend.oof), parts, folds, blend.metadata)
    if "holdout" in on and all(run.holdouts for run in runs):
        networks = [average_logits(of_fold) for of_fold in zip(*(run.holdouts for run in runs), strict=True)]
        pooled = _own(average_logits(networks))
        yield "holdout", Scored(pooled, tuple(map(_own, networks)), folds, blend.metadata)


def _own(scored: Predictions, rows: np.ndarray | None = None) -> Predictions:
    """Keeps the competition's images, or those of some rows, in the order of their ids."""
    kept = np.flatnonzero(~scored.is_external if rows is None else ~scored.is_external & rows)
    kept = kept[np.argsort(scored.image_id[kept])]
    arrays = ("image_id", "logits", "single_view", "group", "is_external", "label")
    return replace(scored, **{name: getattr(scored, name)[kept] for name in arrays})


def labelled_logits(scored: Predictions, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class indices of n images, and n x K logits without or with TTA."""
    assert scored.label is not None
    return scored.label, scored.logits if view == "tta" else scored.single_view


def scores_of(scored: Predictions, view: str, metrics: Sequence[str]) -> dict[str, float]:
    """Scores images by every metric that is asked for."""
    labels, logits = labelled_logits(scored, view)
    values = score(labels, logits)
    return {metric: area_under_curve(labels, logits) if metric == AUC else values[metric] for metric in metrics}
