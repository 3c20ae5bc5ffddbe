"""The pictures of a study: learning curves over seeds and folds, and the best run's patients and confusion.

After Prellberg and Kramer 2019: Fig. 2 and 4 (curves), Fig. 3 (patients).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from leukofold.competitions import get_competition
from leukofold.figures.bands import Band, band_figure
from leukofold.figures.boxes import box_figure
from leukofold.figures.confusion import confusion_figure
from leukofold.figures.groups import group_accuracy_figure
from leukofold.figures.style import save_figure
from leukofold.metrics import AREAS
from leukofold.metrics.tables import group_accuracies
from leukofold.runs import RUNS, RunFolder, chosen_on_scored
from leukofold.studies.confidences import confidences_figure
from leukofold.studies.maps import maps_figure
from leukofold.studies.results import Best, Results, kept_whole, looked_at_view
from leukofold.studies.scoring import labelled_logits
from leukofold.studies.table import TITLES, title_of

MOST_LEVELS = 8  # so many bands are told apart where they overlap
FEWEST_SEEDS = 3  # so many make a box
MOST_PAIRS = 4  # so many levels leave room for a line of each without TTA
LOSSES = {"loss": "training loss", "validation_loss": "validation loss"}

Histories = dict[str, list[list[pd.DataFrame]]]
"""Levels of a run -> by seed, then by fold: one row per epoch, the epoch as index."""


def save_pictures(results: Results, root: Path = RUNS) -> list[Path]:
    """Draws what there is into ``figures/`` in the study's folder, each file in one step.

    Args:
        results: What the study found.
        root: Where runs lie.

    Returns:
        The files: ``learning_curves.png``, ``seeds.png`` of three seeds or more, ``maps.png`` and
        ``confidences.png`` where the study asks for them, ``subjects.png`` where patients are known,
        ``confusion.png``; none where nothing has run.
    """
    folder = root / results.grid.name / "figures"
    files = []
    for name, figure in _draw(results, root):
        save_figure(folder / f"{name}.png", figure)
        files.append(folder / f"{name}.png")
    return files


def _draw(results: Results, root: Path) -> Iterator[tuple[str, Figure]]:
    """Draws every figure that there are data for."""
    curves = _learning_curves(results, root)
    if curves is not None:
        yield "learning_curves", curves
    seeds = _box_plot(results)
    if seeds is not None:
        yield "seeds", seeds
    maps = maps_figure(results, root)
    if maps is not None:
        yield "maps", maps
    confidences = confidences_figure(results, root)
    if confidences is not None:
        yield "confidences", confidences
    if results.best is None:
        return
    best = results.best
    labels, logits = labelled_logits(best.scored.pooled, best.place.view)
    competition, title = get_competition(best.scored.metadata["competition"]), _best_title(results, best)
    groups = best.scored.pooled.group
    if competition.has_patients and 2 * len(np.unique(groups)) <= len(groups):  # not of single cells, as of targets
        patients = group_accuracies(labels, logits, groups)
        if pd.Series(labels).groupby(groups).nunique().max() == 1:  # every patient has one class alone
            patients = patients.assign(label=[competition.class_names[k] for k in patients.majority_label])
        yield "subjects", group_accuracy_figure(patients, title)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), labels=range(logits.shape[1]))
    names = best.scored.pooled.class_names
    yield "confusion", confusion_figure(confusion, names, competition.lineages, title)


def _box_plot(results: Results) -> Figure | None:
    """Draws the headline metric of every seed; None of so few that a box says nothing."""
    study = results.grid.study
    metric, view = study.metrics[0], looked_at_view(study)
    panels: dict[str, dict[str, Sequence[float]]] = {}
    published: dict[str, dict[str, float]] = {}
    for row in results.rows:
        if row.place.view == view and len(row.by_seed) >= FEWEST_SEEDS:
            part, name = title_of(row.place.on), "-".join(row.place.levels.values())
            panels.setdefault(part, {})[name] = row.by_seed
            mean = results.grid.published(row.place.levels, row.place.on, view, metric).mean
            published.setdefault(part, {}).update({name: mean} if mean is not None else {})
    if not panels:
        return None
    every = dict.fromkeys(name for settings in panels.values() for name in settings)
    panels = {part: {name: settings.get(name, ()) for name in every} for part, settings in panels.items()}
    tta = f" {TITLES[view]}." if len(study.views) > 1 else ""
    note = f"Box: quartiles and median; whiskers: lowest and highest.{tta}{_rendered(results)}"
    return box_figure(panels, published, study.title or results.grid.name, results.grid.titles[metric], note)


def _rendered(results: Results) -> str:
    """Says that images are drawn by this project, where they are."""
    return " RENDERED images." if any(row.rendered for row in results.rows) else ""


def _best_title(results: Results, best: Best) -> str:
    """Says what the best run is, and what is wrong with its images or folds."""
    metric = results.grid.titles[results.grid.study.metrics[0]]
    score = f"{metric} {best.value:.4f}"
    if best.mean is not None:
        score += f", nearest to the mean {best.mean:.4f} of {best.among} runs"
    elif best.among > 1:
        score += f", the best of {best.among} runs"
    scored_out_of_fold = best.place.on in ("folds", *best.scored.metadata["config"]["folds"].get("splits", ()))
    networks = "" if scored_out_of_fold or len(best.scored.folds) == 1 else ", mean of the folds' networks"
    optimistic = scored_out_of_fold and chosen_on_scored(best.scored.metadata)
    parts = [
        f"{best.run.removeprefix(results.grid.name + '/')}: {score}",
        title_of(best.place.on) + networks,
        TITLES[best.place.view],
        *(["RENDERED images"] if best.scored.metadata["rendered"] else []),
        *(["image-level folds"] if kept_whole(best.scored.metadata, best.place.on) == "image" else []),
        *(["OPTIMISTIC epoch"] if optimistic else []),
    ]
    return "; ".join(parts)


def _learning_curves(results: Results, root: Path) -> Figure | None:
    """Draws losses and metrics over the epochs; None where no training has left any."""
    histories = _histories(results, root)
    if not histories:
        return None
    shown = _best_levels(results, histories)
    panels: dict[str, list[Band]] = {}
    for column, title in {**LOSSES, **_metric_columns(results)}.items():
        for colour, name in enumerate(shown):
            for key, label in ((column, name), (f"{column}_without_tta", f"{name}, no TTA")):
                values = _repetitions(histories[name], key)
                if values is not None and (key == column or len(shown) <= MOST_PAIRS):
                    panels.setdefault(title, []).append(Band(label, values, colour, dashed=key != column))
    note = _note(results, histories, shown)
    return band_figure(panels, results.grid.study.title or results.grid.name, note, list(LOSSES.values()))


def _histories(results: Results, root: Path) -> Histories:
    """Reads the epochs of all complete folds; a support vector machine is fitted in one piece and has no curve."""
    found: Histories = {}
    for run in (run for run in results.grid.runs if run.config.svm is None):
        folder = RunFolder(run.name, root)
        files = [folder.fold(k).history for k in folder.complete_folds()]
        folds = [pd.read_csv(file).set_index("epoch") for file in files if file.exists()]
        if folds:
            found.setdefault("-".join(run.levels.values()), []).append(folds)
    return found


def _best_levels(results: Results, histories: Histories) -> list[str]:
    """Chooses the levels to draw, in the order of the grid: those with the best headline metric if they are many."""
    if len(histories) <= MOST_LEVELS or results.best is None:
        return list(histories)[:MOST_LEVELS]
    metric, best = results.grid.study.metrics[0], results.best.place
    values = {
        "-".join(row.place.levels.values()): row.values[metric].value
        for row in results.rows
        if row.values and (row.place.on, row.place.view) == (best.on, best.view)
    }
    chosen = sorted(histories, key=lambda name: values.get(name, 0), reverse=True)[:MOST_LEVELS]
    return [name for name in histories if name in chosen]


def _metric_columns(results: Results) -> dict[str, str]:
    """Returns column -> title of the metrics that are drawn; ranks have no column, the competition's metric does."""
    grid = results.grid
    headline = grid.study.metrics[0]
    if headline in AREAS:
        headline = get_competition(grid.runs[0].config.data.competition).metric
    return {name: grid.titles[name] for name in (headline, "sensitivity", "specificity") if name in grid.titles}


