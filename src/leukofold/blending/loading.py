"""Runs whole, as blending, label analysis and reports want them: the folds joined, refused where they do not fit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from leukofold.corrections import LEAKING_LISTS
from leukofold.errors import UserError, name_some
from leukofold.runs import PER_IMAGE, RUNS, FoldFolder, Predictions, RunFolder, chosen_on_scored, find_runs

NEEDED = (
    "class_names",
    "commit",
    "competition",
    "config",
    "config_digest",
    "data_fingerprint",
    "debug",
    "device",
    "input",
    "metric",
    "precision",
    "processes",
    "rendered",
    "split_by",
    "versions",
)  # of a fold's metadata, whatever is made of a run
Mean = Literal["logits", "probabilities"]

STUDIES = "studies/"  # where the runs of studies lie, below the folder of runs


@dataclass(frozen=True)
class LoadedRun:
    """A run with all its complete folds.

    Attributes:
        folder: Where it lies.
        metadata: What its first fold is made of; the other folds agree in all that matters.
        provenance: Fold -> commit, library versions, precision, device and processes of its training.
        split: image_id, group and fold of every labelled image.
        oof: Held-out images of the complete folds, in the order of ``split``.
        folds: The fold of each row of ``oof``.
        tests: Test images by the network of each complete fold, the rows in the same order.
        holdouts: The hold-out by the network of each complete fold, the rows in the same order; none without one.
    """

    folder: RunFolder
    metadata: dict[str, Any]
    provenance: dict[int, dict[str, Any]]
    split: pd.DataFrame
    oof: Predictions
    folds: np.ndarray
    tests: Sequence[Predictions]
    holdouts: Sequence[Predictions] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def test(self) -> Predictions:
        """Test images, logits averaged over the folds' networks."""
        return average_logits(self.tests)

    @property
    def holdout(self) -> Predictions | None:
        """The hold-out, logits averaged over the folds' networks; None where there is none."""
        return average_logits(self.holdouts) if self.holdouts else None

    @property
    def missing_folds(self) -> list[int]:
        """Folds of the configuration that are not trained yet, but for one that is left out on purpose."""
        folds = self.metadata["config"]["folds"]
        return sorted(set(range(folds["count"])) - {folds.get("left_out")} - set(self.folds.tolist()))


def joint_name(runs: Sequence[LoadedRun]) -> str:
    """Names what is made of runs: after the one, or by their number and a digest of their names."""
    names = sorted(run.name for run in runs)
    if len(names) == 1:
        return names[0]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return f"blend-of-{len(names)}-{digest}"


def caveats(runs: Sequence[LoadedRun]) -> list[str]:
    """Says what has to be known before any score of runs is read, a line each; nothing of the honest case."""
    found = []
    if runs[0].metadata["rendered"]:
        found.append("RENDERED images, drawn by this project: these scores say nothing about patients")
    if any(run.metadata["split_by"] == "image" for run in runs):
        found.append("image-level folds: patients cross them, the scores are too high")
    if any(chosen_on_scored(run.metadata) for run in runs):
        splits = ", ".join(runs[0].metadata["config"]["folds"]["splits"])
        found.append(f"OPTIMISTIC: the epochs were chosen on {splits}, the images that are scored out of fold")
    leaking = [run.name for run in runs if run.metadata.get("label_lists") == "all folds"]
    if leaking:
        found.append(f"{name_some(leaking)}: {LEAKING_LISTS}")
    return found


def load_run(run: RunFolder) -> LoadedRun:
    """Loads a run's complete folds.

    Args:
        run: The run's folder.

    Returns:
        The run.

    Raises:
        UserError: It has no complete fold, its folds are of different making, or their rows are not
            those of its split, each exactly once.
    """
    complete = run.complete_folds()
    if not complete:
        known = [found.name for found in find_runs(run.root)]
        hint = f"runs there: {', '.join(known)}" if known else "train one with scripts/train_fold.py"
        raise UserError(f"{run.path}: no run with a complete fold; {hint}")
    for k in complete:
        _need_metadata(run.fold(k))
    metadata = run.fold(complete[0]).metadata()
    run.need_same(metadata)
    parts = [run.fold(k).predictions("oof") for k in complete]
    tests = [run.fold(k).predictions("test") for k in complete]
    with_holdout = metadata.get("holdout", metadata["config"]["folds"].get("holdout"))  # older runs: by configuration
    holdouts = [run.fold(k).predictions("holdout") for k in complete] if with_holdout else []
    for k, found in zip(complete, holdouts, strict=False):
        need_equal(run.fold(k).path, "hold-out images", found.image_id.tolist(), holdouts[0].image_id.tolist())
    for k, part, test in zip(complete, parts, tests, strict=True):
        need_equal(run.fold(k).path, "class order", list(part.class_names), metadata["class_names"])
        need_equal(run.fold(k).path, "test images", test.image_id.tolist(), tests[0].image_id.tolist())
    split = run.split()
    rows = split[split.fold.isin(complete)]
    oof = _in_order(run.path, parts, rows.image_id.to_numpy(dtype=str))
    kept = ("commit", "versions", "precision", "device", "processes")
    provenance = {k: {key: run.fold(k).metadata()[key] for key in kept} for k in complete}
    return LoadedRun(run, metadata, provenance, split, oof, rows.fold.to_numpy(), tests, holdouts)


