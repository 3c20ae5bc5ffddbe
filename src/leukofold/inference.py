"""Scoring images: test-time augmentation on the device, every image exactly once under any launcher."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from leukofold.loaders import CellDataset, make_loader

View = Callable[[torch.Tensor], torch.Tensor]


def dihedral_views() -> list[View]:
    """Returns the eight flips and quarter turns of a square image, the identity first."""

    def view(turns: int, flip: bool) -> View:
        return lambda images: torch.rot90(images.flip(3) if flip else images, turns, dims=(2, 3))

    return [view(turns, flip) for flip in (False, True) for turns in range(4)]


def tta_views(name: str) -> list[View]:
    """Returns the views of a test-time augmentation by its name in the configuration."""
    views = dihedral_views()
    return views if name == "dihedral" else views[:1]


@torch.inference_mode()
def mean_logits(model: nn.Module, images: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """Averages a network's logits over views made on the device.

    Args:
        model: In evaluation mode.
        images: n x 3 x S x S uint8.
        views: From a batch to a batch of the same shape.

    Returns:
        n x K float32.
    """
    return torch.stack([model(view(images)).float() for view in views]).mean(dim=0)


def score_images(
    accelerator: Accelerator,
    model: nn.Module,
    frame: pd.DataFrame,
    dataset: CellDataset,
    views: Sequence[View],
    batch_size: int,
    workers: int | None,
    title: str,
) -> np.ndarray:
    """Scores every image of a table exactly once, over all processes.

    Args:
        accelerator: Devices and processes.
        model: The same weights on every process, on its device; not wrapped for gradients.
        frame: n rows of a ``CellTable``.
        dataset: Their images, without augmentation.
        views: Test-time augmentation.
        batch_size: Images at a time, per process.
        workers: Loader processes, per process.
        title: What the progress bar says.

    Returns:
        n x K float32 logits in the order of ``frame``, the same on every process.

    Raises:
        RuntimeError: An image was not scored, or scored twice.
    """
    model.eval()
    loader = accelerator.prepare(make_loader(dataset, workers, batch_size * accelerator.num_processes))
    rows, logits = [], []
    bar = tqdm(total=len(frame), desc=title, unit="image", disable=not accelerator.is_main_process, leave=False)
    with bar:
        for batch in loader:
            with accelerator.autocast():
                scored = mean_logits(model, batch["image"], views)
            kept_rows, kept_logits = accelerator.gather_for_metrics((batch["row"], scored))
            rows.append(kept_rows.cpu().numpy())
            logits.append(kept_logits.cpu().numpy())
            bar.update(len(rows[-1]))
    order = np.concatenate(rows)
    if not np.array_equal(np.sort(order), np.arange(len(frame))):
        raise RuntimeError(
            f"{title}: {len(order)} rows scored of {len(frame)}, {len(np.unique(order))} of them distinct"
        )
    return np.concatenate(logits)[np.argsort(order)]
