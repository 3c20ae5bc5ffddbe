"""A support vector machine on handcrafted features, with probabilities."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from leukofold.errors import UserError, first_line
from leukofold.files import DAMAGED_ARRAYS, replacing

LEAST_PROBABILITY = 1e-6  # of any class, so that logits are finite
_INNER_FOLDS = 5  # of the calibration, at most

Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SupportVectorMachine:
    """A machine with a radial kernel on standardised features, its classes weighted by their rarity.

    Its decision values become probabilities by Platt's sigmoids, one class against the others, fitted on decision
    values of images that inner machines have not seen (Platt 1999; Zadrozny and Elkan 2002).

    Attributes:
        features: n x D float32, what it was trained on.
        labels: n class indices.
        groups: n groups.
        classes: K.
        c: Penalty of a training image on the wrong side.
        gamma: Of the kernel exp(-gamma d^2) on standardised features; ``scale``: 1 / D, if no feature is constant.
        seed: Of the inner splits.
        scaler: Mean and deviation of the features.
        machine: The calibrated machine.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: int
    c: float
    gamma: float | Literal["scale"]
    seed: int
    scaler: StandardScaler
    machine: CalibratedClassifierCV | DummyClassifier

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        classes: int,
        c: float,
        gamma: float | Literal["scale"],
        seed: int,
    ) -> "SupportVectorMachine":
        """Trains and calibrates a machine.

        A class of which there is one image cannot be held out to be calibrated, and counts as absent.

        Args:
            features: n x D, finite.
            labels: n class indices, 0..K-1, two images of a class at least.
            groups: n groups, kept whole by the inner splits where they can be (see ``inner_splits``). With few groups
                the inner machines may rank groups they have not seen worse than chance; a sigmoid fitted to that would
                turn the machine upside down, so that it is fitted by images instead.
            classes: K; some may be absent.
            c: Penalty, above 0.
            gamma: Of the kernel, above 0, or ``scale``.
            seed: Of the inner splits.

        Returns:
            The machine; the same bits for the same arguments.
        """
        features = features.astype(np.float32)
        common = np.bincount(labels, minlength=classes)[labels] > 1
        x, y = features[common].astype(np.float64), labels[common]
        machine: CalibratedClassifierCV | DummyClassifier = DummyClassifier().fit(x, y)  # one class alone: always it
        if len(np.unique(y)) > 1:
            support = make_pipeline(StandardScaler(), SVC(C=c, gamma=gamma, class_weight="balanced"))
            machine = _calibrated(support, x, y, inner_splits(y, groups[common], seed))
            if _upside_down(machine):
                machine = _calibrated(support, x, y, _splits_by_image(y, seed))
        return cls(features, labels, groups, classes, c, gamma, seed, StandardScaler().fit(x), machine)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Classifies images.

        Args:
            features: n x D, finite.

        Returns:
            n x K float32, log-probabilities, at least log(1e-6), which classes absent in training have.
        """
        probabilities = np.zeros((len(features), self.classes))
        if len(features):
            known = self.machine.predict_proba(features.astype(np.float32).astype(np.float64))
            probabilities[:, self.machine.classes_] = known
        return np.asarray(np.log(probabilities.clip(LEAST_PROBABILITY)), dtype=np.float32)

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """Returns features as the machine sees them.

        Args:
            features: n x D.

        Returns:
            n x D float32, of mean 0 and deviation 1 over the training images.
        """
        return np.asarray((features - self.scaler.mean_) / self.scaler.scale_, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file, without pickles, of all that the machine is trained on."""
        settings = {"classes": self.classes, "c": self.c, "gamma": self.gamma, "seed": self.seed}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                features=self.features,
                labels=self.labels,
                groups=self.groups.astype(str),
                settings=np.array(json.dumps(settings)),
            )

    @classmethod
    def load(cls, path: Path) -> "SupportVectorMachine":
        """Reads an ``.npz`` file, and trains the machine again.

        Raises:
            UserError: The file is missing, damaged or of something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kept = {name: arrays[name] for name in ("features", "labels", "groups")}
                settings: dict[str, Any] = json.loads(str(arrays["settings"]))
            if not np.isfinite(kept["features"]).all():
                raise ValueError("features that are not finite")
            return cls.fit(**kept, **settings)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; train that fold again") from None
        except (*DAMAGED_ARRAYS, IndexError) as error:
            raise UserError(
                f"{path}: not a support vector machine ({first_line(error)}); train that fold again"
            ) from None


def inner_splits(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[Split]:
    """Splits training images for the calibration.

    Groups stay whole, in five folds or as few as two, so that every training part has every class. Where no number of
    folds can do that, since a class is in one group alone, images are split instead: its probabilities then come from
    machines that have seen the held-out images' groups, and are too sure.

    Args:
        labels: n class indices; two images of each class at least.
        groups: n groups.
        seed: Of the shuffling.

    Returns:
        Rows to train on and rows held out, of each fold; every row is held out once.
    """
    classes = len(np.unique(labels))
    most = min(_INNER_FOLDS, int(np.bincount(labels).max()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        for count in range(min(most, len(np.unique(groups))), 1, -1):
            by_group = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
            splits: list[Split] = list(by_group.split(labels, labels, groups))
            if all(len(held_out) and len(np.unique(labels[kept])) == classes for kept, held_out in splits):
                return splits
    return _splits_by_image(labels, seed)


def _splits_by_image(labels: np.ndarray, seed: int) -> list[Split]:
    """Splits images whatever their groups, stratified by class."""
    most = min(_INNER_FOLDS, int(np.bincount(labels).max()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(StratifiedKFold(most, shuffle=True, random_state=seed).split(labels, labels))


def _calibrated(support: Pipeline, x: np.ndarray, y: np.ndarray, splits: list[Split]) -> CalibratedClassifierCV:
    """Trains a machine on all images, and its sigmoids on decision values of the inner splits."""
    return CalibratedClassifierCV(support, method="sigmoid", cv=splits, ensemble=False).fit(x, y)


def _upside_down(machine: CalibratedClassifierCV) -> bool:
    """Tells whether a sigmoid, 1 / (1 + exp(a f + b)), falls with the decision value f."""
    return any(sigmoid.a_ > 0 for each in machine.calibrated_classifiers_ for sigmoid in each.calibrators)
