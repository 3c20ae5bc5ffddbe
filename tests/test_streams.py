"""What loaders deliver in training: no worker, epoch or process repeats another, and their number changes nothing."""

import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import get_worker_info

from leukofold.augment import Augmentation
from leukofold.config import ImageConfig, SamplerConfig, Transform
from leukofold.images.cache import open_cache
from leukofold.images.cellimages import CellImages
from leukofold.images.preparing import Preparation
from leukofold.loaders import CellDataset, IndependentCells, SizedDataset, make_loader
from leukofold.sampling import EpochSampler

EPOCHS, BATCH, WORKERS, PROCESSES = (1, 2, 3), 4, (0, 1, 2), (1, 2)
AUGMENT = (
    Transform(name="D4", p=1.0),
    Transform.model_validate({"name": "GaussNoise", "std_range": [0.05, 0.1], "p": 1.0}),
)
SEVERAL = {"epoch": "epochs", "process": "processes", "worker": "workers"}
Source = type[CellDataset] | type[IndependentCells]


@dataclass(frozen=True)
class Sample:
    """One image as a process got it.

    Attributes:
        epoch: From 1.
        process: From 0.
        worker: From 0; -1: the process itself.
        row: Of the table.
        seed: What its augmentation was drawn from.
        pixels: The augmented image, byte for byte.
    """

    epoch: int
    process: int
    worker: int
    row: int
    seed: int
    pixels: bytes

    @property
    def delivered(self) -> tuple[int, int, int, bytes]:
        """All but who brought it."""
        return self.epoch, self.row, self.seed, self.pixels


