"""Knowledge distillation: a network learns from others, its teachers, beside the labels.

Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2. The teachers are finished runs; they see the very images
that the student trains on, after augmentation, so nothing of theirs is stored. A fold's teachers are the networks of
the same fold: they have not seen its held-out cells either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from leukofold.errors import UserError, name_some
from leukofold.experiment import Experiment
from leukofold.files import sha256
from leukofold.images.preparing import FORM
from leukofold.models.trained import load_network, trained_config
from leukofold.runs import RunFolder, chosen_on_scored


@dataclass(frozen=True)
class Teacher:
    """One run's network of the fold.

    Attributes:
        name: The run's name.
        network: In evaluation mode, without gradients.
        sees: The places of its images among the student's, 0..M-1.
        digest: SHA-256 of its weights.
    """

    name: str
    network: nn.Module
    sees: tuple[int, ...]
    digest: str


class Distillation:
    """What teachers add to a student's loss: T^2 sum_i KL(p(z_i^teacher, T) || p(z_i, T)), mean over cells.

    p(z, T) = softmax(z / T) and i runs over the student's heads; T^2 keeps the gradients of soft and hard targets in
    proportion whatever T. A single head is taught by the mean of its teachers' probabilities, which is the late fusion
    of four networks of one image each; the sum over those four would have the same gradient, four times as strong.

    Args:
        teachers: In the order of the student's heads where there is one for each, else in any.
        each_head: Whether each teaches a head of its own (MM-MIMO).
        modalities: M, images of a cell that the student sees.
        temperature: T > 0.
    """

    def __init__(self, teachers: Sequence[Teacher], each_head: bool, modalities: int, temperature: float) -> None:
        self.teachers = tuple(teachers)
        self.each_head, self.modalities, self.temperature = each_head, modalities, temperature

    @property
    def digests(self) -> dict[str, str]:
        """Teacher -> SHA-256 of its weights."""
        return {teacher.name: teacher.digest for teacher in self.teachers}

    @torch.no_grad()
    def targets(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the softened probabilities that each head is to come near to.

        Args:
            images: n x 3M x S x S, what the student trains on.

        Returns:
            n x H x K float32; H = 1 for a single head.
        """
        parts = images.reshape(len(images), self.modalities, -1, *images.shape[2:])
        logits = [teacher.network(parts[:, list(teacher.sees)].flatten(1, 2)) for teacher in self.teachers]
        soft = (torch.stack(logits, dim=1).float() / self.temperature).softmax(dim=2)
        return soft if self.each_head else soft.mean(dim=1, keepdim=True)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns what is added to the student's loss, a scalar.

        Args:
            logits: n x K, or n x H x K; the student's.
            targets: n x H x K; see ``targets``.
        """
        heads = logits.float().reshape(targets.shape)
        log_soft = (heads / self.temperature).log_softmax(dim=2)
        return self.temperature**2 * F.kl_div(log_soft, targets, reduction="sum") / len(targets)


def load_teachers(experiment: Experiment, fold: int, device: torch.device) -> Distillation | None:
    """Loads a fold's teachers.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        device: Where they are to compute.

    Returns:
        What they add to the loss; None where the configuration names none.

    Raises:
        UserError: A teacher is not trained, or of other data, folds or images than the student.
    """
    settings, config = experiment.config.distillation, experiment.config
    if not settings.teachers:
        return None
    teachers = [_load(experiment, name, fold, device) for name in dict.fromkeys(settings.teachers)]
    seen = experiment.images.modalities
    each_head = config.model.fusion == "mimo"
    if each_head:
        of_head = {teacher.sees: teacher for teacher in teachers}
        lacking = [name for place, name in enumerate(seen) if (place,) not in of_head]
        if lacking or len(teachers) != len(seen):
            raise UserError(
                "distillation.teachers: model.fusion: mimo takes one teacher for each image of a cell, which sees that "
                f"alone; {f'none sees {name_some(lacking)}' if lacking else 'name no more than these'}"
            )
        teachers = [of_head[(place,)] for place in range(len(seen))]
    return Distillation(teachers, each_head, experiment.images.count, settings.temperature)


def _load(experiment: Experiment, name: str, fold: int, device: torch.device) -> Teacher:
    """Loads one teacher, if it is fit to teach."""
    run = RunFolder(name, experiment.run.root)
    if experiment.debug and not run.fold(fold).complete:
        run = RunFolder(f"{name}-debug", experiment.run.root)  # few batches of everything may be taught by such a run
    own, where = run.fold(fold), f"distillation.teachers: {run.name}"
    metadata = own.metadata()
    if not own.complete or not metadata:
        raise UserError(f"{where}: its fold {fold} is not trained; train that run first")
    config = trained_config(run, metadata)
    _need_same(
        where, "folds", config.folds.model_dump(), experiment.config.folds.model_dump(),
        "a teacher may not have seen what is held out here",
    )  # fmt: skip
    _need_fit(experiment, run, metadata, where)
    if config.svm is not None:
        raise UserError(f"{where}: a support vector machine cannot teach a network; name a network's run")
    theirs, ours = (each.image.model_dump(include=FORM) for each in (config, experiment.config))
    _need_same(where, "image", theirs, ours, "a teacher has to see the images that it was trained on")
    seen = experiment.images.modalities
    unseen = [modality for modality in metadata.get("modalities", []) if modality not in seen]
    if unseen:
        raise UserError(f"{where}: sees {unseen[0]}, which this run does not; add it to data.modalities")
    sees = tuple(seen.index(modality) for modality in metadata.get("modalities", [])) or (0,)
    network = load_network(config, own, len(metadata["class_names"]), device).requires_grad_(False)
    return Teacher(run.name, network, sees, sha256(own.weights))


def _need_same(where: str, section: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], why: str) -> None:
    """Refuses a teacher that a section of the configuration makes unfit."""
    for key, value in ours.items():
        if theirs[key] != value:
            raise UserError(f"{where}: {section}.{key} is {theirs[key]} there and {value} here; {why}")


def _need_fit(experiment: Experiment, run: RunFolder, metadata: Mapping[str, Any], where: str) -> None:
    """Refuses a teacher of other data, classes or folds: it would have seen what is held out."""
    table = experiment.table
    ours = {
        "competition": experiment.competition.name,
        "class_names": list(table.class_names),
        "data_fingerprint": table.fingerprint(),
    }
    for key, value in ours.items():
        if metadata[key] != value:
            raise UserError(f"{where}: of different {key}; name a run of the same input")
    if metadata.get("label_lists") == "all folds":
        raise UserError(
            f"{where}: was trained by lists of label issues that know the held-out labels; see folds.left_out"
        )
    folds = run.split().set_index("image_id").fold
    theirs = folds.reindex(experiment.labelled.image_id).to_numpy()
    if metadata["debug"] and not experiment.debug:
        raise UserError(f"{where}: a debug run; train it whole first")
    differing = experiment.labelled.image_id[theirs != experiment.folds]
    if len(differing):
        raise UserError(f"{where}: {len(differing)} images are in other folds there, {differing.iloc[0]} first")
    if chosen_on_scored(metadata) and experiment.config.training.keep == "last":
        raise UserError(f"{where}: its epoch was chosen on the images that are scored here; train it to the last one")