def select_runs(names: Sequence[str], competition: str | None, root: Path = RUNS) -> dict[str, list[LoadedRun]]:
    """Chooses the runs to blend.

    Args:
        names: Runs by name; empty: every run found. Among those found, debug runs and runs of studies
            are left out, and runs on rendered images where there are runs on real ones.
        competition: Keep only this competition's runs; None: all.
        root: Where runs lie.

    Returns:
        Competition -> its runs, by name.

    Raises:
        UserError: No run is left, or a named one is not there or of another competition.
    """
    chosen: dict[str, list[LoadedRun]] = {}
    for name in dict.fromkeys(names):
        run = load_run(RunFolder(name, root))
        if competition not in (None, run.metadata["competition"]):
            raise UserError(f"--run {name}: it is a run of {run.metadata['competition']}, not of {competition}")
        chosen.setdefault(run.metadata["competition"], []).append(run)
    for found in find_runs(root) if not names else []:
        metadata = found.fold(found.complete_folds()[0]).metadata()
        own = metadata.get("competition")  # a run without metadata is refused by load_run
        if found.name.startswith(STUDIES):  # their runs differ in folds and data on purpose
            continue
        if competition in (None, own) and not metadata.get("debug"):
            chosen.setdefault(str(own), []).append(load_run(found))
    if not names:
        for own, runs in chosen.items():
            real = [run for run in runs if not run.metadata["rendered"]]
            if real and len(real) < len(runs):
                left_out = [run.name for run in runs if run.metadata["rendered"]]
                print(f"left out, of rendered images: {name_some(left_out)}")
                chosen[own] = real
    if not chosen:
        what = f" of {competition}" if competition else ""
        raise UserError(f"{root}: no complete run{what} to blend; train one with scripts/train_fold.py")
    return chosen


def select_together(names: Sequence[str], root: Path = RUNS) -> list[LoadedRun]:
    """Loads runs that are looked at together.

    Args:
        names: Runs by name, at least one.
        root: Where runs lie.

    Raises:
        UserError: One is not there, or they are of several competitions.
    """
    chosen = select_runs(names, None, root)
    if len(chosen) > 1:
        raise UserError(f"--run: runs of {' and '.join(chosen)}; name runs of one competition at a time")
    (runs,) = chosen.values()
    return runs


def average_logits(parts: Sequence[Predictions], mean: Mean = "logits") -> Predictions:
    """Averages logits row by row, after bringing all to the first one's order of ids.

    Args:
        parts: Predictions of the same images.
        mean: Of the logits, or of the probabilities, of which the logarithm is returned.

    Returns:
        Their mean.

    Raises:
        UserError: They are of different images.
    """
    first = parts[0]
    rank = np.argsort(first.image_id)
    totals = np.zeros((2, *first.logits.shape), dtype=np.float64)
    if mean == "probabilities":
        totals -= np.inf
    for part in parts:
        order = np.argsort(part.image_id)
        if not np.array_equal(part.image_id[order], first.image_id[rank]):
            raise UserError("the runs scored different images; train them on the same input")
        logits = np.stack([part.logits[order], part.single_view[order]]).astype(np.float64)
        if mean == "logits":
            totals[:, rank] += logits
        else:  # adds up in logarithms, so that no small probability is lost
            totals[:, rank] = np.logaddexp(totals[:, rank], log_softmax(logits, axis=2))
    totals = totals / len(parts) if mean == "logits" else totals - np.log(len(parts))
    logits, single_view = totals.astype(np.float32)
    return replace(first, logits=logits, single_view=single_view)


def _need_metadata(fold: FoldFolder) -> None:
    """Refuses a fold that does not tell what it is made of."""
    found, where = fold.metadata(), fold.path / "metadata.json"
    if not found:
        raise UserError(f"{where}: no such file; train that fold again")
    lacking = sorted(set(NEEDED) - set(found))
    if lacking:
        raise UserError(f"{where}: no {name_some(lacking)} in it; train that fold again")


def _in_order(where: Path, parts: Sequence[Predictions], image_ids: np.ndarray) -> Predictions:
    """Joins folds and orders their rows; each id must be there exactly once."""
    joined = np.concatenate([part.image_id for part in parts])
    order = np.argsort(joined)
    ranks = np.argsort(image_ids)
    if not np.array_equal(joined[order], image_ids[ranks]):
        raise UserError(
            f"{where}: its folds hold {len(joined)} rows ({len(np.unique(joined))} images), its folds.csv "
            f"{len(image_ids)}; train the run again"
        )
    positions = np.empty(len(order), dtype=np.int64)
    positions[ranks] = order

    columns = {name: np.concatenate([getattr(part, name) for part in parts])[positions] for name in PER_IMAGE}
    return Predictions(class_names=parts[0].class_names, **columns)


def need_equal(where: object, title: str, one: object, other: object) -> None:
    """Refuses two things that differ, naming what."""
    if one != other:
        raise UserError(f"{where}: different {title}; such runs do not go together")
