"""Maps of what one network sees: the embeddings of cells that it was not trained on, laid out in two dimensions."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from leukofold.embeddings import fold_embeddings, project
from leukofold.figures.embedding import scatter_figure
from leukofold.reopening import ReopenedRun

MOST = 2000  # cells on a map
FEWEST = 10


def draw_maps(reopened: ReopenedRun) -> Iterator[tuple[str, Figure]]:
    """Draws the held-out cells of a run's first complete fold by t-SNE (van der Maaten and Hinton 2008).

    One fold only: each fold has a network of its own, and their spaces do not compare.

    Args:
        reopened: The run with its data.

    Yields:
        A name and a figure: coloured by class and, where there are several, by source or by the competition's
        own parts. Nothing where the fold has too few cells, or its network gives all the same features.
    """
    rows = map_rows(reopened)
    if len(rows) < FEWEST:
        return
    held_out = _held_out(reopened)
    points = project(fold_embeddings(reopened, int(reopened.run.folds.min()))[np.searchsorted(held_out, rows)])
    if points is None:
        return
    cells = reopened.cells.iloc[rows]
    names = reopened.run.oof.class_names
    yield "map_classes", scatter_figure(points, [names[k] for k in cells.label], "", names)
    for column in ("source", "split"):
        values = pd.Series(cells[column])
        if values.nunique() > 1:
            order = values.value_counts().index.tolist()
            yield f"map_{column}s", scatter_figure(points, values.tolist(), "", order)
            return


def map_rows(reopened: ReopenedRun) -> np.ndarray:
    """Chooses the cells of the map: all of the first complete fold or, of many, the same share of every class."""
    rows = _held_out(reopened)
    if len(rows) <= MOST:
        return rows
    shuffled = np.random.default_rng(0).permutation(rows)
    by_class = shuffled[np.argsort(reopened.cells.label.to_numpy()[shuffled], kind="stable")]
    return np.sort(by_class[np.linspace(0, len(rows) - 1, MOST).round().astype(int)])


def _held_out(reopened: ReopenedRun) -> np.ndarray:
    """Returns the rows of the first complete fold."""
    folds = reopened.run.folds
    return np.flatnonzero(folds == folds.min())
