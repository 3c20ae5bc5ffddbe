"""Scoring images: test-time augmentation on the device, every image exactly once under any launcher."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from leukofold.config import InferenceConfig
from leukofold.loaders import Shuffled, SizedDataset, make_loader
from leukofold.models.adaptation import adapt_batch_statistics

View = Callable[[torch.Tensor], torch.Tensor]


def identity(images: torch.Tensor) -> torch.Tensor:
    """Returns the images as they are: the first view of every test-time augmentation."""
    return images


def tta_views(config: InferenceConfig) -> list[View]:
    """Returns the views that the configuration names, the identity first."""
    if config.tta == "none":
        return [identity]
    return dihedral_views() if config.tta == "dihedral" else rotation_views(config)


def dihedral_views() -> list[View]:
    """Returns the eight flips and quarter turns of a square image, the identity first."""

    def view(turns: int, flip: bool) -> View:
        return lambda images: torch.rot90(images.flip(3) if flip else images, turns, dims=(2, 3))

    return [identity if not (turns or flip) else view(turns, flip) for flip in (False, True) for turns in range(4)]


def rotation_views(config: InferenceConfig) -> list[View]:
    """Returns turns by equal angles, of the image and where asked for of its mirror image, the identity first."""

    def view(step: int, flip: bool) -> View:
        angle = 360 * step / config.angles
        return lambda images: rotate(images.flip(3) if flip else images, angle, config.border, config.interpolation)

    flips = (False, True) if config.mirrored else (False,)
    return [identity if not (step or flip) else view(step, flip) for flip in flips for step in range(config.angles)]


def rotate(images: torch.Tensor, degrees: float, border: str, interpolation: str) -> torch.Tensor:
    """Turns images about their centre.

    Args:
        images: n x C x S x S, any type.
        degrees: Counter-clockwise, as ``torch.rot90`` turns.
        border: What corners are filled with: ``reflect`` or ``black`` (zeros).
        interpolation: ``bilinear`` or ``nearest``.

    Returns:
        n x C x S x S float32.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]], device=images.device)
    padding = {"reflect": "reflection", "black": "zeros"}[border]
    with torch.autocast(images.device.type, enabled=False):  # in bf16 the coordinates would be off by a pixel
        grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, mode=interpolation, padding_mode=padding, align_corners=False)


@torch.inference_mode()
def view_logits(model: nn.Module, images: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """Scores views that are made on the device.

    Args:
        model: In evaluation mode.
        images: n x C x S x S uint8.
        views: From a batch to a batch of the same shape, the identity first.

    Returns:
        n x 2 x K float32: the mean of the logits over all views, and those of the first view alone.
    """
    # contiguous: else a compiled network would be compiled again for each view, which is strided otherwise
    logits = torch.stack([model(view(images).contiguous()).float() for view in views])
    return torch.stack([logits.mean(dim=0), logits[0]], dim=1)


def adapted_copy(
    network: nn.Module,
    dataset: SizedDataset,
    content: np.ndarray,
    config: InferenceConfig,
    workers: int | None,
    device: torch.device,
    images_of: Callable[[Mapping[str, Any]], torch.Tensor] = lambda batch: batch["image"],
) -> nn.Module:
    """Copies a network, with the batch statistics of the images that are to be scored; see ``models.adaptation``.

    Every process goes through all images, in full precision, so that all score with the same network.

    Args:
        network: Stays as it is.
        dataset: All n images of one domain.
        content: n checksums of what they show, by which they are put in order: else the statistics, which grow batch
            by batch, would depend on the images' order.
        config: Images at a time, and the weight of the training's statistics.
        workers: Loader processes.
        device: Where the network computes.
        images_of: Takes the network's input out of a batch.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UserError: The network has no batch normalisation.
    """
    adapted = copy.deepcopy(network)
    loader = make_loader(Shuffled(dataset, content), workers, config.batch_size)
    title, least = "batch statistics", 4  # batches: fewer are done at once
    bar = tqdm(loader, title, leave=False, disable=len(loader) < least)
    adapt_batch_statistics(adapted, (images_of(batch).to(device) for batch in bar), config.statistics_prior)
    return adapted


def by_domain(
    frame: pd.DataFrame, config: InferenceConfig, compute: Callable[[pd.DataFrame], np.ndarray]
) -> np.ndarray:
    """Computes something of a table, one domain after the other where each has batch statistics of its own.

    Args:
        frame: n rows of a ``CellTable``; a split or target domain is a domain.
        config: Says whose batch statistics are used.
        compute: From m rows, index 0..m-1, to an array of m.

    Returns:
        The results in the order of the rows.
    """
    if config.batch_statistics == "training":
        return compute(frame)
    parts = [np.flatnonzero(frame.split == split) for split in frame.split.unique()]
    results = [compute(frame.iloc[rows].reset_index(drop=True)) for rows in parts]
    return np.concatenate(results)[np.argsort(np.concatenate(parts))]


def score_rows(
    accelerator: Accelerator,
    loader: DataLoader[Any],
    forward: Callable[[Mapping[str, Any]], torch.Tensor],
    count: int,
    title: str,
) -> np.ndarray:
    """Scores every row of a data set exactly once, over all processes.

    Args:
        accelerator: Devices and processes.
        loader: Brings batches with their ``row`` numbers, in order; not prepared yet.
        forward: From a batch on the device to its n results; the same on every process.
        count: Number of rows.
        title: What the progress bar says.

    Returns:
        The results in the order of the rows, float32, the same on every process.

    Raises:
        RuntimeError: A row was not scored, or scored twice.
    """
    rows, results = [], []
    bar = tqdm(total=count, desc=title, unit="image", disable=not accelerator.is_main_process, leave=False)
    with bar:
        for batch in accelerator.prepare(loader):
            with accelerator.autocast():
                scored = forward(batch)
            kept_rows, kept_results = accelerator.gather_for_metrics((batch["row"], scored))
            rows.append(kept_rows.cpu().numpy())
            results.append(kept_results.cpu().numpy())
            bar.update(len(rows[-1]))
    order = np.concatenate(rows)
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise RuntimeError(f"{title}: {len(order)} rows scored of {count}, {len(np.unique(order))} of them distinct")
    return np.concatenate(results)[np.argsort(order)]
