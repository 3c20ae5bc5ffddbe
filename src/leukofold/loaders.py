"""The loaders that bring images to the device."""

import gc
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from leukofold.augment import Augmentation
from leukofold.images.cellimages import CellImages
from leukofold.processes import cores_per_process
from leukofold.sampling import EpochSampler, Key

MOST_WORKERS = 16  # more only cost memory: one GPU wants no more images than these decode


class SizedDataset(Dataset[dict[str, Any]], ABC):
    """A data set of known length, as all of ours are."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of images."""


class CellDataset(SizedDataset):
    """Brings prepared images of a table's cells, augmented in training.

    Args:
        images: The images, M of each cell.
        frame: Rows of a ``CellTable``.
        augmentation: For training; None: the images as they are.
    """

    def __init__(self, images: CellImages, frame: pd.DataFrame, augmentation: Augmentation | None = None) -> None:
        self.images = images
        self.rows = images.rows(frame.image_id.tolist())
        self.labels = frame.label.to_numpy()
        self.augmentation = augmentation

    @property
    def content(self) -> np.ndarray:
        """What the images show, n numbers; see ``CellImages.content``."""
        return self.images.content(self.rows)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Brings one cell.

        Args:
            key: A row, or a row and the seed of its augmentation.

        Returns:
            ``image`` (3M x S x S uint8: the modalities' colours one after another), ``label`` and ``row``.
        """
        row, seed = key if isinstance(key, tuple) else (key, 0)
        images = self.images.of_cell(self.rows[row])
        if self.augmentation is not None:
            images = self.augmentation(images, seed)
        return {"image": as_channels(images), "label": int(self.labels[row]), "row": row}


class IndependentCells(SizedDataset):
    """Brings, for each modality, another cell: what the heads of MM-MIMO are trained on, each on its own modality.

    Args:
        images: The images, M of each cell.
        frame: Rows of a ``CellTable``.
        augmentation: Done to each image by itself, as they are of different cells.
    """

    def __init__(self, images: CellImages, frame: pd.DataFrame, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation
        self.rows = images.rows(frame.image_id.tolist())
        self.labels = torch.from_numpy(frame.label.to_numpy(dtype=np.int64, copy=True))

    def __len__(self) -> int:
        """Returns the number of cells."""
        return len(self.rows)

    def __getitem__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Brings an image of each of M cells.

        Args:
            keys: For each modality a row, and the seed of its augmentation.

        Returns:
            ``image`` (3M x S x S uint8), ``label`` (M) and ``row`` (M).
        """
        rows = [row for row, _ in keys]
        images = [
            self.augmentation(self.images.of_modality(self.rows[row], modality), seed)
            for modality, (row, seed) in enumerate(keys)
        ]
        return {"image": as_channels(np.concatenate(images)), "label": self.labels[rows], "row": torch.tensor(rows)}


def as_channels(images: np.ndarray) -> torch.Tensor:
    """Brings M x S x S x 3 images to a network's order: 3M x S x S, the colours of one image after another."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(-1, *images.shape[1:3]))


class Shuffled(SizedDataset):
    """The same images in an order that is random and always the same: neither their names nor their places decide it.

    Args:
        dataset: n images.
        content: n checksums of what they show.
    """

    def __init__(self, dataset: SizedDataset, content: np.ndarray) -> None:
        self.dataset = dataset
        self.order = np.argsort(content, kind="stable")

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Brings one image, as the data set does."""
        sample: dict[str, Any] = self.dataset[int(self.order[position])]
        return sample


def make_loader(
    dataset: SizedDataset, workers: int | None, batch_size: int = 1, sampler: EpochSampler | None = None
) -> DataLoader[Any]:
    """Makes a loader over an epoch's batches, or over all rows in order.

    Args:
        dataset: The images.
        workers: Loader processes; None: one per core of this process's share, 16 at most.
        batch_size: Images per batch where there is no sampler.
        sampler: The training's batches.

    Returns:
        The loader, to be prepared by accelerate.
    """
    if workers is None:
        workers = min(MOST_WORKERS, cores_per_process())
    workers = min(workers, len(sampler) if sampler is not None else -(-len(dataset) // batch_size))
    arguments: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),  # else loaders draw from dropout's stream, more or less often by their workers
    }
    if workers:
        arguments |= {"worker_init_fn": _start_worker, "persistent_workers": sampler is not None, "prefetch_factor": 4}
    if sampler is not None:
        return DataLoader(dataset, batch_sampler=sampler, **arguments)
    return DataLoader(dataset, batch_size=batch_size, **arguments)


def _start_worker(_: int) -> None:
    """Keeps each worker to its own core, and to the memory that it shares with the others."""
    gc.freeze()  # else its first collection would touch, and so copy, every object that the training made: 115 MB
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
