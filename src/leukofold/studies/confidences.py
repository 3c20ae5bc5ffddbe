"""How sure the heads of a study's MM-MIMO networks are of cells that they have not seen.

After Yang et al. 2022, section 3.3: if each head has learnt to answer for its own image alone, it is sure where that is
fed, and unsure where another image stands in its place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from leukofold.blending.loading import load_run
from leukofold.errors import UserError
from leukofold.figures.confidences import confidence_figure
from leukofold.loaders import CellDataset, make_loader
from leukofold.models.classifier import Classifier
from leukofold.models.heads import ModalityHeads
from leukofold.reopening import ReopenedRun, reopen
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.results import Results

ALL = "all images"


def confidences_figure(results: Results, root: Path = RUNS) -> Figure | None:
    """Draws the confidences that a study asks for, of the first seed's run.

    Args:
        results: What the study found; gets a remark on each input, or on what cannot be drawn.
        root: Where runs lie.

    Returns:
        The figure; None where the study asks for none or the run has no complete fold.
    """
    grid = results.grid
    if grid.study.confidences is None:
        return None
    run = grid.members(grid.study.confidences, grid.study.seeds[0])[0]
    if not RunFolder(run.name, root).complete_folds():
        return None
    try:
        reopened = reopen(load_run(RunFolder(run.name, root)))
        panels = head_confidences(reopened)
    except UserError as error:
        results.remarks.append(f"no confidences of {run.name}: {error}")
        return None
    heads = reopened.seen
    for name, values in panels.items():
        means = "  ".join(f"{head} {mean:.2f}" for head, mean in zip(heads, values.mean(axis=0), strict=True))
        results.remarks.append(f"mean confidence of the heads, fed {name}: {means}")
    cells = len(next(iter(panels.values())))
    rendered = " RENDERED images." if reopened.run.metadata["rendered"] else ""
    note = f"{cells} cells, each by the network that has not seen it. Triangle: mean.{rendered}"
    title = f"{grid.study.title or grid.name}: how sure the heads of {'-'.join(run.levels.values())} are"
    return confidence_figure(panels, heads, len(reopened.run.oof.class_names), title, note)


def head_confidences(reopened: ReopenedRun) -> Mapping[str, np.ndarray]:
    """Computes how sure each head is of each cell out of fold, by what the network is fed.

    Args:
        reopened: A run of MM-MIMO with its data.

    Returns:
        ``ALL``, then ``<image> alone`` for each of M images, which is then fed in the place of all -> n x M, each
        head's highest probability; the competition's cells by fold.

    Raises:
        UserError: The run has one head or adapts its batch statistics, or images or weights are not there any more.
    """
    if reopened.config.model.fusion != "mimo":
        raise UserError(f"{reopened.run.name}: has one head; confidences are of model.fusion: mimo")
    if reopened.config.inference.batch_statistics == "domain":
        raise UserError(f"{reopened.run.name}: scores with batch statistics that its networks do not keep")
    images = reopened.images()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sources = [tuple(range(images.count)), *((k,) * images.count for k in range(images.count))]
    found: list[list[np.ndarray]] = [[] for _ in sources]
    with tqdm(total=len(reopened.cells), desc="confidences", unit="cell", leave=False) as bar:
        for fold in np.unique(reopened.run.folds):
            network = cast(Classifier, reopened.network(int(fold), device))
            cells = reopened.cells[reopened.run.folds == fold]
            loader = make_loader(
                CellDataset(images, cells), reopened.config.data.workers, reopened.config.inference.batch_size
            )
            for batch in loader:
                pixels = batch["image"].to(device)
                for values, places in zip(found, sources, strict=True):
                    values.append(_confidences(network, pixels, places))
                bar.update(len(pixels))
    names = [ALL, *(f"{name} alone" for name in images.modalities)]
    return dict(zip(names, map(np.concatenate, found), strict=True))


@torch.inference_mode()
def _confidences(network: Classifier, pixels: torch.Tensor, places: tuple[int, ...]) -> np.ndarray:
    """Returns each head's highest probability, n x M, where place i of the input gets image ``places[i]``."""
    parts = pixels.reshape(len(pixels), len(places), 3, *pixels.shape[2:])[:, list(places)]
    heads = cast(ModalityHeads, network.head)
    logits = heads.each(network.embed(parts.flatten(1, 2)))
    return np.asarray(logits.float().softmax(dim=2).amax(dim=2).cpu().numpy())