class Recorded(SizedDataset):
    """Brings what a training's data set does, and tells the seeds and the worker."""

    def __init__(self, dataset: CellDataset | IndependentCells) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.dataset)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        """Brings one place of a batch: an image, or one of each of several cells."""
        if isinstance(self.dataset, IndependentCells):
            keys = self.keys(key)
            sample = self.dataset[keys]
        else:
            keys = self.keys([key])
            sample = self.dataset[keys[0]]
        worker = get_worker_info()
        sample |= {"seed": torch.tensor([seed for _, seed in keys]), "worker": worker.id if worker else -1}
        return sample

    def keys(self, keys: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Returns rows and seeds as they are used: here, as they were drawn."""
        return keys


class GlobalState(Recorded):
    """The classical bug: augmentations are drawn from NumPy's global state, whatever it is in a worker."""

    def keys(self, keys: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Draws the seeds."""
        return [(row, int(np.random.randint(2**62))) for row, _ in keys]


class ForkedGlobalState(GlobalState):
    """The same where a worker begins with a copy of its parent's state, as NumPy's is copied by a fork."""

    def __init__(self, dataset: CellDataset | IndependentCells) -> None:
        super().__init__(dataset)
        self.process, self.state = os.getpid(), np.random.get_state()

    def keys(self, keys: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Draws the seeds."""
        if os.getpid() != self.process:
            self.process = os.getpid()
            np.random.set_state(self.state)
        return super().keys(keys)


@pytest.fixture(scope="module")
def frame(small_images: pd.DataFrame) -> pd.DataFrame:
    """The images, under the name that rows of a table have."""
    return small_images


@pytest.fixture(scope="module")
def images(frame: pd.DataFrame) -> CellImages:
    """Their cache at 16 pixels, as of cells of one image."""
    preparation = Preparation(ImageConfig(size=16), lambda image: image)
    return CellImages([open_cache(frame, preparation, "none", Path(frame.path[0]).parent / "cache", progress=False)])


def deliver(dataset: SizedDataset, frame: pd.DataFrame, modalities: int, workers: int, processes: int) -> list[Sample]:
    """Loads three epochs as the trainer does, each process its share of every batch; in the order of the batches."""
    found: dict[tuple[int, int], list[list[Sample]]] = defaultdict(list)  # epoch and batch -> of each process
    for process in range(processes):
        sampler = EpochSampler(frame.label.to_numpy(), 3, BATCH, 1, SamplerConfig(), 5, modalities)
        loader = prepare_data_loader(
            make_loader(dataset, workers, sampler=sampler),
            num_processes=processes, process_index=process, split_batches=True,
        )  # fmt: skip
        for epoch in EPOCHS:
            sampler.start_epoch(epoch)
            for number, batch in enumerate(loader):
                found[epoch, number].append(_samples(batch, epoch, process, modalities))
    return [sample for shares in found.values() for share in shares for sample in share]


def _samples(batch: dict[str, torch.Tensor], epoch: int, process: int, modalities: int) -> list[Sample]:
    """Takes a batch apart."""
    seeds = batch["seed"]
    pixels = batch["image"].reshape(*seeds.shape, 3, *batch["image"].shape[2:])
    places = itertools.product(range(len(seeds)), range(modalities))
    rows = batch["row"].reshape(seeds.shape)
    return [
        Sample(
            epoch, process, int(batch["worker"][i]), int(rows[i, m]), int(seeds[i, m]), pixels[i, m].numpy().tobytes()
        )
        for i, m in places
    ]


def problems(streams: dict[tuple[int, int], list[Sample]]) -> set[str]:
    """Tells what is wrong with streams, by processes and workers."""
    found = set()
    alone = [sample.delivered for sample in streams[1, 0]]
    for (processes, workers), stream in streams.items():
        for one, other in itertools.combinations(_by_who(stream).values(), 2):
            if {sample.seed for sample in one} & {sample.seed for sample in other}:
                a, b = one[0], other[0]
                differ = [what for what in SEVERAL if getattr(a, what) != getattr(b, what)]
                found |= (
                    {f"{SEVERAL[what]} share a seed" for what in differ} if len(differ) == 1 else {"a seed is shared"}
                )
        of_row: dict[int, list[bytes]] = defaultdict(list)
        for sample in stream:
            of_row[sample.row].append(sample.pixels)
        if any(len(set(pixels)) < len(pixels) for pixels in of_row.values()):
            found.add("an image is augmented alike twice")
        if sorted(sample.delivered for sample in stream) != sorted(alone):
            found.add(
                f"the number of {'processes' if workers == 0 and processes > 1 else 'workers'} changes the stream"
            )
        elif [sample.delivered for sample in stream] != alone:
            found.add("the order changes")
    return found


def _by_who(stream: Sequence[Sample]) -> dict[tuple[int, int, int], list[Sample]]:
    """Groups samples by epoch, process and worker."""
    groups: dict[tuple[int, int, int], list[Sample]] = defaultdict(list)
    for sample in stream:
        groups[sample.epoch, sample.process, sample.worker].append(sample)
    return groups


def all_streams(
    kind: type[Recorded], source: Source, frame: pd.DataFrame, images: CellImages
) -> dict[tuple[int, int], list[Sample]]:
    """Loads with every number of processes and workers."""
    streams = {}
    for processes, workers in itertools.product(PROCESSES, WORKERS):
        np.random.seed(7)  # as each of these commands would begin
        dataset = kind(source(images, frame, Augmentation(AUGMENT)))
        streams[processes, workers] = deliver(dataset, frame, images.count, workers, processes)
    return streams


def test_workers_epochs_and_processes_do_not_repeat_each_other(frame: pd.DataFrame, images: CellImages) -> None:
    streams = all_streams(Recorded, CellDataset, frame, images)
    assert problems(streams) == set()
    assert {sample.worker for sample in streams[2, 2]} == {0, 1}
    assert {sample.process for sample in streams[2, 2]} == {0, 1}
    seen = [{sample.row for sample in streams[1, 0] if sample.epoch == epoch} for epoch in EPOCHS]
    assert seen[0] & seen[1] & seen[2]  # there are images of all epochs to be compared
    assert len(streams[1, 0]) == len(EPOCHS) * len(frame)


def test_nor_do_they_where_each_place_has_several_cells(frame: pd.DataFrame, images: CellImages) -> None:
    several = CellImages(images.caches * 3, ("a", "b", "c"))
    streams = all_streams(Recorded, IndependentCells, frame, several)
    assert problems(streams) == set()
    assert len(streams[2, 1]) == len(EPOCHS) * len(frame) * 3


def test_the_classical_bug_would_be_found(frame: pd.DataFrame, images: CellImages) -> None:
    found = problems(all_streams(ForkedGlobalState, CellDataset, frame, images))
    assert found >= {
        "workers share a seed",
        "processes share a seed",
        "an image is augmented alike twice",
        "the number of workers changes the stream",
        "the number of processes changes the stream",
    }


def test_and_so_would_a_global_state_that_each_worker_seeds(frame: pd.DataFrame, images: CellImages) -> None:
    # PyTorch seeds NumPy in each worker now, from the loader's generator: the same one in each process
    found = problems(all_streams(GlobalState, CellDataset, frame, images))
    assert found >= {"the number of workers changes the stream", "processes share a seed"}
