"""The host memory that training takes, by simulation: a large image cache that is a sparse file of zeros.

Counted is what the page cache could not give back: the private memory of the process and its loaders (a page that
forked processes share counts once, as /proc/<pid>/smaps_rollup has it: Pss_Anon), and shared memory, which batches
travel in. Pages of the mapped image cache are page cache; they are reported apart.
"""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from timm.utils.model_ema import ModelEmaV3

from leukofold.augment import Augmentation
from leukofold.benchmarks.measuring import Report, synchronise
from leukofold.cells import CellTable
from leukofold.competitions import get_competition
from leukofold.config import Config, ModelConfig
from leukofold.images.cache import PIXELS, ImageCache
from leukofold.images.cellimages import CellImages
from leukofold.images.preparing import Preparation
from leukofold.loaders import MOST_WORKERS, CellDataset, make_loader
from leukofold.models.classifier import Classifier
from leukofold.processes import available_cores, keep_freed_memory
from leukofold.rowmaps import checksums, seal, write_checksums
from leukofold.sampling import EpochSampler
from leukofold.training.losses import build_loss, soft_targets
from leukofold.training.optimizing import build_optimizer

TARGET = 4e9  # bytes beyond the page cache
IMAGES = 55_000
STEPS = 200
INTERVAL = 0.5  # seconds between samples, each of which walks through all pages of all processes
BACKBONE = "test_convnext2"  # of timm
SEEN = 64  # pixels at each image's centre that the network looks at: the loaders are measured, not the network
SMAPS = Path("/proc/self/smaps_rollup")
SHARED_MEMORY = ("/dev/shm/", "/memfd:")  # what files there are called in /proc/<pid>/fd


@dataclass(frozen=True)
class Memory:
    """Memory of a process and its children, in bytes.

    Attributes:
        private: Of the processes alone; a page that several share counts once.
        shared: Shared memory, whether it is mapped at the moment or on its way in a queue.
        page_cache: Mapped pages of files, which the system takes back where it needs them.
        processes: Number of processes.
    """

    private: int
    shared: int
    page_cache: int
    processes: int

    @property
    def taken(self) -> int:
        """Bytes beyond the page cache."""
        return self.private + self.shared


@dataclass
class Samples:
    """Memory of this process and its children over some time."""

    seen: list[Memory] = field(default_factory=list)

    def take(self) -> None:
        """Takes a sample now."""
        self.seen.append(measure_memory())

    @property
    def peak(self) -> Memory:
        """The sample that took most beyond the page cache, with the most processes that any sample saw."""
        peak = max(self.seen, key=lambda memory: memory.taken)
        return replace(peak, processes=max(memory.processes for memory in self.seen))


@dataclass(frozen=True)
class Simulation:
    """What a simulated training took.

    Attributes:
        before: With all libraries loaded, before anything of the training.
        data: With table, image cache, data set and sampler.
        network: With network, moving average and optimiser.
        training: Peak over the steps.
        validation: Peak while images are scored, the training's loaders waiting beside.
        network_bytes: Weights, their moving average, gradients and the optimiser's state.
        file_bytes: Length of the image cache's file.
        disk_bytes: What it takes on the disk.
        travelling_bytes: Batches that loaders keep ready at most.
    """

    before: Memory
    data: Memory
    network: Memory
    training: Memory
    validation: Memory
    network_bytes: int
    file_bytes: int
    disk_bytes: int
    travelling_bytes: int

    @property
    def peak(self) -> Memory:
        """The larger of both peaks."""
        return max(self.training, self.validation, key=lambda memory: memory.taken)


def memory(report: Report, images: int | None) -> None:
    """Host memory of a training on 55,000 images, with the loaders of this machine and with the most there are.

    Args:
        report: Where figures go.
        images: Images of the cache; None: 55,000.
    """
    count = images or IMAGES
    command = "run it on Linux: python scripts/benchmark.py memory"
    for workers in dict.fromkeys((min(MOST_WORKERS, available_cores()), MOST_WORKERS)):
        report.begin(
            f"training {BACKBONE} on {count} images of 224 pixels, {workers} loader processes, zeros from a sparse file"
        )
        if not SMAPS.exists():
            report.not_measured("host memory", f"no {SMAPS} here", command)
            continue
        with tempfile.TemporaryDirectory() as folder:
            _tell(report, simulate_training(Path(folder), count, workers, STEPS))


