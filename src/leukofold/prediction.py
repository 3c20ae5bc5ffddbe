"""Predicting any images with the networks of finished runs: one decode for all networks and views.

Networks that adapt their batch statistics to what they are given see all images once more before, each of them, in an
order that the images alone decide.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError, name_some
from leukofold.files import replacing
from leukofold.images.preparing import FORM, Preparation
from leukofold.images.reading import IMAGE_SUFFIXES, read_image, unreadable_images
from leukofold.inference import View, adapted_copy, score_rows, tta_views, view_logits
from leukofold.lists import read_list
from leukofold.loaders import SizedDataset, as_channels, make_loader
from leukofold.models.classifier import Classifier
from leukofold.models.trained import load_network, trained_config
from leukofold.registered import lacking_modalities, listed_files, registered_files
from leukofold.rowmaps import checksums
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
        modalities: The images of a cell that it sees; none where a cell has one.
        rendered: Whether it was trained on rendered images.
    """

    name: str
    config: Config
    class_names: Sequence[str]
    networks: Sequence[nn.Module]
    views: Sequence[View]
    modalities: tuple[str, ...]
    rendered: bool


def list_images(source: Path, modalities: Sequence[str] = (), check: bool = True) -> pd.DataFrame:
    """Finds the images to predict.

    Args:
        source: A folder, searched with all its sub-folders; or a CSV with a column ``path``, relative
            to the CSV's own folder. Of several images of a cell: a folder that holds one for each modality, with the
            same names below them; or a CSV with a column for each.
        modalities: The images of a cell that are needed; none where a cell has one.
        check: Whether to decode every image first, so that unreadable ones are told before anything is computed.

    Returns:
        One row per cell, sorted (folder) or in the order of the CSV; a column ``path``, or one for each modality.

    Raises:
        UserError: There are none, a listed one is not there, a cell lacks one, or some are unreadable.
    """
    names = list(modalities) or ["path"]
    if source.is_dir():
        files = registered_files(source, names) if modalities else _below(source)
        cells = files.index.tolist()
    elif source.suffix.lower() == ".csv" and source.is_file():
        table = read_list(source, names)
        files = listed_files(source, table, names)
        cells = [
            next(filter(None, row), f"row {number}") for number, row in enumerate(table[names].to_numpy(), start=2)
        ]
    else:
        raise UserError(f"--images {source}: neither a folder nor a CSV file that is there")
    if files.empty:
        raise UserError(f"--images {source}: no image files ({' '.join(IMAGE_SUFFIXES)})")
    lacking = lacking_modalities(cells, files)
    if lacking and modalities:
        raise UserError(f"{source}: {len(lacking)} of {len(files)} cells lack an image: {name_some(lacking)}")
    if lacking:
        absent = [cell for cell, file in zip(cells, files.path, strict=True) if not file]
        raise UserError(f"{source}: {len(absent)} of {len(files)} images are not there: {name_some(absent)}")
    paths = files.to_numpy().ravel().tolist()
    faults = unreadable_images(paths) if check else []
    if faults:
        raise UserError(f"--images {source}: {len(faults)} of {len(paths)} are unreadable: {name_some(faults, 5)}")
    return files.reset_index(drop=True)


def _below(source: Path) -> pd.DataFrame:
    """Finds all images of a folder."""
    paths = [path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    return pd.DataFrame({"path": sorted(path.as_posix() for path in paths)}, dtype=str)


def seen_by(members: Sequence[Member]) -> list[str]:
    """Returns all modalities that some runs see, each once; none where a cell has one image."""
    return list(dict.fromkeys(name for member in members for name in member.modalities))


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
            Member(
                name,
                config,
                metadata["class_names"],
                networks,
                tta_views(config.inference),
                tuple(metadata.get("modalities", ())),  # older runs have none
                metadata["rendered"],
            )
        )
    return members


