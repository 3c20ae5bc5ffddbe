"""Features of a frozen backbone, computed once per view of an image and shared by all epochs, folds and seeds.

::

    cache/features/<key>/features.npy     n x V x D float32
                         checksums.npy    of each row
                         index.csv        the image id of each row
                         features.json    what they are made of, and what tells that all is whole

The key is a digest of the backbone's weights, the prepared images and the views, so that anything that could
change a feature makes a new folder; what is not needed any more can be deleted at any time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import albumentations
import numpy as np
import pandas as pd
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from leukofold.augment import Augmentation
from leukofold.config import Config
from leukofold.files import alone
from leukofold.images.cellimages import CellImages
from leukofold.inference import View, score_rows, tta_views
from leukofold.loaders import CellDataset, SizedDataset, make_loader
from leukofold.models.classifier import Classifier
from leukofold.rowmaps import RowMap, fault_of, remove_damaged, write_rows
from leukofold.sampling import Key

FEATURES = "features"  # the array's name
CHUNK = 4096  # images whose features are in memory at a time
VIEW_STREAM = 5  # of random numbers; apart from those of trainings, so that all share the views


class FeatureDataset(SizedDataset):
    """Brings features in the place of images.

    Args:
        features: The features that are there.
        frame: Rows of a ``CellTable``.
        one_view: Bring the one view that the sampler's seed chooses, for training; else all.
    """

    def __init__(self, features: RowMap, frame: pd.DataFrame, one_view: bool) -> None:
        self.features = features
        self.rows = features.rows(frame.image_id.tolist())
        self.labels = frame.label.to_numpy()
        self.one_view = one_view

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Brings one image's features.

        Args:
            key: A row, or a row and the seed that chooses its view.

        Returns:
            ``image`` (V x D float32, or D where one view is chosen), ``label`` and ``row``.
        """
        row, seed = key if isinstance(key, tuple) else (key, 0)
        found = self.features.read(self.rows[row])
        chosen = found[seed % len(found)] if self.one_view else found
        return {"image": torch.from_numpy(chosen), "label": int(self.labels[row]), "row": row}


class _AugmentedViews(SizedDataset):
    """Brings the same augmented views of each image, whenever they are asked for."""

    def __init__(self, images: CellImages, frame: pd.DataFrame, augmentation: Augmentation, count: int) -> None:
        self.cells = CellDataset(images, frame, augmentation)
        self.ids = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in frame.image_id]
        self.count = count

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.cells)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings ``image`` (V x 3M x S x S uint8) and ``row``."""
        seeds = np.random.SeedSequence([VIEW_STREAM, self.ids[row]]).generate_state(self.count, np.uint64) >> 1
        views = [self.cells[(row, int(seed))]["image"] for seed in seeds]
        return {"image": torch.stack(views), "row": row}


def feature_views(count: int) -> list[View]:
    """Returns what chooses each of V views out of n x V x D features, in the place of test-time augmentation."""

    def view(number: int) -> View:
        return lambda features: features[:, number]

    return [view(number) for number in range(count)]


def augmented_features(
    network: Classifier, config: Config, images: CellImages, frame: pd.DataFrame, accelerator: Accelerator
) -> RowMap:
    """Opens the features of augmented views, after computing them where they are not there yet.

    Args:
        network: Its backbone is frozen.
        config: Augmentation, and the number of views.
        images: The prepared images.
        frame: The rows that are trained on.
        accelerator: Devices and processes.

    Returns:
        n x V x D float32.
    """
    count, augmentation = config.training.cached_views, Augmentation(config.image.augment)

    def embed(batch: Mapping[str, Any]) -> torch.Tensor:
        pixels = batch["image"]
        features = network.embed(pixels.flatten(0, 1))
        return features.view(len(pixels), count, -1)

    made_of = {
        "views": count,
        "augment": [transform.model_dump(mode="json") for transform in config.image.augment],
        "albumentations": albumentations.__version__,
    }
    source = _Source(frame, lambda rows: _AugmentedViews(images, rows, augmentation, count), embed, made_of)
    return _open(network, config, images, source, accelerator)


def scoring_features(
    network: Classifier, config: Config, images: CellImages, frame: pd.DataFrame, accelerator: Accelerator
) -> RowMap:
    """Opens the features of the views that scoring takes, the image as it is first; as ``augmented_features``."""
    views = tta_views(config.inference)

    def embed(batch: Mapping[str, Any]) -> torch.Tensor:
        return torch.stack([network.embed(view(batch["image"])) for view in views], dim=1)

    shown = {"tta", "angles", "mirrored", "border", "interpolation"}
    made_of = {"views": len(views), "inference": config.inference.model_dump(mode="json", include=shown)}
    return _open(
        network, config, images, _Source(frame, lambda rows: CellDataset(images, rows), embed, made_of), accelerator
    )


@dataclass(frozen=True)
class _Source:
    """What features are computed of.

    Attributes:
        frame: n rows of a ``CellTable``.
        dataset: From some of the rows to what brings their images.
        embed: From a batch to its features, m x V x D.
        made_of: The views, for the key.
    """

    frame: pd.DataFrame
    dataset: Callable[[pd.DataFrame], SizedDataset]
    embed: Callable[[Mapping[str, Any]], torch.Tensor]
    made_of: dict[str, Any]


def _open(network: Classifier, config: Config, images: CellImages, source: _Source, accelerator: Accelerator) -> RowMap:
    """Opens a folder of features; one command computes it, on all its processes, and others wait."""
    made_of = {
        "images": images.key,
        "image_ids": hashlib.sha256("\n".join(source.frame.image_id).encode()).hexdigest(),
        "backbone": config.model.backbone,
        "weights": _weights_digest(network),
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "torch": torch.__version__,
        "timm": timm.__version__,
        **source.made_of,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    folder = config.data.cache / "features" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder.with_suffix(".lock")) if accelerator.is_main_process else nullcontext():
        fault = [fault_of(folder, FEATURES)]
        if accelerator.num_processes > 1:
            broadcast_object_list(fault)
        if fault[0] is not None:
            if accelerator.is_main_process:
                remove_damaged(folder, fault[0])
            parts = _compute(network, config, source, accelerator)
            if accelerator.is_main_process:
                write_rows(folder, FEATURES, source.frame.image_id, parts, made_of)
            else:  # takes its share in the computing
                for _ in parts:
                    pass
        accelerator.wait_for_everyone()
    return RowMap(folder, FEATURES)


def _compute(network: Classifier, config: Config, source: _Source, accelerator: Accelerator) -> Iterator[np.ndarray]:
    """Computes the features part by part, the same on every process; m x V x D each."""
    embed, frame = torch.inference_mode()(source.embed), source.frame
    batch_size = max(1, config.inference.batch_size // int(source.made_of["views"])) * accelerator.num_processes
    network.eval()
    for start in range(0, len(frame), CHUNK):
        part = frame.iloc[start : start + CHUNK]
        loader = make_loader(source.dataset(part), config.data.workers, batch_size)
        title = f"features of images {start + 1} to {start + len(part)} of {len(frame)}"
        yield score_rows(accelerator, loader, lambda batch: embed(batch).float(), len(part), title)


def _weights_digest(network: Classifier) -> str:
    """Digests the weights of the backbone and the normalisation before it."""
    digest = hashlib.sha256()
    for name, tensor in (*network.backbone.state_dict().items(), ("mean", network.mean), ("std", network.std)):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