def _tell(report: Report, found: Simulation) -> None:
    """Adds one simulation's figures."""
    parts = {
        "libraries loaded": found.before,
        "with table, cache, sampler": found.data,
        "with network, EMA, optimiser": found.network,
        "peak while training": found.training,
        "peak while validating, training's loaders beside": found.validation,
    }
    for name, part in parts.items():
        report.add(
            name,
            f"{part.taken / 1e9:6.2f} GB (private {part.private / 1e9:.2f}, shared {part.shared / 1e9:.2f}) in "
            f"{part.processes} process(es); page cache {part.page_cache / 1e9:.2f} GB",
            {"private_bytes": part.private, "shared_bytes": part.shared, "page_cache_bytes": part.page_cache},
        )
    sizes = {
        "weights, their average, gradients, optimiser": found.network_bytes,
        "batches that loaders keep ready, at most": found.travelling_bytes,
        "length of the image cache": found.file_bytes,
        "the image cache on the disk": found.disk_bytes,
    }
    for name, size in sizes.items():
        report.add(name, f"{size / 1e9:6.2f} GB", {"bytes": size})
    met = found.peak.taken < TARGET
    report.add(
        "peak beyond the page cache",
        f"{found.peak.taken / 1e9:6.2f} GB  (aimed at: less than {TARGET / 1e9:g} GB; {'met' if met else 'not met'})",
        {"bytes": found.peak.taken, "target_bytes": TARGET},
    )


def simulate_training(folder: Path, count: int, workers: int, steps: int) -> Simulation:
    """Trains a small network for some steps and scores some images, with the loaders of a real training.

    Args:
        folder: An empty one, on a file system that has sparse files.
        count: Images of the cache.
        workers: Loader processes.
        steps: Of training; an epoch is cut short to so many.

    Returns:
        The memory that it took.
    """
    # A fresh process, as this one's own memory is not the training's; its loaders start as they would from here
    spawn, usual = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(_simulate, folder, count, workers, steps, usual).result()


