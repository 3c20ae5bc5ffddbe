"""Embeddings of out-of-fold images: the backbone's pooled features, by the network that has not seen the image.

Each fold has a network, and so a space, of its own: distances mean something within a fold only.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from tqdm import tqdm

from leukofold.files import replacing
from leukofold.inference import adapted_copy, by_domain
from leukofold.loaders import CellDataset, make_loader
from leukofold.models.classifier import Classifier
from leukofold.reopening import ReopenedRun

PERPLEXITY = 30  # t-SNE's own default; less where images are few


def run_embeddings(reopened: ReopenedRun) -> np.ndarray:
    """Embeds all out-of-fold images of a run, or reads what was computed before.

    Args:
        reopened: The run with its data.

    Returns:
        n x D float32, in the order of ``reopened.cells``.

    Raises:
        UserError: Images or weights are not there any more.
    """
    folds = reopened.run.folds
    parts = {int(fold): fold_embeddings(reopened, int(fold)) for fold in np.unique(folds)}
    vectors = np.empty((len(folds), next(iter(parts.values())).shape[1]), dtype=np.float32)
    for fold, part in parts.items():
        vectors[folds == fold] = part
    return vectors


def fold_embeddings(reopened: ReopenedRun, fold: int) -> np.ndarray:
    """Embeds one fold's held-out images, or reads what was computed before; the fold's folder keeps the result.

    Args:
        reopened: The run with its data.
        fold: A complete fold.

    Returns:
        m x D float32: the fold's images in the order of ``reopened.cells``.

    Raises:
        UserError: Images or weights are not there any more.
    """
    frame = reopened.cells[reopened.run.folds == fold]
    return embed(reopened, fold, frame, reopened.run.folder.fold(fold).embeddings)


def embed(
    reopened: ReopenedRun, fold: int, frame: pd.DataFrame, path: Path, domain: pd.DataFrame | None = None
) -> np.ndarray:
    """Embeds images by a fold's network, or reads what was computed before.

    One process does it by itself, without accelerate: studies do so when their other processes have ended.

    Args:
        reopened: The run with its data.
        fold: A complete fold.
        frame: m rows of a ``CellTable``, of the run's own input.
        path: The file in the fold's folder that keeps the result.
        domain: The images whose batch statistics the network takes up, by split, where its configuration wants that;
            None: ``frame``.

    Returns:
        m x D float32.

    Raises:
        UserError: Images or weights are not there any more.
    """
    images = reopened.images()
    made_of = {"image_id": frame.image_id.to_numpy(dtype=str), "images": np.array(images.key)}
    kept = _read(path, made_of)
    if kept is not None:
        return kept
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = reopened.network(fold, device)
    inference, workers = reopened.config.inference, reopened.config.data.workers
    domain = frame if domain is None else domain
    bar = tqdm(total=len(frame), desc=f"{reopened.run.name} fold {fold} embeddings", unit="image", leave=False)

    @torch.inference_mode()
    def vectors_of(part: pd.DataFrame) -> np.ndarray:
        own = network
        if inference.batch_statistics == "domain":
            everything = CellDataset(images, domain[domain.split == part.split.iloc[0]].reset_index(drop=True))
            own = cast(Classifier, adapted_copy(network, everything, everything.content, inference, workers, device))
        vectors = []
        for batch in make_loader(CellDataset(images, part), workers, inference.batch_size):
            vectors.append(own.embed(batch["image"].to(device)).float().cpu().numpy())
            bar.update(len(vectors[-1]))
        return np.concatenate(vectors)

    with bar:
        vectors = by_domain(frame.reset_index(drop=True), inference, vectors_of)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, embeddings=vectors, **made_of)  # type: ignore[arg-type]
    return vectors


def project(vectors: np.ndarray) -> np.ndarray | None:
    """Lays features out in two dimensions by t-SNE (van der Maaten and Hinton 2008), by their cosine distances.

    Args:
        vectors: m x D, at least 4 rows.

    Returns:
        m x 2; None of a network that gives all images the same features, which has no map.
    """
    directions = normalize(vectors)
    if np.ptp(directions, axis=0).max() == 0:  # t-SNE would crash
        return None
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    points: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(directions)
    return points


def _read(path: Path, made_of: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Reads embeddings that were computed before; None where there are none, or of other images, or damaged ones.

    A training clears them away, so that they are always of the fold's present network.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            same = all(np.array_equal(arrays[name], value) for name, value in made_of.items())
            return np.asarray(arrays["embeddings"]) if same else None
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
