"""What a straightforward program does: PyTorch, timm and torchvision as their tutorials use them.

The other side of the benchmarks. It decodes every file every time, normalises in the loader, has its networks in
PyTorch's own layout and takes PyTorch's own defaults for everything else. Augmentations, network, loss, optimiser,
moving average, batch and precision are those of the configuration.
"""

import copy
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import albumentations as A
import numpy as np
import pandas as pd
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms as T  # type: ignore[import-untyped]
from torchvision.datasets.folder import pil_loader  # type: ignore[import-untyped]

from leukofold.augment import build_transform
from leukofold.config import Config
from leukofold.prediction import Member
from leukofold.processes import available_cores
from leukofold.training.losses import build_loss, soft_targets


class OwnProcess:
    """Does some work in a process of its own each time it is called, while the caller waits.

    What our commands set (memory that is kept, deterministic algorithms) is of a whole process, and memory that one
    way has kept would serve the other. So the plain way has a process as Python and PyTorch begin it.

    Args:
        build: Makes the work, in that process; a function of a module.
        arguments: What it is made of.
    """

    def __init__(self, build: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build, arguments))
        self._process.start()
        other.close()

    def __call__(self) -> Any:
        """Does the work; returns its result."""
        self._pipe.send(True)
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def __enter__(self) -> "OwnProcess":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._pipe.send(False)  # a closed end would not do: loaders that were forked since hold it open
        self._process.join()


def _serve(pipe: Connection, build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    """Does the work whenever it is asked for, until nobody can ask any more."""
    torch.set_num_threads(available_cores())
    work = None
    while pipe.recv():
        try:
            work = work or build(*arguments)
            pipe.send(work())
        except Exception as error:  # the caller raises it
            pipe.send(error)


class PlainCells(Dataset[tuple[torch.Tensor, int]]):
    """Image files, decoded by Pillow, resized and normalised by torchvision.

    Args:
        frame: Rows of a ``CellTable``.
        config: Size and, in training, augmentations.
        training: Whether they are augmented.
        mean: Of each channel, in [0, 1].
        std: Of each channel.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        config: Config,
        training: bool,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
    ) -> None:
        self.paths, self.labels = frame.path.tolist(), frame.label.tolist()
        self.resize = T.Resize((config.image.size, config.image.size))
        self.normalise = T.Compose([T.ToTensor(), T.Normalize(mean, std)])
        self.augment = A.Compose([build_transform(spec) for spec in config.image.augment]) if training else None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        """Brings one image, 3 x S x S float32, and its label."""
        image = np.array(self.resize(pil_loader(self.paths[row])))
        if self.augment is not None:
            image = self.augment(image=image)["image"]
        return self.normalise(image), self.labels[row]


class PlainTraining:
    """Trains a timm network on image files, one epoch at a time.

    Args:
        frame: What is trained on.
        config: Network, batch, augmentations and optimiser.
        classes: K.
        device: Where it computes.
        precision: ``no``, ``bf16`` or ``fp16``.
    """

    def __init__(self, frame: pd.DataFrame, config: Config, classes: int, device: torch.device, precision: str) -> None:
        self.config, self.classes, self.device = config, classes, device
        model, optimizer, training = config.model, config.optimizer, config.training
        self.network = timm.create_model(
            model.backbone, num_classes=classes, drop_rate=model.dropout, drop_path_rate=model.drop_path
        ).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), optimizer.lr, optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self.ema = ModelEmaV3(self.network, decay=training.ema_decay)
        labels = frame.label.to_numpy()
        self.loss = build_loss(config.loss, labels, classes).to(device)
        weights = 1 / np.bincount(labels, minlength=classes).clip(1)[labels]
        self.steps = max(1, len(frame) // training.batch_size)
        self.loader = DataLoader(
            PlainCells(frame, config, training=True),
            batch_size=training.batch_size,
            sampler=WeightedRandomSampler(weights.tolist(), self.steps * training.batch_size),
            num_workers=available_cores(),
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self) -> None:
        """Trains one epoch."""
        self.network.train()
        for images, labels in self.loader:
            images = images.to(self.device, non_blocking=True)
            targets = soft_targets(labels.to(self.device), self.classes, self.config.loss.label_smoothing)
            with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                logits = self.network(images)
            loss = self.loss(logits.float(), targets)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.ema.update(self.network)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@torch.inference_mode()
def plain_predictions(
    frame: pd.DataFrame,
    members: Sequence[Member],
    batch_size: int,
    device: torch.device,
    half: torch.dtype | None,
) -> np.ndarray:
    """Scores images in a loop over models and views, each of which reads all files again.

    Args:
        frame: n rows of a ``CellTable``.
        members: The runs; their networks are laid out as PyTorch does by itself.
        batch_size: Images at a time.
        device: Where they compute.
        half: Type of mixed precision; None: none.

    Returns:
        n x K: the mean of all logits.
    """
    logits: list[Any] = []
    for member in members:
        mean, std = (getattr(member.networks[0], name).flatten().tolist() for name in ("mean", "std"))
        loader = DataLoader(
            PlainCells(frame, member.config, False, mean, std),
            batch_size=batch_size,
            num_workers=available_cores(),
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        for network in member.networks:
            plain = copy.deepcopy(nn.Sequential(cast(nn.Module, network.backbone), cast(nn.Module, network.head)))
            plain.to(memory_format=torch.contiguous_format)
            for view in member.views:
                with torch.autocast(device.type, half, enabled=half is not None):
                    parts = [plain(view(images.to(device))).float().cpu() for images, _ in loader]
                logits.append(torch.cat(parts))
    return np.asarray(torch.stack(logits).mean(dim=0))
