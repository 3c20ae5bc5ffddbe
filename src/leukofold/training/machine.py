"""A support vector machine on handcrafted features, fitted to one fold in a network's place."""

import time
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from accelerate import Accelerator
from scipy.special import log_softmax

from leukofold.errors import UserError
from leukofold.experiment import Experiment
from leukofold.handcrafted.svm import SupportVectorMachine
from leukofold.handcrafted.table import handcrafted_features
from leukofold.images.preparing import Preparation
from leukofold.metrics import score
from leukofold.training.progress import Progress


class MachineTrainer:
    """Fits and scores the support vector machine of one fold.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        accelerator: The processes; each fits the same machine.

    Raises:
        UserError: There are several images of a cell.
    """

    def __init__(self, experiment: Experiment, fold: int, accelerator: Accelerator) -> None:
        self.experiment, self.fold, self.accelerator = experiment, fold, accelerator
        self.config = experiment.config
        self.folder = experiment.run.fold(fold)
        self.progress = Progress()
        self.train_frame, self.held_out = experiment.fold_rows(fold)
        if experiment.images.count > 1:
            names = ", ".join(experiment.images.modalities)
            raise UserError(f"svm: one image of a cell is measured; choose one of {names} with data.modalities")
        everything = pd.concat([experiment.labelled, experiment.test], ignore_index=True)
        data, first = self.config.data, accelerator.is_local_main_process
        self.features = handcrafted_features(experiment.images, everything, data.cache, data.workers, first)

    def preprocessing(self) -> dict[str, Any]:
        """Tells all that is done to an image before it is measured."""
        competition = self.experiment.competition
        settings = Preparation(self.config.image, competition.preprocess).settings()
        return {"competition": competition.name, **settings}

    def remarks(self) -> list[str]:
        """Describes what is fitted, for the log."""
        return [f"a support vector machine on {self.features.array.shape[1]} handcrafted features"]

    teachers: ClassVar[dict[str, str]] = {}  # a machine has none

    def resume(self) -> bool:
        """There is nothing to go on with: a machine is fitted in one piece."""
        return False

    def fit(self) -> None:
        """Fits the machine, scores it on the held-out images, and keeps it."""
        began = time.perf_counter()
        frame, svm, seed = self.train_frame, self.config.svm, self.config.training.seed
        assert svm is not None
        classes = len(self.experiment.table.class_names)
        measured = self._measured(frame)
        labels, groups = frame.label.to_numpy(), frame.group.to_numpy(dtype=str)
        self.machine = SupportVectorMachine.fit(measured, labels, groups, classes, svm.c, svm.gamma, seed)
        if self.accelerator.is_main_process:
            self.machine.save(self.folder.machine)
        seconds = time.perf_counter() - began
        own = self.held_out[~self.held_out.is_external]
        truth, logits = own.label.to_numpy(), self.machine.logits(self._measured(own))
        losses = {
            "loss": _log_loss(labels, self.machine.logits(measured)),
            "validation_loss": _log_loss(truth, logits),
        }
        scores = score(truth, logits)
        pace = {"lr": 0.0, "images_per_second": len(frame) / seconds, "seconds": seconds}
        self.progress = Progress(1, scores[self.experiment.competition.metric], 1)
        self.progress.history.append({"epoch": 1, **losses, **scores, **pace})
        self.accelerator.log({**losses, **scores, **pace}, step=1)

    def predict(self, frame: pd.DataFrame, title: str) -> np.ndarray:
        """Scores a table.

        Args:
            frame: n rows of a ``CellTable``.
            title: Not shown: it takes no time.

        Returns:
            n x 2 x K float32 logits, twice the same: an image is measured once, in whichever position.
        """
        if frame.empty:
            return np.zeros((0, 2, len(self.experiment.table.class_names)), np.float32)
        logits = self.machine.logits(self._measured(frame))
        return np.stack([logits, logits], axis=1)

    def _measured(self, frame: pd.DataFrame) -> np.ndarray:
        """Returns the features of a table's images, n x D."""
        return self.features.read(self.features.rows(frame.image_id.tolist()))


def _log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns the mean negative log-likelihood."""
    return -float(np.mean(log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]))
