"""Which images make up a batch, and the loaders that bring them.

Sampling is stateless: what epoch ``e`` draws is a function of (seed, e) alone. That makes a resumed
run repeat an uninterrupted one, and all processes agree without exchanging a word.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from leukofold.augment import ImagePipeline
from leukofold.config import SamplerConfig
from leukofold.images.reading import read_image
from leukofold.processes import cores_per_process

MOST_WORKERS = 16  # more only cost memory: one GPU wants no more images than these decode
Key = tuple[int, int]  # row of the frame, seed of its augmentation


def class_weights(labels: np.ndarray, classes: int, config: SamplerConfig) -> np.ndarray:
    """Weighs classes against their imbalance.

    The effective number of n images is E_n = (1 - beta^n) / (1 - beta); a class weighs 1 / E_n
    (Cui et al. 2019, eq. 2; papers/001 with beta = .9999).

    Args:
        labels: n class indices.
        classes: K.
        config: Kind and beta.

    Returns:
        K float64 weights of mean 1 over the images; 0 for absent classes.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    present = counts > 0
    weights = present.astype(np.float64)
    if config.kind == "effective_number":
        effective = (1 - config.beta ** counts[present]) / (1 - config.beta)
        weights[present] = 1 / effective
    scale = len(labels) / float((weights * counts).sum())
    return np.multiply(weights, scale)


class EpochSampler(Sampler[list[Key]]):
    """Draws the batches of one epoch after another, all of full size.

    Args:
        labels: n class indices of the training images.
        classes: K.
        batch_size: Images per optimiser step, in total over all processes.
        parts: Batches that an optimiser step is computed in; the sampler yields these.
        config: Uniform draws are a permutation, weighted draws are with replacement.
        seed: The training's seed.
    """

    drop_last = True  # read by accelerate: every batch is full, there is nothing to pad

    def __init__(
        self, labels: np.ndarray, classes: int, batch_size: int, parts: int, config: SamplerConfig, seed: int
    ) -> None:
        self.batch_size = batch_size // parts
        self.seed = seed
        self.count = len(labels)
        self.steps = max(1, self.count // batch_size) * parts
        self.probabilities: np.ndarray | None = None
        if config.kind != "uniform":
            weights = class_weights(labels, classes, config)[labels]
            self.probabilities = weights / weights.sum()
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws.

        Not called ``set_epoch``: accelerate calls a method of that name with its own count, which
        starts at 0 in a resumed run.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[list[Key]]:
        """Yields batches of (row, augmentation seed)."""
        rng = np.random.default_rng([self.seed, self.epoch])
        wanted = self.steps * self.batch_size
        if self.probabilities is None:
            rows = np.concatenate([rng.permutation(self.count) for _ in range(-(-wanted // self.count))])[:wanted]
        else:
            rows = rng.choice(self.count, size=wanted, p=self.probabilities)
        seeds = rng.integers(0, 2**63, size=wanted)
        for start in range(0, wanted, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield [(int(row), int(seed)) for row, seed in zip(rows[part], seeds[part], strict=True)]


class CellDataset(Dataset[dict[str, Any]]):
    """Decodes and transforms the images of a table.

    Args:
        frame: Rows of a ``CellTable``.
        pipeline: What is done to each image.
    """

    def __init__(self, frame: pd.DataFrame, pipeline: ImagePipeline) -> None:
        self.paths = frame.path.to_numpy(dtype=object)
        self.labels = frame.label.to_numpy()
        self.pipeline = pipeline

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Brings one image.

        Args:
            key: A row, or a row and the seed of its augmentation.

        Returns:
            ``image`` (3 x S x S uint8), ``label`` and ``row``.
        """
        row, seed = key if isinstance(key, tuple) else (key, 0)
        image = self.pipeline(read_image(self.paths[row]), seed)
        return {"image": torch.from_numpy(image), "label": int(self.labels[row]), "row": row}


def make_loader(
    dataset: CellDataset, workers: int | None, batch_size: int = 1, sampler: EpochSampler | None = None
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
    """Keeps each worker to its own core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
