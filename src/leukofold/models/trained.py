"""The networks that finished folds kept."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from leukofold.config import Config
from leukofold.errors import UserError, first_line
from leukofold.models.classifier import Classifier
from leukofold.models.weights import load_weights
from leukofold.runs import FoldFolder, RunFolder

if TYPE_CHECKING:
    from leukofold.handcrafted.classifier import HandcraftedClassifier


def trained_config(run: RunFolder, metadata: Mapping[str, Any]) -> Config:
    """Returns the configuration that a run was trained by.

    Args:
        run: The run's folder.
        metadata: Of one of its folds.

    Raises:
        UserError: Another version of this project wrote it, with other keys.
    """
    try:
        return Config.model_validate(metadata["config"])
    except ValidationError as error:
        raise UserError(
            f"{run.path}: of another version of this project ({first_line(error)}); train it again"
        ) from None


def load_network(
    config: Config, fold: FoldFolder, classes: int, device: torch.device
) -> "Classifier | HandcraftedClassifier":
    """Builds a fold's network with the weights that it kept, or its support vector machine.

    Args:
        config: The run's configuration.
        fold: A complete fold.
        classes: K.
        device: Where it is to compute.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: The file is missing, damaged or of another network.
    """
    if config.svm is not None:
        from leukofold.handcrafted.classifier import HandcraftedClassifier  # here, as scikit-image takes seconds
        from leukofold.handcrafted.svm import SupportVectorMachine

        return HandcraftedClassifier(SupportVectorMachine.load(fold.machine)).eval()
    # nothing frozen: where a network looks is worked out from gradients that reach the backbone
    # normalisation takes another layer's place or none: what is frozen does not matter here either
    normalisation = "group" if config.model.normalisation == "group" else "own"
    changes = {"pretrained": False, "frozen": (), "normalisation": normalisation}
    untrained = config.model.model_copy(update=changes)
    images_of_a_cell = len(fold.metadata().get("modalities", ())) or 1  # older runs have one
    network = Classifier(untrained, config.image, classes, images_of_a_cell)
    load_weights(network, fold.weights)
    return network.to(device).eval()
