"""The run folder: the one module that knows how a run lies on disk.

::

    oof/<run>/folds.csv                  image_id,group,fold of every labelled image
    oof/<run>/fold<k>/oof.npz            logits of the fold's held-out images
                      test.npz           logits of the test images
                      holdout.npz        logits of the hold-out, which no fold trains on, where there is one
                      metadata.json      configuration, commit, versions, data, classes, preprocessing
                      history.csv        one row per epoch
                      best.safetensors   the weights that scored best, as used for all of these
                      svm.npz            in their place: a support vector machine
                      metrics.json       scores; written last: a fold that has it is complete
                      embeddings.npz     of the held-out images, where an analysis has computed them
                      map.npz            of some images of several laboratories, where a study has mapped them
                      nonfinite_loss.csv the images of steps whose loss was not finite, where there were any
                      last/state.pt      what --resume goes on from
"""

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from leukofold.config import Config, FoldsConfig, is_irrelevant
from leukofold.errors import UserError
from leukofold.files import (
    DAMAGED_ARRAYS,
    alone,
    beside_lock,
    held,
    put_away,
    remove_leftovers,
    replacing,
    write_json,
    write_text,
)

COMMON = (
    "config_digest",
    "data_fingerprint",
    "split_digest",
    "corrections_sha256",
    "class_names",
    "precision",
    "pretrained_sha256",
)  # in which all folds of a run agree
WORDED = {
    "split_digest": "split of the images (folds.csv, split_digest)",
    "corrections_sha256": "choice of images to train on (label lists, images that equal a test image)",
}
"""What keys of ``COMMON`` mean to people who do not know them."""

PER_IMAGE = ("image_id", "logits", "single_view", "group", "is_external", "label", "split")
"""The arrays of predictions that have a row per image."""

RUNS = Path("oof")  # where runs lie, below the working folder


