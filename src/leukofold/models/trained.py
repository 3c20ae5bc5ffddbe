"""The networks that finished folds kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from leukofold.config import Config
from leukofold.errors import UserError, first_line
from leukofold.models.classifier import Classifier
from leukofold.runs import RunFolder


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


def load_network(config: Config, weights: Path, classes: int, device: torch.device) -> Classifier:
    """Builds a fold's network with the weights that it kept.

    Args:
        config: The run's configuration.
        weights: The fold's file.
        classes: K.
        device: Where it is to compute.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: The file is missing, damaged or of another network.
    """
    # nothing frozen: where a network looks is worked out from gradients that reach the backbone
    untrained = config.model.model_copy(update={"pretrained": False, "frozen": ()})
    network = Classifier(untrained, config.image, classes)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights}: not the weights of its run ({first_line(error)})") from None
    return network.to(device).eval()
