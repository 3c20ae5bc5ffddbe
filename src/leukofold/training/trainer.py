"""The training loop of one fold, on any number of processes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from tqdm import tqdm

from leukofold.augment import Augmentation
from leukofold.errors import UserError
from leukofold.experiment import Experiment
from leukofold.images.preparing import Preparation
from leukofold.inference import View, identity, score_rows, tta_views, view_logits
from leukofold.loaders import CellDataset, make_loader
from leukofold.metrics import METRICS, score
from leukofold.models.classifier import Classifier
from leukofold.runs import FoldFolder
from leukofold.sampling import EpochSampler
from leukofold.training.checkpoint import load_state, load_weights, save_state, save_weights
from leukofold.training.losses import build_loss, soft_targets
from leukofold.training.mixing import Mixer, build_mixer

SAMPLING, MIXING, DROPOUT = 1, 2, 3
"""Streams of random numbers; dropout has one per process from here on."""


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: Epochs done.
        best: Best value of the competition's metric so far.
        best_epoch: The epoch that reached it, from 1; 0 before the first.
        history: One row per epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains and scores the network of one fold.

    Nothing random outlives an epoch: seeds of sampling, augmentation and dropout are functions of
    (seed, fold, epoch, process). A resumed training repeats the bits of an uninterrupted one.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        accelerator: Devices and processes.

    Raises:
        UserError: The batch cannot be divided over the processes, or the network cannot be built.
    """

    def __init__(self, experiment: Experiment, fold: int, accelerator: Accelerator) -> None:
        self.experiment, self.fold, self.accelerator = experiment, fold, accelerator
        self.config = experiment.config
        self.folder: FoldFolder = experiment.run.fold(fold)
        self.progress = Progress()
        self.classes = len(experiment.table.class_names)
        held_out = experiment.folds == fold
        self.train_frame = experiment.training_rows(fold)
        self.held_out = experiment.labelled[held_out].reset_index(drop=True)
        # External images decide nothing: not the epoch that is kept, and not the headline
        self.validation = self.held_out[~self.held_out.is_external].reset_index(drop=True)
        shared = sorted(set(self.train_frame.group) & set(self.held_out.group))
        if shared and self.config.folds.by == "group":  # checked here once more, on the rows that are used
            raise UserError(f"fold {fold}: {len(shared)} groups are both trained on and held out, {shared[0]} first")
        self._build_network()
        self._build_loader()

    def _build_network(self) -> None:
        """Builds network, moving average, optimiser and schedule."""
        training, optimizer = self.config.training, self.config.optimizer
        torch.manual_seed(self._seed(0, 0))
        network = Classifier(self.config.model, self.config.image, self.classes).to(self.accelerator.device)
        self.ema = ModelEmaV3(network, decay=training.ema_decay) if training.ema_decay else None
        if training.compile:
            network.compile()  # in place: the names in checkpoints stay clean
        self.network = network
        try:
            plain_optimizer = create_optimizer_v2(
                network,
                opt=optimizer.name,
                lr=optimizer.lr,
                weight_decay=optimizer.weight_decay,
                betas=optimizer.betas,
            )
        except (ValueError, AssertionError, TypeError) as error:
            raise UserError(f"optimizer: {optimizer.name}: {error}") from None
        self.plain_optimizer = plain_optimizer
        self.model, self.optimizer = self.accelerator.prepare(network, plain_optimizer)
        labels = self.train_frame.label.to_numpy()
        self.loss = build_loss(self.config.loss, labels, self.classes).to(self.accelerator.device)

    def _build_loader(self) -> None:
        """Builds the loader of training batches, and the schedule over their number."""
        training = self.config.training
        parts = training.accumulate * self.accelerator.num_processes
        if training.batch_size % parts:
            raise UserError(
                f"training.batch_size: {training.batch_size} images cannot be divided over "
                f"{self.accelerator.num_processes} processes times {training.accumulate} accumulated parts; "
                f"take {max(1, round(training.batch_size / parts)) * parts}, or start another number of processes"
            )
        labels = self.train_frame.label.to_numpy()
        self.sampler = EpochSampler(
            labels, self.classes, training.batch_size, training.accumulate, self.config.sampler, self._seed(0, SAMPLING)
        )
        self.mixer: Mixer | None = build_mixer(
            self.config.mixing, self.classes, self.config.loss.label_smoothing, training.batch_size // parts
        )
        dataset = CellDataset(self.experiment.images, self.train_frame, Augmentation(self.config.image.augment))
        self.loader = self.accelerator.prepare(make_loader(dataset, self.config.data.workers, sampler=self.sampler))
        self.updates = self.sampler.steps // training.accumulate
        optimizer = self.config.optimizer
        self.schedule = CosineLRScheduler(
            self.plain_optimizer,
            t_initial=max(1, self.updates * training.epochs - round(optimizer.warmup_epochs * self.updates)),
            lr_min=optimizer.min_lr,
            warmup_t=round(optimizer.warmup_epochs * self.updates),
            warmup_lr_init=optimizer.min_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def _seed(self, epoch: int, stream: int) -> int:
        """Derives a seed from the training's seed, the fold, the epoch and the use."""
        entropy = [self.config.training.seed, self.fold, epoch, stream]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.network

    @property
    def ema_lag(self) -> float:
        """Epochs that the moving average spans: 1 / (1 - decay) updates; 0 without one."""
        return 1 / (1 - self.config.training.ema_decay) / self.updates if self.ema is not None else 0.0

    def preprocessing(self) -> dict[str, Any]:
        """Tells all that is done to an image before the backbone sees it."""
        preparation = Preparation(self.config.image, self.experiment.competition.preprocess)
        return {
            "competition": self.experiment.competition.name,
            **preparation.settings(),
            "mean": self.network.mean.flatten().tolist(),
            "std": self.network.std.flatten().tolist(),
        }

    def fit(self) -> None:
        """Trains until the last epoch, or until patience runs out, then takes the best weights up again."""
        training = self.config.training
        while self.progress.epoch < training.epochs:
            if self.progress.epoch - self.progress.best_epoch >= training.patience:
                self._say(f"  no better {self._metric_title} in {training.patience} epochs: stopped")
                break
            self._epoch()
        load_weights(self.scored, self.folder.weights)

    def predict(self, frame: pd.DataFrame, title: str) -> np.ndarray:
        """Scores a table with test-time augmentation.

        Args:
            frame: n rows of a ``CellTable``.
            title: What the progress bar says.

        Returns:
            n x 2 x K float32 logits: the mean over all views, and the image as it is.
        """
        if frame.empty:  # an input without test images can be trained on, but not submitted
            return np.zeros((0, 2, self.classes), np.float32)
        return self._score(frame, title, tta_views(self.config.inference))

    def resume(self) -> bool:
        """Takes up an interrupted training.

        Returns:
            Whether there was one.
        """
        if not self.folder.state.exists():
            return False
        state = load_state(self.folder.state)
        self.network.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.plain_optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        return True

    def _epoch(self) -> None:
        """Trains one epoch, scores it, and saves what a resume needs."""
        began = time.perf_counter()
        epoch = self.progress.epoch + 1
        loss, rate = self._train(epoch)
        logits = self._score(self.validation, f"fold {self.fold} epoch {epoch} validation", [identity])[:, 0]
        scores = score(self.validation.label.to_numpy(), logits)
        value = scores[self.experiment.competition.metric]
        row = {"loss": loss, **scores, "lr": self.plain_optimizer.param_groups[0]["lr"], "images_per_second": rate}
        row["seconds"] = time.perf_counter() - began
        self.accelerator.log(row, step=epoch)
        self.progress.history.append({"epoch": epoch, **row})
        better = value > self.progress.best
        if better:
            self.progress.best, self.progress.best_epoch = value, epoch
            if self.accelerator.is_main_process:
                save_weights(self.scored, self.folder.weights)
        self.progress.epoch = epoch
        if self.accelerator.is_main_process:
            save_state(self._state(), self.folder.state)
        self.accelerator.wait_for_everyone()
        self._say(
            f"  epoch {epoch:3d}/{self.config.training.epochs}  loss {loss:.4f}  {self._metric_title} {value:.4f}"
            f"{' *' if better else '  '}  {rate:5.0f} images/s"
        )

    def _train(self, epoch: int) -> tuple[float, float]:
        """Runs one epoch's optimiser steps.

        Returns:
            Mean loss, and images per second over all processes.
        """
        self.sampler.start_epoch(epoch)
        torch.manual_seed(self._seed(epoch, DROPOUT + self.accelerator.process_index))
        Mixer.seed(self._seed(epoch, MIXING))  # the same on every process
        self.model.train()
        began = time.perf_counter()
        total = torch.zeros((), device=self.accelerator.device)
        update = (epoch - 1) * self.updates
        bar = tqdm(
            total=len(self.train_frame),
            desc=f"fold {self.fold} epoch {epoch} training",
            unit="image",
            disable=not self.accelerator.is_main_process,
            leave=False,
        )
        with bar:
            for batch in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.schedule.step_update(update)
                    loss = self._step(batch)
                    if self.accelerator.sync_gradients:
                        update += 1
                        if self.ema is not None:
                            self.ema.update(self.network)
                total += loss
                bar.update(self.sampler.batch_size)
        mean = float(self.accelerator.reduce(total, "mean")) / self.sampler.steps
        if not np.isfinite(mean):
            raise UserError(f"fold {self.fold}: the loss is {mean} in epoch {epoch}; lower optimizer.lr")
        return mean, self.sampler.steps * self.sampler.batch_size / (time.perf_counter() - began)

    def _step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Runs one batch forward and backward, and the optimiser where a whole batch is gathered.

        Returns:
            The loss, detached.
        """
        if self.mixer is not None:
            images, targets = self.mixer(batch["image"], batch["label"])
        else:
            images = batch["image"]
            targets = soft_targets(batch["label"], self.classes, self.config.loss.label_smoothing)
        with self.accelerator.autocast():
            logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        self.accelerator.backward(loss)
        clip = self.config.optimizer.clip_norm
        if clip is not None and self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        detached: torch.Tensor = loss.detach()
        return detached

    def _score(self, frame: pd.DataFrame, title: str, views: Sequence[View]) -> np.ndarray:
        """Scores a table with the network that is kept, the same on every process; n x 2 x K."""
        if self.accelerator.num_processes > 1:  # batch statistics of the last step differ between processes
            broadcast(list(self.scored.state_dict().values()))
        network = self.scored.eval()
        batch_size = self.config.inference.batch_size * self.accelerator.num_processes
        dataset = CellDataset(self.experiment.images, frame)
        return score_rows(
            self.accelerator,
            make_loader(dataset, self.config.data.workers, batch_size),
            lambda batch: view_logits(network, batch["image"], views),
            len(frame),
            title,
        )

    def _state(self) -> dict[str, Any]:
        """Collects what a resumed training needs."""
        scaler = self.accelerator.scaler
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.plain_optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "progress": vars(self.progress),
        }

    @property
    def _metric_title(self) -> str:
        """The competition's metric as people write it."""
        return METRICS[self.experiment.competition.metric]

    def _say(self, line: str) -> None:
        """Prints a line on the main process, without breaking a progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line)
