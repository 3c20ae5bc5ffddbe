"""Losses that are not finite: the training ends, or the step is left out; either way its images are named."""

import csv
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from leukofold.errors import UserError
from leukofold.files import replacing, working_path

LAG = 4
"""Optimiser steps by which a GPU's losses are looked at late, so that Python goes ahead of the GPU as far as ever."""

NONFINITE = "nonfinite_loss.csv"
"""The file of a fold that names the images of steps whose loss is not finite."""

COLUMNS = ("epoch", "step", "process", "image_id", "label", "loss", "finite_logits")


@dataclass(frozen=True)
class _Part:
    """What one batch left behind: its loss, its logits (n x K, or n x M x K), and its rows (n, or n x M)."""

    loss: torch.Tensor
    logits: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class _Asked:
    """An optimiser step whose loss is on its way from the device.

    Attributes:
        step: Its number in the epoch, from 1.
        parts: Its batches.
        loss: Their sum over all parts and processes, in the host's memory.
        arrived: From when on it is right; None: from the beginning.
    """

    step: int
    parts: Sequence[_Part]
    loss: torch.Tensor
    arrived: torch.cuda.Event | None


class LossGuard:
    """Looks after the losses of a training; all processes decide the same, by the sum of their losses.

    ``stop`` ends the training where a loss is not finite: at once on a CPU, a few optimiser steps later on a GPU, which
    is never waited for. ``skip`` decides before each step of the optimiser, and so waits: a step whose loss or gradient
    is not finite on any process is left out on all, batch statistics are put back, and the schedule goes on. With
    fp16, gradients that are not finite are the gradient scaler's, which skips and lowers its scale.

    Args:
        accelerator: Devices and processes.
        network: What is trained, without wrappers.
        frame: The training images, rows of a ``CellTable``.
        class_names: K names.
        path: The CSV that names the images of such steps: a row for each image of all processes.
        fold: For messages.
        skip: Whether such a step is left out.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        frame: pd.DataFrame,
        class_names: Sequence[str],
        path: Path,
        fold: int,
        skip: bool,
    ) -> None:
        self.accelerator, self.network, self.path, self.fold, self.skip = accelerator, network, path, fold, skip
        self.image_ids = frame.image_id.tolist()
        self.labels = [class_names[label] for label in frame.label]
        self.lag = LAG if accelerator.device.type == "cuda" else 0
        self.rows: list[dict[str, Any]] = []
        self.start_epoch(1)

    def take_up(self, epoch: int) -> None:
        """Keeps what the CSV says of a training's first epochs, so that a resumed one ends with the same file."""
        if not self.accelerator.is_main_process or not self.path.exists():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]
        except (ValueError, KeyError, TypeError, csv.Error):
            raise UserError(f"{working_path(self.path)}: damaged; delete it") from None
        if self.rows:
            self._write()
        else:
            self.path.unlink()

    def start_epoch(self, epoch: int) -> None:
        """Begins to count."""
        self.epoch, self.step, self.skipped = epoch, 0, 0
        self._total, self._counted = torch.zeros((), device=self.accelerator.device), 0
        self._parts: list[_Part] = []
        self._asked: deque[_Asked] = deque()
        self._kept: list[torch.Tensor] = []

    def before_forward(self) -> None:
        """Keeps the batch statistics, before the first batch of an optimiser step, where they may be put back."""
        if self.skip and not self._parts:
            self._kept = [buffer.clone() for buffer in self.network.buffers()]

    def note(self, loss: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Notes a batch that has been through the network, forward and backward.

        Args:
            loss: A scalar, detached.
            logits: n x K, or n x M x K of cells that are independent; detached.
            rows: n, or n x M; of the training images.
        """
        self._parts.append(_Part(loss, logits, rows))

    def step_counts(self) -> bool:
        """Ends an optimiser step, before the optimiser moves the weights.

        Returns:
            Whether they are to be moved.

        Raises:
            UserError: A loss was not finite, and the training is to end then; its images are saved.
        """
        self.step += 1
        parts, self._parts = self._parts, []
        loss = torch.stack([part.loss for part in parts]).sum()
        if self.skip and not self._finite(loss):
            self._leave_out(parts)
            return False
        self._total += loss
        self._counted += len(parts)
        if not self.skip:
            self._ask(parts, loss)
            self._look(self.lag)
        return True

    def end_epoch(self) -> float:
        """Looks at the last losses, and saves which images were left out.

        Returns:
            The mean loss over all processes and the batches that counted.

        Raises:
            UserError: A loss was not finite and the training is to end then, or no step of the epoch counted.
        """
        self._look(0)
        if self.skipped:
            self._save()
        if not self._counted:
            raise UserError(
                f"fold {self.fold}: all {self.skipped} steps of epoch {self.epoch} were left out, as their losses or "
                f"gradients are not finite (images named in {working_path(self.path)}); lower optimizer.lr"
            )
        return float(self.accelerator.reduce(self._total, "mean")) / self._counted

    def _finite(self, loss: torch.Tensor) -> bool:
        """Tells whether a step's loss and gradient are finite on all processes."""
        values = [loss]
        if self.accelerator.scaler is None:
            gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
            values.append(nn.utils.get_total_norm(gradients))  # of squares, which optimisers take as well
        return bool(self.accelerator.reduce(torch.stack(values), "sum").isfinite().all())

    def _leave_out(self, parts: Sequence[_Part]) -> None:
        """Puts the batch statistics back, and notes the images."""
        for buffer, kept in zip(self.network.buffers(), self._kept, strict=True):
            buffer.copy_(kept)
        self.skipped += 1
        self._name(self.step, parts)

    def _ask(self, parts: Sequence[_Part], loss: torch.Tensor) -> None:
        """Asks the device for a step's loss, summed over all processes, without waiting for it."""
        found = self.accelerator.reduce(loss, "sum").to("cpu", non_blocking=bool(self.lag))
        arrived = torch.cuda.Event() if self.lag else None  # type: ignore[no-untyped-call]
        if arrived is not None:
            arrived.record()
        self._asked.append(_Asked(self.step, parts, found, arrived))

    def _look(self, lag: int) -> None:
        """Looks at the losses that were asked for, but for those of the last few steps."""
        while len(self._asked) > lag:
            asked = self._asked.popleft()
            if asked.arrived is not None:
                asked.arrived.synchronize()
            if not math.isfinite(loss := float(asked.loss)):
                self._stop(asked, loss)

    def _stop(self, asked: _Asked, loss: float) -> None:
        """Saves the images of a step and ends the training, on all processes together."""
        before = len(self.rows)
        self._name(asked.step, asked.parts)
        self._save()
        raise UserError(
            f"fold {self.fold}: the loss is {loss} in epoch {self.epoch}, step {asked.step} "
            f"({len(self.rows) - before} images, named in {working_path(self.path)}); lower optimizer.lr, look at "
            "these images, or leave such steps out with training.nonfinite_loss=skip"
        )

    def _name(self, step: int, parts: Sequence[_Part]) -> None:
        """Notes the images of a step, of all processes."""
        for part in parts:
            finite = part.logits.isfinite().all(dim=-1)
            # As integers: not every backend gathers booleans
            told = torch.stack([part.rows.flatten(), finite.flatten().to(part.rows.dtype)], dim=1)
            losses = self.accelerator.gather(part.loss[None]).tolist()
            for place, (row, logits) in enumerate(self.accelerator.gather(told).tolist()):
                process = place // len(told)
                values = (self.image_ids[row], self.labels[row], losses[process], bool(logits))
                self.rows.append(dict(zip(COLUMNS, (self.epoch, step, process, *values), strict=True)))

    def _save(self) -> None:
        """Writes all rows, and lets no process end before that."""
        if self.accelerator.is_main_process:
            self._write()
        self.accelerator.wait_for_everyone()

    def _write(self) -> None:
        """Writes the CSV."""
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
