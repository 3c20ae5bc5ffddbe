"""Predicting any images with the networks of finished runs: one decode for all networks and views.

Networks that adapt their batch statistics to what they are given see all images once more before, each of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn

from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError, name_some
from leukofold.files import replacing
from leukofold.images.preparing import Preparation
from leukofold.images.reading import IMAGE_SUFFIXES, read_image, unreadable_images
from leukofold.inference import View, adapted_copy, score_rows, tta_views, view_logits
from leukofold.loaders import SizedDataset, make_loader
from leukofold.models.trained import load_network, trained_config
from leukofold.runs import RunFolder


@dataclass(frozen=True)
class Member:
    """The networks of one run.

    Attributes:
        name: The run's name.
        config: Its resolved configuration.
        class_names: K names.
        networks: One per complete fold, in evaluation mode.
        views: Its test-time augmentation.
        rendered: Whether it was trained on rendered images.
    """

    name: str
    config: Config
    class_names: Sequence[str]
    networks: Sequence[nn.Module]
    views: Sequence[View]
    rendered: bool


def list_images(source: Path, check: bool = True) -> list[str]:
    """Finds the images to predict.

    Args:
        source: A folder, searched with all its sub-folders; or a CSV with a column ``path``, relative
            to the CSV's own folder.
        check: Whether to decode every image first, so that unreadable ones are told before anything is computed.

    Returns:
        Paths, sorted (folder) or in the order of the CSV.

    Raises:
        UserError: There are none, a listed one is not there, or some are unreadable.
    """
    if source.is_dir():
        paths = sorted(
            path.as_posix() for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
    elif source.suffix.lower() == ".csv" and source.is_file():
        paths = _listed(source)
    else:
        raise UserError(f"--images {source}: neither a folder nor a CSV file that is there")
    if not paths:
        raise UserError(f"--images {source}: no image files ({' '.join(IMAGE_SUFFIXES)})")
    faults = unreadable_images(paths) if check else []
    if faults:
        raise UserError(f"--images {source}: {len(faults)} of {len(paths)} are unreadable: {name_some(faults, 5)}")
    return paths


def _listed(source: Path) -> list[str]:
    """Reads the paths of a CSV."""
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a readable CSV: {error}") from None
    if "path" not in table.columns:
        raise UserError(f"{source}: no column 'path', only {', '.join(table.columns)}")
    paths = [(source.parent / path).as_posix() for path in table.path]
    twice = [path for path, times in Counter(paths).items() if times > 1]
    if twice:
        raise UserError(
            f"{source}: {len(twice)} images are listed more than once: {name_some(twice)}; keep one of each"
        )
    absent = [path for path in paths if not Path(path).is_file()]
    if absent:
        raise UserError(f"{source}: {len(absent)} of {len(paths)} images are not there: {name_some(absent)}")
    return paths


def load_members(names: Sequence[str], device: torch.device, root: Path) -> list[Member]:
    """Loads the networks of runs, all complete folds of each.

    Args:
        names: The runs.
        device: Where they are to compute.
        root: Folder of all runs.

    Returns:
        One member per run.

    Raises:
        UserError: A run has no complete fold, or the runs are of different competitions or classes.
    """
    members, first = [], None
    for name in dict.fromkeys(names):
        run = RunFolder(name, root)
        folds = run.complete_folds()
        if not folds:
            raise UserError(f"{run.path}: no run with a complete fold; train it with scripts/train_fold.py")
        metadata = run.fold(folds[0]).metadata()
        if not metadata:
            raise UserError(f"{run.fold(folds[0]).path / 'metadata.json'}: no such file; train that fold again")
        first = first or metadata
        for key in ("competition", "class_names"):
            if metadata[key] != first[key]:
                raise UserError(f"--run {name}: different {key} from {first['run']}; such runs cannot be averaged")
        config = trained_config(run, metadata)
        networks = [load_network(config, run.fold(k), len(metadata["class_names"]), device) for k in folds]
        members.append(
            Member(name, config, metadata["class_names"], networks, tta_views(config.inference), metadata["rendered"])
        )
    return members


class _ManySizes(SizedDataset):
    """Decodes each image once and prepares it for every member."""

    def __init__(self, paths: Sequence[str], preparations: Sequence[Preparation], split: str) -> None:
        self.paths, self.split = paths, split
        self.preparations = preparations

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings one image, ``images`` in as many forms as there are preparations."""
        image = read_image(self.paths[row])
        prepared = [preparation(image, self.split).transpose(2, 0, 1) for preparation in self.preparations]
        return {"images": [torch.from_numpy(np.ascontiguousarray(form)) for form in prepared], "row": row}


def predict_images(
    members: Sequence[Member],
    paths: Sequence[str],
    accelerator: Accelerator,
    batch_size: int,
    workers: int | None,
    split: str | None = None,
) -> np.ndarray:
    """Scores images with every network of every member.

    Args:
        members: All of one competition.
        paths: n readable image files.
        accelerator: Devices, processes and precision.
        batch_size: Images at a time, per process.
        workers: Loader processes.
        split: Whose crop the images get (``image.crops``); None: that of every image without one of its own.

    Returns:
        n x K float32: logits averaged over views and folds, then over members.

    Raises:
        UserError: No member has a crop for that split.
    """
    known = list(dict.fromkeys(name for member in members for name in member.config.image.crops))
    if split is not None and split not in known:
        what = f"there are {', '.join(known)}" if known else "the runs have none, leave --crop-of out"
        raise UserError(f"--crop-of {split}: no run has a crop of that name (image.crops); {what}")
    preprocess = get_competition(members[0].config.data.competition).preprocess
    preparations = {_form(member): Preparation(member.config.image, preprocess) for member in members}
    forms = {form: position for position, form in enumerate(preparations)}
    dataset = _ManySizes(paths, list(preparations.values()), split or "")
    networks = {
        member.name: _adapted(member, accelerator.device, dataset, forms[_form(member)], workers) for member in members
    }

    def forward(batch: Mapping[str, Any]) -> torch.Tensor:
        logits = []
        for member in members:
            images = batch["images"][forms[_form(member)]]
            own = [view_logits(network, images, member.views)[:, 0] for network in networks[member.name]]
            logits.append(torch.stack(own).mean(dim=0))
        return torch.stack(logits).mean(dim=0)

    loader = make_loader(dataset, workers, batch_size * accelerator.num_processes)
    return score_rows(accelerator, loader, forward, len(paths), "predicting")


def _adapted(
    member: Member, device: torch.device, dataset: _ManySizes, form: int, workers: int | None
) -> Sequence[nn.Module]:
    """Returns a member's networks, with the batch statistics of the images where its configuration wants these."""
    inference = member.config.inference
    if inference.batch_statistics == "training":
        return member.networks
    return [
        adapted_copy(network, dataset, inference, workers, device, lambda batch: batch["images"][form])
        for network in member.networks
    ]


def _form(member: Member) -> str:
    """Names what is done to an image before a member's networks see it; members often share it."""
    return member.config.image.model_dump_json(include={"denoise", "stain", "crop", "crops", "size"})


def write_predictions(path: Path, images: Sequence[str], logits: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes one row per image: its path, the predicted class, and each class's probability (softmax).

    Args:
        path: The CSV file.
        images: n paths.
        logits: n x K.
        class_names: K names.
    """
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    table = pd.DataFrame({"path": images, "prediction": [class_names[k] for k in logits.argmax(axis=1)]})
    table = pd.concat([table, pd.DataFrame(probabilities, columns=[f"p_{name}" for name in class_names])], axis=1)
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
