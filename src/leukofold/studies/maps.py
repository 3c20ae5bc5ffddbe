"""Maps of the features by which a study's networks see several laboratories.

After Tsutsui et al. 2023, Fig. 3: t-SNE of the penultimate features, 39 cells of each class and laboratory - the number
of LISC's rarest class.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leukofold.blending.loading import load_run
from leukofold.competitions import get_competition
from leukofold.embeddings import embed, project
from leukofold.errors import UserError
from leukofold.figures.embedding import domain_figure
from leukofold.reopening import ReopenedRun, reopen
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.grid import StudyRun
from leukofold.studies.results import Results
from leukofold.studies.schema import Maps


def maps_figure(results: Results, root: Path = RUNS) -> Figure | None:
    """Draws the maps that a study asks for, of the networks that have run.

    Args:
        results: What the study found; runs that cannot be mapped are told in its remarks.
        root: Where runs lie.

    Returns:
        The figure, a panel for each row that the study names; None where it names none or none has run.
    """
    study = results.grid.study
    if study.maps is None:
        return None
    chosen: pd.DataFrame | None = None
    panels: dict[str, np.ndarray] = {}
    for levels in study.maps.levels:
        run = _first_complete(results, levels, root)
        if run is None:
            continue
        try:
            reopened = reopen(load_run(RunFolder(run.name, root)))
            if chosen is None:
                chosen = choose_cells(reopened, study.maps)
            if chosen.empty:
                break
            fold = int(reopened.run.folds[0])
            path = reopened.run.folder.fold(fold).map
            vectors = embed(reopened, fold, chosen, path, reopened.table.labelled)
        except UserError as error:
            results.remarks.append(f"no map of {run.name}: {error}")
            continue
        points = project(vectors)
        if points is None:
            results.remarks.append(f"no map of {run.name}: its network gives all images the same features")
            continue
        panels["-".join(levels[axis] for axis in study.axes)] = points
    if chosen is None:
        return None
    absent = [part for part in study.maps.on if part not in set(chosen.split)]
    if absent:
        results.remarks.append(f"maps: no image of {', '.join(absent)} in the input")
    if not panels:
        return None
    names = get_competition(results.grid.runs[0].config.data.competition).class_names
    classes = [names[k] for k in chosen.label]
    rendered = " RENDERED images." if any(row.rendered for row in results.rows) else ""
    note = f"t-SNE of pooled features, each network alone; {len(chosen)} images, seed {study.seeds[0]}.{rendered}"
    parts = ", ".join(dict.fromkeys(chosen.split))
    title = f"{study.title or results.grid.name}: {parts} as the networks see them"
    return domain_figure(panels, classes, chosen.split.tolist(), names, title, note)


def _first_complete(results: Results, levels: Mapping[str, str], root: Path) -> StudyRun | None:
    """Finds the first seed's run of some levels; None where no fold of it is complete."""
    run = results.grid.members(levels, results.grid.study.seeds[0])[0]
    return run if RunFolder(run.name, root).complete_folds() else None


def choose_cells(reopened: ReopenedRun, maps: Maps) -> pd.DataFrame:
    """Draws cells of each class and part, the same ones for every network.

    Args:
        reopened: A run with its data.
        maps: The parts, and how many cells of each class to take at most.

    Returns:
        Rows of the run's ``CellTable``, those of a class and part together; index 0..n-1.
    """
    cells, rng = reopened.table.labelled, np.random.default_rng(0)
    rows: list[int] = []
    for part in maps.on:
        for label in range(len(reopened.table.class_names)):
            own = np.flatnonzero((cells.split == part) & (cells.label == label))
            rows += np.sort(rng.permutation(own)[: maps.per_class]).tolist()
    return cells.iloc[rows].reset_index(drop=True)
