"""What the runs of a study scored: runs loaded, ensembles averaged, the competition's images of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leukofold.blending.aligning import align_runs
from leukofold.blending.loading import LoadedRun, Mean, average_logits, load_run
from leukofold.corrections import LEAKING_LISTS
from leukofold.errors import UserError
from leukofold.files import sha256
from leukofold.metrics import AREAS, areas_under_curves, score
from leukofold.runs import Predictions, RunFolder, digest_of
from leukofold.studies.grid import Grid, StudyRun
from leukofold.studies.schema import SCORED_ON


@dataclass(frozen=True)
class Scored:
    """The competition's images that one row scored under one seed, ordered by id.

    Attributes:
        pooled: All of them; those of the hold-out with the mean logits of the folds' networks.
        parts: By fold: its own images, or all of the hold-out by its network.
        folds: The complete folds that scored them.
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
    ensemble = grid.study.ensemble
    scored: dict[tuple[str, tuple[str, ...], int], Scored] = {}
    for levels in grid.combinations():
        for seed in grid.study.seeds:
            members = grid.members(levels, seed)
            runs = [loaded[run.name] for run in members if run.name in loaded]
            if len(runs) < len(members) or len({tuple(set(run.folds.tolist())) for run in runs}) > 1:
                continue
            mean: Mean = ensemble.mean if ensemble is not None and len(runs) > 1 else "logits"
            try:
                parts = _combine(runs, grid.study.on, mean)
                scored.update({(on, tuple(levels.values()), seed): each for on, each in parts})
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
    anew = _trained_anew(folder)
    if anew:
        remarks.append(f"{run.name}: taught by other networks than its teachers' now: {', '.join(anew)}")
    if loaded.metadata.get("label_lists") == "all folds":
        remarks.append(f"{run.name}: {LEAKING_LISTS}")
    return loaded


def _trained_anew(run: RunFolder) -> list[str]:
    """Names the teachers of a run that have other weights now than when they taught."""
    changed: dict[str, None] = {}
    for fold in run.complete_folds():
        for name, digest in run.fold(fold).metadata().get("teachers", {}).items():
            weights = RunFolder(name, run.root).fold(fold).weights
            if weights.is_file() and sha256(weights) != digest:
                changed[name] = None
    return list(changed)


def _combine(runs: Sequence[LoadedRun], on: Sequence[str], mean: Mean) -> Iterator[tuple[str, Scored]]:
    """Averages runs, out of fold and on the hold-out that all of them have, or on parts of either."""
    align_runs(runs)  # refuses what does not belong together
    first = runs[0]
    oof, metadata = average_logits([run.oof for run in runs], mean), first.metadata
    folds = tuple(sorted(set(first.folds.tolist())))
    networks = []
    if all(run.holdouts for run in runs):
        networks = [average_logits(of_fold, mean) for of_fold in zip(*(run.holdouts for run in runs), strict=True)]
    for part in on:
        of_folds = tuple(fold for fold in folds if _has(oof.rows(first.folds == fold), part))
        if part != "holdout" and of_folds:
            parts = tuple(_own(oof.rows(first.folds == fold), part) for fold in of_folds)
            yield part, Scored(_own(oof, part), parts, of_folds, metadata)
        elif part != "folds" and networks and _has(networks[0], part):
            pooled = _own(average_logits(networks), part)
            yield part, Scored(pooled, tuple(_own(of_fold, part) for of_fold in networks), folds, metadata)


def _has(scored: Predictions, part: str) -> bool:
    """Tells whether there are images of a split or target domain."""
    return part in SCORED_ON or bool((scored.split == part).any())


def _own(scored: Predictions, part: str) -> Predictions:
    """Keeps the competition's images, or those of a split or target domain, in the order of their ids."""
    own = ~scored.is_external
    kept = np.flatnonzero(own if part in SCORED_ON else own & (scored.split == part))
    return scored.rows(kept[np.argsort(scored.image_id[kept])])


def labelled_logits(scored: Predictions, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class indices of n images, and n x K logits without or with TTA."""
    assert scored.label is not None
    return scored.label, scored.logits if view == "tta" else scored.single_view


def scores_of(scored: Predictions, view: str, metrics: Sequence[str]) -> dict[str, float]:
    """Scores images by every metric that is asked for."""
    labels, logits = labelled_logits(scored, view)
    values = score(labels, logits)
    if not AREAS.keys().isdisjoint(metrics):
        values |= areas_under_curves(labels, logits)
    return {metric: values[metric] for metric in metrics}