def _repetitions(seeds: Sequence[Sequence[pd.DataFrame]], column: str) -> pd.DataFrame | None:
    """Returns a column of every seed's mean over its folds or, of one seed, of every fold; epochs x repetitions."""
    by_seed = [[fold[column] for fold in folds if column in fold] for folds in seeds]
    by_seed = [folds for folds in by_seed if folds]
    if not by_seed:
        return None
    if len(by_seed) == 1:
        return pd.concat(by_seed[0], axis=1)
    return pd.concat([pd.concat(folds, axis=1).mean(axis=1) for folds in by_seed], axis=1)


def _note(results: Results, histories: Histories, shown: Sequence[str]) -> str:
    """Says what lines and bands are."""
    seeds = max(len(histories[name]) for name in shown)
    folds = max(len(found) for name in shown for found in histories[name])
    more = seeds > 1 or folds > 1
    if seeds > 1:
        note = f"mean over {seeds} seeds" + (f" (each the mean of {folds} folds)" if folds > 1 else "")
    else:
        note = f"mean over {folds} folds" if folds > 1 else "one training"
    note = f"Metrics of the validation images; {note}" + ("; band: one standard deviation." if more else ".")
    if len(shown) < len(histories):
        metric = results.grid.titles[results.grid.study.metrics[0]]
        note += f" Shown: of {len(histories)} the {len(shown)} with the best {metric}."
    return note + _rendered(results)
