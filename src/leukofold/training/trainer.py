"""The training loop of one fold, on any number of processes."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, send_to_device
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from tqdm import tqdm

from leukofold.augment import Augmentation
from leukofold.backbone_features import FeatureDataset, augmented_features, feature_views, scoring_features
from leukofold.errors import UserError, first_line
from leukofold.experiment import Experiment
from leukofold.images.preparing import Preparation
from leukofold.inference import View, adapted_copy, by_domain, score_rows, tta_views, view_logits
from leukofold.loaders import CellDataset, IndependentCells, SizedDataset, make_loader
from leukofold.metrics import METRICS, score
from leukofold.models.adaptation import need_batch_statistics
from leukofold.models.classifier import Classifier
from leukofold.models.dinobloom import SEEN, has_seen
from leukofold.models.weights import check_weights, load_weights, save_weights
from leukofold.rowmaps import RowMap
from leukofold.runs import FoldFolder
from leukofold.sampling import EpochSampler
from leukofold.training.checkpoint import ANEW, load_state, save_state
from leukofold.training.distillation import load_teachers
from leukofold.training.guarding import NONFINITE, LossGuard
from leukofold.training.losses import EachHead, build_loss, soft_targets
from leukofold.training.mixing import Mixer, build_mixer
from leukofold.training.optimizing import Schedule, build_optimizer
from leukofold.training.progress import Progress
from leukofold.training.stopwatch import WAITING, Stopwatch

SAMPLING, MIXING, DROPOUT = 1, 2, 3
"""Streams of random numbers; dropout has one per process from here on."""


class Trainer:
    """Trains and scores the network of one fold.

    Nothing random outlives an epoch: seeds of sampling, augmentation and dropout are functions of
    (seed, fold, epoch, process). A resumed training repeats the bits of an uninterrupted one.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        accelerator: Devices and processes.

    Raises:
        UserError: The batch cannot be divided over the processes, or the network or its teachers cannot be had.
    """

    def __init__(self, experiment: Experiment, fold: int, accelerator: Accelerator) -> None:
        self.experiment, self.fold, self.accelerator = experiment, fold, accelerator
        self.config = experiment.config
        self.folder: FoldFolder = experiment.run.fold(fold)
        self.progress, self.stopwatch = Progress(), Stopwatch()
        self.classes = len(experiment.table.class_names)
        self.train_frame, self.held_out = experiment.fold_rows(fold)
        # External images decide nothing: not the epoch that is kept, and not the headline
        self.validation = self.held_out[~self.held_out.is_external].reset_index(drop=True)
        self._build_network()
        self._build_loader()
        self.guard = LossGuard(
            accelerator,
            self.network,
            self.train_frame,
            experiment.table.class_names,
            self.folder.path / NONFINITE,
            fold,
            skip=self.config.training.nonfinite_loss == "skip",
        )

    def _build_network(self) -> None:
        """Builds network, moving average, optimiser and schedule."""
        training = self.config.training
        torch.manual_seed(self._seed(0, 0))
        seen, device = self.experiment.images.count, self.accelerator.device
        network = Classifier(self.config.model, self.config.image, self.classes, seen).to(device)
        if self.config.inference.batch_statistics == "domain":
            need_batch_statistics(network)  # now, not after the training
        self.ema = ModelEmaV3(network, decay=training.ema_decay) if training.ema_decay else None
        if training.compile:
            network.compile(isolate_recompiles=True)  # in place: the names in checkpoints stay clean
            if self.ema is not None:
                self.ema.module.compile(isolate_recompiles=True)
        self.network = network
        self.plain_optimizer = build_optimizer(network, self.config.optimizer)
        self.model, self.optimizer = self.accelerator.prepare(network, self.plain_optimizer)
        labels = self.train_frame.label.to_numpy()
        self.loss = build_loss(self.config.loss, labels, self.classes).to(device)
        self.independent = self.config.model.fusion == "mimo"  # of each head another cell
        self.objective = EachHead(self.loss) if self.independent else self.loss
        self.distillation = load_teachers(self.experiment, self.fold, device)

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
        self.scoring_features: RowMap | None = None
        labels = self.train_frame.label.to_numpy()
        self.sampler = EpochSampler(
            labels,
            self.classes,
            training.batch_size,
            training.accumulate,
            self.config.sampler,
            self._seed(0, SAMPLING),
            self.experiment.images.count if self.independent else 1,
        )
        self.mixer: Mixer | None = build_mixer(
            self.config.mixing, self.classes, self.config.loss.label_smoothing, training.batch_size // parts
        )
        loader = make_loader(self._training_data(), self._workers, sampler=self.sampler)
        self.loader = self.accelerator.prepare_data_loader(loader, device_placement=False)  # ours is timed
        self.updates = self.sampler.steps // training.accumulate
        self.schedule = Schedule(self.plain_optimizer, self.config.optimizer, self.updates, training.epochs)

    def _training_data(self) -> SizedDataset:
        """Returns what brings the training images, augmented; or features of augmented views."""
        experiment = self.experiment
        if not self.config.training.cached_views:
            kind = IndependentCells if self.independent else CellDataset
            return kind(experiment.images, self.train_frame, Augmentation(self.config.image.augment))
        arguments = (self.network, self.config, experiment.images)
        everything = pd.concat([experiment.labelled, experiment.test], ignore_index=True)
        self.scoring_features = scoring_features(*arguments, everything, self.accelerator)
        augmented = augmented_features(*arguments, experiment.labelled, self.accelerator)
        return FeatureDataset(augmented, self.train_frame, one_view=True)

    @property
    def _workers(self) -> int | None:
        """Loader processes; none for features, which only have to be read."""
        return 0 if self.config.training.cached_views else self.config.data.workers

    def _seed(self, epoch: int, stream: int) -> int:
        """Derives a seed from the training's seed, the fold, the epoch and the use."""
        entropy = [self.config.training.seed, self.fold, epoch, stream]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.network

    def remarks(self) -> list[str]:
        """Says what is to be known of the training, for the log: teachers, too slow a moving average, cells seen."""
        found = []
        if self.distillation is not None:
            names = ", ".join(self.distillation.digests)
            found.append(f"taught by {names}, at temperature {self.distillation.temperature:g}")
        if self.ema_lag > 1:
            found.append(
                f"training.ema_decay: the average spans {self.ema_lag:.1f} epochs of {self.updates} updates and "
                "lags behind as much; a smaller decay follows a short training better"
            )
        if has_seen(self.config.model.backbone, self.experiment.competition.name):
            found.append(f"DinoBloom {SEEN}")
        return found

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
            "input_size": self.config.image.side,
            "mean": self.network.mean.flatten().tolist(),
            "std": self.network.std.flatten().tolist(),
        }

    def fit(self) -> None:
        """Trains until the last epoch, or until patience runs out, then takes the best weights up again."""
        training = self.config.training
        self.guard.take_up(self.progress.epoch)
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
        inference = self.config.inference

        def logits_of(part: pd.DataFrame) -> np.ndarray:
            network, what = self.scored, title
            if inference.batch_statistics == "domain":
                images = CellDataset(self.experiment.images, part)
                device = self.accelerator.device
                network = adapted_copy(network, images, images.content, inference, self._workers, device)
                what = f"{title}, {part.split.iloc[0]}"
            return self._score(network, part, what, self._views)

        return by_domain(frame, inference, logits_of)

    def resume(self) -> bool:
        """Takes up an interrupted training.

        Returns:
            Whether there was one.
        """
        if not self.folder.state.exists():
            return False
        state = load_state(self.folder.state)
        if state.get("teachers", {}) != self.teachers:
            raise UserError(
                f"{self.folder.path}: its teachers were trained anew since; train it afresh, without --resume, or "
                "delete that folder"
            )
        try:
            self.network.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.plain_optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.schedule.take_up(state.get("schedule"))
            self.progress = Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self.folder.state}: not a state of this training ({first_line(error)}); {ANEW}"
            ) from None
        if self.progress.best_epoch:
            check_weights(self.folder.weights)  # now, not after the last epoch
        for row in self.progress.history:  # an older version did not count them
            row.setdefault("skipped", 0)
        return True

    @property
    def teachers(self) -> dict[str, str]:
        """Teacher -> SHA-256 of its weights."""
        return self.distillation.digests if self.distillation is not None else {}

    def _epoch(self) -> None:
        """Trains one epoch, scores it, and saves what a resume needs."""
        began, training = time.perf_counter(), self.config.training
        epoch = self.progress.epoch + 1
        pace = self.train_epoch(epoch)
        trained = {"loss": pace.pop("loss"), "skipped": self.guard.skipped}
        row = {**trained, **self._validate(epoch), "lr": self.schedule.rate, **pace}
        self.schedule.end_epoch(row["validation_loss"])
        value = row[self.experiment.competition.metric]
        row["seconds"] = time.perf_counter() - began
        self.accelerator.log(row, step=epoch)
        self.progress.history.append({"epoch": epoch, **row})
        better = value > self.progress.best or training.keep == "last"
        if better:
            self.progress.best, self.progress.best_epoch = value, epoch
            if self.accelerator.is_main_process:
                save_weights(self.scored, self.folder.weights)
        self.progress.epoch = epoch
        if self.accelerator.is_main_process:
            save_state(self._state(), self.folder.state)
        self.accelerator.wait_for_everyone()
        self._say(
            f"  fold {self.fold}  epoch {epoch:3d}/{training.epochs}  loss {row['loss']:.4f}  "
            f"{self._metric_title} {value:.4f}{' *' if better and training.keep == 'best' else '  '}  "
            f"{row['images_per_second']:5.0f} images/s"
            + (f"  {row['skipped']} of {self.updates} steps left out, see {NONFINITE}" if row["skipped"] else "")
        )

    def _validate(self, epoch: int) -> dict[str, float]:
        """Scores the validation images; with test-time augmentation where each epoch is to have it, and without.

        Raises:
            UserError: Logits are not finite: the last steps broke the network.
        """
        views = self._views if self.config.training.validate_with_tta else self._views[:1]
        logits = self._score(self.scored, self.validation, f"fold {self.fold} epoch {epoch} validation", views)
        bad = len(logits) - int(np.isfinite(logits).all(axis=(1, 2)).sum())
        if bad:
            raise UserError(
                f"fold {self.fold}: after epoch {epoch}, the logits of {bad} of {len(logits)} validation images are "
                "not finite; lower optimizer.lr"
            )
        labels = self.validation.label.to_numpy()
        scores = score(labels, logits[:, 0])
        if self.config.training.validate_with_tta:
            scores |= {f"{metric}_without_tta": value for metric, value in score(labels, logits[:, 1]).items()}
        return {"validation_loss": self._loss_of(labels, logits[:, 0]), **scores}

    @torch.inference_mode()
    def _loss_of(self, labels: np.ndarray, logits: np.ndarray) -> float:
        """Computes the loss of given logits, for labels that are neither smoothed nor mixed; of one head, untaught."""
        device = self.accelerator.device
        targets = soft_targets(torch.tensor(labels, device=device), self.classes, 0.0)
        return float(self.loss(torch.from_numpy(logits).to(device), targets))

    @property
    def _views(self) -> list[View]:
        """The views that are scored, the image as it is first."""
        views = tta_views(self.config.inference)
        return feature_views(len(views)) if self.scoring_features is not None else views

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Runs one epoch's optimiser steps.

        Args:
            epoch: From 1; what is drawn follows from it.

        Returns:
            ``loss``, the mean over the steps that counted; ``images_per_second`` over all processes; ``waiting``, the
            share of the time in which this process waited for data.

        Raises:
            UserError: A loss is not finite, and such steps are not to be left out, or none would be left.
        """
        self.guard.start_epoch(epoch)
        self.sampler.start_epoch(epoch)
        torch.manual_seed(self._seed(epoch, DROPOUT + self.accelerator.process_index))
        Mixer.seed(self._seed(epoch, MIXING))  # the same on every process
        self.model.train()
        self.stopwatch.restart()
        update = (epoch - 1) * self.updates
        bar = tqdm(
            total=len(self.train_frame),
            desc=f"fold {self.fold} epoch {epoch} training",
            unit="image",
            disable=not self.accelerator.is_main_process,
            leave=False,
        )
        with bar:
            for batch in self._batches():
                with self.accelerator.accumulate(self.model):
                    self.schedule.start_update(update)
                    self._step(batch)
                    update += self.accelerator.sync_gradients
                bar.set_postfix_str(f"{self.stopwatch.waiting:.0%} waiting for data", refresh=False)
                bar.update(self.sampler.batch_size)
        mean = self.guard.end_epoch()
        rate = self.sampler.steps * self.sampler.batch_size / self.stopwatch.elapsed
        return {"loss": mean, "images_per_second": rate, "waiting": self.stopwatch.waiting}

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields an epoch's batches on the device."""
        batches = iter(self.loader)
        while True:
            with self.stopwatch.part(WAITING):
                batch = next(batches, None)
            if batch is None:
                return
            with self.stopwatch.part("transfer"):
                batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            yield batch

    def _step(self, batch: dict[str, torch.Tensor]) -> None:
        """Runs one batch forward and backward; where a whole batch is gathered, the optimiser, if the step counts."""
        with self.stopwatch.part("forward"):
            self.guard.before_forward()
            loss, logits = self._loss(batch)
        with self.stopwatch.part("backward"):
            self.accelerator.backward(loss)
        self.guard.note(loss.detach(), logits.detach(), batch["row"])
        if not self.accelerator.sync_gradients:
            return
        clip = self.config.optimizer.clip_norm
        with self.stopwatch.part("optimiser"):
            counts = self.guard.step_counts()
            if counts:
                if clip is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
            self.optimizer.zero_grad()
        if counts and self.ema is not None:
            with self.stopwatch.part("EMA"):
                self.ema.update(self.network)

    def _loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one batch forward, mixed and taught where it is to be; returns its loss and its logits."""
        if self.mixer is not None:
            images, targets = self.mixer(batch["image"], batch["label"])
        else:
            images = batch["image"]
            targets = soft_targets(batch["label"], self.classes, self.config.loss.label_smoothing)
        with self.accelerator.autocast():
            logits = self.model(images)
            taught = self.distillation.targets(images) if self.distillation is not None else None
        loss: torch.Tensor = self.objective(logits.float(), targets)
        if self.distillation is not None and taught is not None:
            loss = loss + self.distillation.loss(logits, taught)
        return loss, logits

    def _score(self, network: nn.Module, frame: pd.DataFrame, title: str, views: Sequence[View]) -> np.ndarray:
        """Scores a table with a network, the same on every process; n x 2 x K."""
        if self.accelerator.num_processes > 1:  # batch statistics of the last step differ between processes
            broadcast(list(network.state_dict().values()))
        network.eval()
        batch_size = self.config.inference.batch_size * self.accelerator.num_processes
        features, images = self.scoring_features, self.experiment.images
        dataset = CellDataset(images, frame) if features is None else FeatureDataset(features, frame, one_view=False)
        return score_rows(
            self.accelerator,
            make_loader(dataset, self._workers, batch_size),
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
            "schedule": self.schedule.state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "progress": vars(self.progress),
            "teachers": self.teachers,
        }

    @property
    def _metric_title(self) -> str:
        """The competition's metric as people write it."""
        return METRICS[self.experiment.competition.metric]

    def _say(self, line: str) -> None:
        """Prints a line on the main process, without breaking a progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line)