@dataclass(frozen=True)
class Predictions:
    """Logits of n images, with everything needed to align, score and combine them.

    Attributes:
        image_id: n ids.
        logits: n x K float32, before softmax, averaged over TTA views.
        single_view: n x K float32, the logits of each image as it is, without TTA.
        class_names: K names.
        group: n groups ("" in the test set).
        is_external: n booleans.
        label: n class indices; None in the test set.
        split: n names of the split or target domain; all "" where an older version of this project wrote the file.
    """

    image_id: np.ndarray
    logits: np.ndarray
    single_view: np.ndarray
    class_names: tuple[str, ...]
    group: np.ndarray
    is_external: np.ndarray
    label: np.ndarray | None = None
    split: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=str))

    def __post_init__(self) -> None:
        """Fills in the splits that are not known."""
        if not len(self.split):
            object.__setattr__(self, "split", np.full(len(self.image_id), ""))

    def rows(self, chosen: np.ndarray) -> "Predictions":
        """Returns some rows, by number or by a mask of n booleans, in that order."""
        arrays = {name: getattr(self, name) for name in PER_IMAGE}
        return replace(self, **{name: values[chosen] for name, values in arrays.items() if values is not None})

    @classmethod
    def of(cls, frame: pd.DataFrame, logits: np.ndarray, class_names: Sequence[str], labelled: bool) -> "Predictions":
        """Puts logits, n x 2 x K with and without TTA, beside the rows of a ``CellTable`` that they belong to."""
        return cls(
            image_id=frame.image_id.to_numpy(dtype=str),
            logits=logits[:, 0].astype(np.float32),
            single_view=logits[:, 1].astype(np.float32),
            class_names=tuple(class_names),
            group=frame.group.to_numpy(dtype=str),
            is_external=frame.is_external.to_numpy(dtype=bool),
            label=frame.label.to_numpy(dtype=np.int64) if labelled else None,
            split=frame.split.to_numpy(dtype=str),
        )

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file in one step.

        Raises:
            ValueError: Lengths disagree, an id stands twice, or a logit is not finite.
        """
        n = len(self.image_id)
        for logits in (self.logits, self.single_view):
            if logits.shape != (n, len(self.class_names)) or len(np.unique(self.image_id)) != n:
                raise ValueError(f"{path}: {n} ids and logits {logits.shape} for {len(self.class_names)} classes")
            if not np.isfinite(logits).all():
                raise ValueError(f"{path}: logits that are not finite")
        arrays = {
            "image_id": self.image_id,
            "logits": self.logits,
            "single_view": self.single_view,
            "class_names": np.array(self.class_names),
            "group": self.group,
            "is_external": self.is_external,
            "split": self.split,
        }
        if self.label is not None:
            arrays["label"] = self.label
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Reads an ``.npz`` file; no code in it is ever run.

        Raises:
            UserError: The file is missing, damaged or lacks an array.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(
                    image_id=arrays["image_id"],
                    logits=arrays["logits"],
                    single_view=arrays["single_view"],
                    class_names=tuple(str(name) for name in arrays["class_names"]),
                    group=arrays["group"],
                    is_external=arrays["is_external"],
                    label=arrays.get("label"),
                    split=arrays.get("split", np.zeros(0, dtype=str)),
                )
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; train that fold again") from None
        except DAMAGED_ARRAYS as error:
            raise UserError(f"{path}: not a file of predictions ({error}); train that fold again") from None
        found._need_sound(path)
        return found

    def _need_sound(self, path: Path) -> None:
        """Refuses arrays of another shape or kind than ids and classes say, and logits that are not finite."""
        n, classes = len(self.image_id), len(self.class_names)
        columns = {
            "group": ("US", self.group),
            "is_external": ("b", self.is_external),
            "split": ("US", self.split),
        }
        if self.label is not None:
            columns["label"] = ("iu", self.label)
        for name, (kinds, values) in columns.items():
            if values.shape != (n,) or values.dtype.kind not in kinds:
                raise UserError(f"{path}: {name} {values.shape} {values.dtype} for {n} images; train that fold again")
        if self.label is not None and n and not 0 <= self.label.min() <= self.label.max() < classes:
            raise UserError(f"{path}: labels beyond its {classes} classes; train that fold again")
        for name in ("logits", "single_view"):
            logits = getattr(self, name)
            if logits.dtype.kind != "f" or logits.shape != (n, classes):
                raise UserError(
                    f"{path}: {name} {logits.shape} for {len(self.image_id)} images and {len(self.class_names)} "
                    "classes; train that fold again"
                )
            bad = self.image_id[~np.isfinite(logits).all(axis=1)]
            if len(bad):
                raise UserError(
                    f"{path}: {name} of {len(bad)} images are not finite, {bad[0]} first; train that fold again"
                )


@dataclass(frozen=True)
class FoldFolder:
    """One fold of a run on disk."""

    path: Path

    @property
    def weights(self) -> Path:
        """The best weights, safetensors."""
        return self.path / "best.safetensors"

    @property
    def machine(self) -> Path:
        """A support vector machine in the network's place."""
        return self.path / "svm.npz"

    @property
    def state(self) -> Path:
        """What an interrupted training goes on from."""
        return self.path / "last" / "state.pt"

    @property
    def history(self) -> Path:
        """One row per epoch."""
        return self.path / "history.csv"

    @property
    def embeddings(self) -> Path:
        """Of the held-out images, by the fold's own network."""
        return self.path / "embeddings.npz"

    @property
    def map(self) -> Path:
        """Embeddings of some images of several laboratories."""
        return self.path / "map.npz"

    @property
    def complete(self) -> bool:
        """Whether the fold's training came to its end."""
        return (self.path / "metrics.json").exists()

    def metadata(self) -> dict[str, Any]:
        """Reads what was written when the fold's training began; empty if there is none."""
        return _read_json(self.path / "metadata.json")

    def metrics(self) -> dict[str, Any]:
        """Reads the fold's scores; empty if it is not complete."""
        return _read_json(self.path / "metrics.json")

    def predictions(self, kind: str) -> Predictions:
        """Reads ``oof``, ``test`` or ``holdout``.

        Raises:
            UserError: The file is missing or damaged; names it.
        """
        path = self.path / f"{kind}.npz"
        found = Predictions.load(path)
        if kind != "test" and found.label is None:
            raise UserError(f"{path}: no labels in it; train that fold again")
        return found

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes one row per epoch."""
        with replacing(self.history) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    name: str
    root: Path = RUNS

    def __post_init__(self) -> None:
        """Refuses names that lead out of the folder of runs.

        Raises:
            UserError: The name does.
        """
        path = Path(self.name)
        if not self.name or path.is_absolute() or ".." in path.parts:
            raise UserError(f"--run {self.name}: a run's name is a path below {self.root}/, such as wbcbench/first")

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.root / self.name

    @property
    def folds_csv(self) -> Path:
        """The split of the labelled images."""
        return self.path / "folds.csv"

    def fold(self, k: int) -> FoldFolder:
        """Returns the folder of fold k."""
        return FoldFolder(self.path / f"fold{k}")

    def split(self) -> pd.DataFrame:
        """Reads the split of the labelled images: image_id, group, fold.

        Raises:
            UserError: It is missing or damaged.
        """
        kinds = {"image_id": str, "group": str, "fold": np.int64}
        try:
            return pd.read_csv(self.folds_csv, dtype=kinds, keep_default_na=False)[list(kinds)]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.folds_csv}: not readable ({error}); train the run again") from None

    def begin_fold(self, k: int, metadata: Mapping[str, Any], labelled: pd.DataFrame) -> None:
        """Puts an earlier training of a fold away and notes what the new one is made of.

        Whenever it is interrupted, the fold is as it was, or not begun.

        Args:
            k: The fold.
            metadata: Everything its result depends on.
            labelled: image_id, group and fold of every labelled image.
        """
        put_away(self.fold(k).path)
        self._replaced_mark(k).unlink(missing_ok=True)
        write_text(self.folds_csv, split_text(labelled))
        write_json(self.fold(k).path / "metadata.json", dict(metadata))

    @contextmanager
    def beginning_alone(self) -> Iterator[None]:
        """Lets one process at a time look whether folds fit together and begin one, in a moment."""
        with alone(self.path / ".run.lock"):
            for left in self.path.glob(f".{self.folds_csv.name}.*.tmp"):  # of a process that was killed
                left.unlink(missing_ok=True)
            yield

    def to_be_replaced(self) -> set[int]:
        """Returns the folds of an earlier training that a command is replacing, and has not come to yet."""
        return {int(mark.name[5:-9]) for mark in self.path.glob(".fold*.replaced")}

    @contextmanager
    def replacing_folds(self, folds: Collection[int]) -> Iterator[None]:
        """Marks folds, from now until each is begun afresh, where there may be earlier trainings of them.

        However the block is interrupted, ``--resume`` then trains all of them afresh, as the command was to. Where it
        ends for a mistake before the first one was begun, they are what they were.

        Args:
            folds: Those that this process trains.
        """
        marks = [self._replaced_mark(k) for k in folds] if self.path.exists() else []
        for mark in marks:
            mark.touch()
        try:
            yield
        except Exception:
            for mark in marks if all(mark.exists() for mark in marks) else ():
                mark.unlink()
            raise

    def _replaced_mark(self, k: int) -> Path:
        """Returns the file that marks the earlier training of a fold."""
        return self.path / f".fold{k}.replaced"

    @contextmanager
    def training_alone(self, k: int) -> Iterator[None]:
        """Keeps other processes from training a fold as long as the block lasts; clears up after one that was killed.

        Raises:
            UserError: Another process is training it.
        """
        folder = self.fold(k).path
        lock = beside_lock(folder)
        busy = (
            f"{folder}: another process is training this fold and holds {lock.name}; wait for its end, or name another "
            "run with --run NAME"
        )
        with held(lock, busy):
            remove_leftovers(folder)
            yield

    def finish_fold(
        self,
        k: int,
        oof: Predictions,
        test: Predictions,
        metrics: Mapping[str, Any],
        holdout: Predictions | None = None,
    ) -> None:
        """Writes a fold's results, the mark of completeness last.

        The split gives every image one fold, so holding each fold to it makes every image appear
        exactly once over all folds.

        Raises:
            ValueError: The out-of-fold rows are not the fold's images.
        """
        split, folder = self.split(), self.fold(k)
        if sorted(oof.image_id) != sorted(split.image_id[split.fold == k]):
            raise ValueError(f"{folder.path}: the rows scored are not the fold's images")
        oof.save(folder.path / "oof.npz")
        test.save(folder.path / "test.npz")
        if holdout is not None:
            holdout.save(folder.path / "holdout.npz")
        write_json(folder.path / "metrics.json", dict(metrics))

    def split_settings(self) -> FoldsConfig | None:
        """Returns the ``folds`` section that the run's split was made by; None if no training has begun."""
        try:
            found = (FoldFolder(path).metadata() for path in sorted(self.path.glob("fold[0-9]*")))
            sections = (metadata["config"]["folds"] for metadata in found if metadata)
            return next((FoldsConfig.model_validate(section) for section in sections), None)
        except (ValidationError, UserError, KeyError, TypeError):  # of another version of this project, or damaged
            return None

    def complete_folds(self) -> list[int]:
        """Returns the numbers of the folds whose training came to its end."""
        found = (path.name for path in self.path.glob("fold[0-9]*") if FoldFolder(path).complete)
        return sorted(int(name[4:]) for name in found if name[4:].isdecimal())

    def need_same(self, metadata: Mapping[str, Any], replaced: Collection[int] = ()) -> None:
        """Refuses to mix a new fold into a run of another configuration, data or classes.

        Args:
            metadata: What the new fold is made of.
            replaced: Folds that are trained afresh, and so may be of anything.

        Raises:
            UserError: A fold of the run was made of something else; names the key.
        """
        for path in sorted(self.path.glob("fold[0-9]*")):
            if path.name in {f"fold{k}" for k in replaced}:
                continue
            what = self._difference(FoldFolder(path).metadata(), metadata)
            if what is not None:
                raise UserError(
                    f"{path}: the run was trained with another {what}; name another run with --run NAME, "
                    f"or delete {self.path}"
                )

    @staticmethod
    def _difference(other: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
        """Names the first thing in which a fold (empty: none) cannot be of the same run; None where there is none."""
        for key in COMMON if other else ():
            if key == "config_digest" and digest_of(other) == metadata.get(key):
                continue
            if key == "split_digest" and not (key in other and key in metadata):  # of an older version
                continue
            if other.get(key) != metadata.get(key):
                same_key = key == "config_digest"
                return _first_difference(other["config"], metadata["config"]) if same_key else WORDED.get(key, key)
        return None


def split_text(labelled: pd.DataFrame) -> str:
    """Writes the split of labelled images as ``folds.csv`` holds it: image_id, group and fold of each."""
    return labelled[["image_id", "group", "fold"]].to_csv(index=False, lineterminator="\n")


def digest_of(metadata: Mapping[str, Any]) -> str:
    """Returns the digest of a fold's configuration, keys that are newer than the fold at their defaults."""
    try:
        return Config.model_validate(metadata["config"]).digest()
    except ValidationError:  # a key is gone, or takes other values now
        return str(metadata["config_digest"])


def chosen_on_scored(metadata: Mapping[str, Any]) -> bool:
    """Tells whether a run's epochs were chosen on the very images that it is scored on out of fold.

    Args:
        metadata: Of one of its folds. Held-out splits choose the epoch, unless the last one is kept.
    """
    config = metadata["config"]
    last = config["training"].get("keep") == "last"
    return bool(config["folds"].get("splits")) and not last and config.get("svm") is None


def find_runs(root: Path = RUNS) -> list[RunFolder]:
    """Finds every run that has a complete fold, by name."""
    folders = {path.parent.parent for path in root.glob("**/fold[0-9]*/metrics.json")}
    return [RunFolder(path.relative_to(root).as_posix(), root) for path in sorted(folders)]


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """Names the first key in which two resolved configurations differ, with both values."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = _first_difference(a, b, f"{prefix}{key}.")
            if inner != "configuration":
                return inner
        elif a != b and not is_irrelevant(f"{prefix}{key}"):
            return f"{prefix}{key} ({a}, now {b})"
    return "configuration"


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if the file is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable ({error}); train that fold again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; train that fold again")
    return value