class _ManySizes(SizedDataset):
    """Decodes each image once and prepares it for every member: by its preparation, for the modalities it sees."""

    def __init__(self, files: pd.DataFrame, forms: Sequence[tuple[Preparation, Sequence[str]]], split: str) -> None:
        self.files = {name: files[name].tolist() for name in files}
        self.forms, self.split = forms, split
        self.count = len(files)

    def __len__(self) -> int:
        """Returns the number of cells."""
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings one cell, ``images`` in as many forms as there are."""
        decoded = {name: read_image(paths[row]) for name, paths in self.files.items()}
        prepared = [
            as_channels(np.stack([prepare(decoded[name], self.split) for name in names or decoded]))
            for prepare, names in self.forms
        ]
        return {"images": prepared, "row": row}


def predict_images(
    members: Sequence[Member],
    files: pd.DataFrame,
    accelerator: Accelerator,
    batch_size: int,
    workers: int | None,
    split: str | None = None,
    compiled: bool = False,
) -> np.ndarray:
    """Scores images with every network of every member.

    Args:
        members: All of one competition.
        files: n rows, see ``list_images``.
        accelerator: Devices, processes and precision.
        batch_size: Images at a time, per process.
        workers: Loader processes.
        split: Whose crop the images get (``image.crops``); None: that of every image without one of its own.
        compiled: Whether the networks are compiled first (torch.compile): minutes of work, for many images.

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
    preparations = {
        _form(member): (Preparation(member.config.image, preprocess), member.modalities) for member in members
    }
    forms = {form: position for position, form in enumerate(preparations)}
    dataset = _ManySizes(files, list(preparations.values()), split or "")
    networks = {
        member.name: _adapted(member, accelerator.device, dataset, forms[_form(member)], workers) for member in members
    }
    for network in itertools.chain.from_iterable(networks.values()) if compiled else ():
        if isinstance(network, Classifier):  # a support vector machine has nothing to compile
            network.compile(isolate_recompiles=True)  # else from the ninth network on they would stay as they are

    @torch.inference_mode()
    def forward(batch: Mapping[str, Any]) -> torch.Tensor:
        logits, count = [], len(batch["row"])
        for member in members:
            images = batch["images"][forms[_form(member)]]
            if compiled:  # always as many, and made in inference mode: else networks would be compiled again
                images = torch.cat([images, images[-1:].expand(batch_size - count, *images.shape[1:])])
            own = [view_logits(network, images, member.views)[:count, 0] for network in networks[member.name]]
            logits.append(torch.stack(own).mean(dim=0))
        return torch.stack(logits).mean(dim=0)

    loader = make_loader(dataset, workers, batch_size * accelerator.num_processes)
    return score_rows(accelerator, loader, forward, len(files), "predicting")


def _adapted(
    member: Member, device: torch.device, dataset: _ManySizes, form: int, workers: int | None
) -> Sequence[nn.Module]:
    """Returns a member's networks, with the batch statistics of the images where its configuration wants these."""
    inference = member.config.inference
    if inference.batch_statistics == "training":
        return member.networks
    loader = make_loader(dataset, workers, inference.batch_size)
    bar = tqdm(loader, "looking at images", leave=False)
    first = (batch["images"][form][:, :3].permute(0, 2, 3, 1).numpy() for batch in bar)  # as the image cache has them
    content = np.array([value for images in first for value in checksums(images)], np.uint64)
    return [
        adapted_copy(network, dataset, content, inference, workers, device, lambda batch: batch["images"][form])
        for network in member.networks
    ]


def _form(member: Member) -> str:
    """Names what is done to an image before a member's networks see it; members often share it."""
    form = member.config.image.model_dump_json(include=FORM)
    return f"{form} {' '.join(member.modalities)}"


def write_predictions(path: Path, images: Sequence[str], logits: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes one row per cell: its first image's path, the predicted class, and each class's probability (softmax).

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