def _simulate(folder: Path, count: int, workers: int, steps: int, start_method: str) -> Simulation:
    """Does so in this process, with loaders that start by that method of multiprocessing."""
    multiprocessing.set_start_method(start_method, force=True)
    keep_freed_memory()  # as every command does
    config = Config(model=ModelConfig(backbone=BACKBONE, pretrained=False))
    competition = get_competition("wbcbench")
    before = measure_memory()
    table = synthetic_table(count, competition.class_names)
    frame = table.labelled
    file = sparse_cache(folder, frame, config)
    images = CellImages([ImageCache(folder)])
    train = frame[np.arange(count) % config.folds.count != 0].reset_index(drop=True)
    held_out = frame[np.arange(count) % config.folds.count == 0].reset_index(drop=True)
    batch, scored = config.training.batch_size, config.inference.batch_size
    sampler = EpochSampler(train.label.to_numpy(), len(table.class_names), batch, 1, config.sampler, seed=0)
    sampler.steps = min(sampler.steps, steps)
    dataset = CellDataset(images, train, Augmentation(config.image.augment))
    loader = make_loader(dataset, workers, sampler=sampler)
    data = measure_memory()
    fitting = Fitting(config, train.label.to_numpy(), len(table.class_names))
    with sampled() as training:
        for number, batch_of_images in enumerate(loader):
            fitting.step(batch_of_images)
            if number == 0:
                training.take()  # a short epoch could end between two samples
    validation_loader = make_loader(CellDataset(images, held_out.head(scored * steps // 4)), workers, scored)
    with sampled() as validation:  # the training's loaders persist
        for number, batch_of_images in enumerate(validation_loader):
            fitting.score(batch_of_images)
            if number == 0:
                validation.take()
    pixels = file.stat()
    return Simulation(
        before,
        data,
        fitting.memory,
        training.peak,
        validation.peak,
        fitting.bytes,
        pixels.st_size,
        pixels.st_blocks * 512,
        workers * (loader.prefetch_factor or 0) * max(batch, scored) * 3 * config.image.size**2,
    )


class Fitting:
    """A network with all that a training keeps beside it.

    Args:
        config: Of the run.
        labels: n class indices to train on.
        classes: K.
    """

    def __init__(self, config: Config, labels: np.ndarray, classes: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classes = classes
        image = config.image.model_copy(update={"input_size": SEEN})  # the loaders still bring all of it
        self.network = Classifier(config.model, image, classes).to(self.device)
        self.ema = ModelEmaV3(self.network, decay=config.training.ema_decay)
        self.optimizer = build_optimizer(self.network, config.optimizer)
        self.loss = build_loss(config.loss, labels, classes).to(self.device)
        self.memory = measure_memory()

    @property
    def bytes(self) -> int:
        """Weights, their moving average, gradients and the optimiser's state."""
        weights = [*self.network.state_dict().values(), *self.ema.module.state_dict().values()]
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in [*weights, *gradients, *states] if isinstance(value, torch.Tensor)]
        return sum(value.nbytes for value in tensors)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Runs an optimiser step."""
        self.network.train()
        targets = soft_targets(batch["label"].to(self.device), self.classes, 0.0)
        self.loss(self.network(batch["image"].to(self.device)), targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.ema.update(self.network)

    @torch.inference_mode()
    def score(self, batch: dict[str, torch.Tensor]) -> None:
        """Scores a batch with the moving average."""
        self.ema.module.eval()
        self.ema.module(batch["image"].to(self.device))
        synchronise()


def synthetic_table(count: int, class_names: tuple[str, ...]) -> CellTable:
    """Builds a table of labelled cells whose ids and paths are as long as real ones.

    Args:
        count: n.
        class_names: K.

    Returns:
        n rows; rare classes and 345 patients, as WBCBench has them.
    """
    classes = len(class_names)
    rarity = 1.6 ** np.arange(classes)
    names = [f"{number:08d}.jpg" for number in range(count)]
    return CellTable.from_columns(
        class_names,
        image_id=names,
        path=[f"input/wbcbench/phase2/train/{name}" for name in names],
        bytes=np.full(count, 40_000),
        label=np.random.default_rng(0).choice(classes, count, p=rarity / rarity.sum()),
        group=[f"phase2_train-{number % 345:03d}" for number in range(count)],
        source=["wbcbench"] * count,
        is_external=np.zeros(count, dtype=bool),
        split=["phase2_train"] * count,
    )


def sparse_cache(folder: Path, frame: pd.DataFrame, config: Config) -> Path:
    """Makes a complete image cache of black images, of which nothing but the header is written.

    Args:
        folder: Where to.
        frame: n rows of a ``CellTable``.
        config: Size of the images.

    Returns:
        The file of pixels.
    """
    preparation = Preparation(config.image, lambda image: image)
    file, size = folder / f"{PIXELS}.npy", preparation.size
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(frame), size, size, 3))
    black = checksums([np.zeros((size, size, 3), np.uint8)])
    write_checksums(folder, black * len(frame))
    seal(folder, PIXELS, frame.image_id, {"competition": "wbcbench", **preparation.settings()})
    return file


@contextmanager
def sampled() -> Iterator[Samples]:
    """Samples the memory of this process and its children in a thread, as long as the block lasts.

    Yields:
        The samples, complete when the block has ended.
    """
    samples, ended = Samples(), threading.Event()

    def watch() -> None:
        while True:
            samples.take()
            if ended.wait(INTERVAL):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def measure_memory() -> Memory:
    """Measures this process and all its descendants; Linux only.

    A batch on its way in a queue is mapped by nobody, so shared memory is counted by the files that the processes hold
    open there, each once; what is mapped without such a file, where it is more, is counted instead.
    """
    totals = {"Pss_Anon": 0, "Pss_Shmem": 0, "Pss_File": 0}
    files: dict[tuple[int, int], int] = {}
    processes = _family()
    for process in processes:
        with suppress(OSError):  # it has ended
            for line in (process / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
                name, value = line.split(":")
                if name in totals:
                    totals[name] += 1024 * int(value.split()[0])
            files |= _shared_files(process)
    shared = max(totals["Pss_Shmem"], sum(files.values()))
    return Memory(totals["Pss_Anon"], shared, totals["Pss_File"], len(processes))


def _family() -> list[Path]:
    """Lists this process and its descendants, as folders of /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [os.getpid()]
    for process in family:
        family += children.get(process, [])
    return [Path(f"/proc/{process}") for process in family]


def _shared_files(process: Path) -> dict[tuple[int, int], int]:
    """Finds the files in shared memory that a process holds open: device and number -> bytes taken."""
    found = {}
    for link in (process / "fd").iterdir():
        with suppress(OSError):  # it is closed
            if os.readlink(link).startswith(SHARED_MEMORY):
                status = link.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
