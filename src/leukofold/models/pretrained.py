"""Weights of backbones from a local file."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from leukofold.errors import UserError, first_line, name_some


def load_backbone(backbone: nn.Module, path: Path, classifier: tuple[str, ...]) -> None:
    """Loads a backbone's weights, leaving out the file's classifier.

    Args:
        backbone: A timm model without classifier; changed in place.
        path: A ``.safetensors`` file, or a PyTorch file that holds tensors only.
        classifier: Names of the classifier's layers, whose tensors are left out.

    Raises:
        UserError: The file is missing or unreadable, or its keys or shapes are of another architecture.
    """
    state = _read_state(path)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{c}." for c in classifier))}
    own = backbone.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    reshaped = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    for keys, fault in (
        (missing, "lacks"),
        (unexpected, "has, and the backbone has not,"),
        (reshaped, "has in another shape"),
    ):
        if keys:
            raise UserError(f"model.pretrained: {path} is of another architecture: it {fault} {name_some(keys)}")
    backbone.load_state_dict(state)


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """Reads a file of named tensors, without ever running code from it."""
    if not path.is_file():
        raise UserError(f"model.pretrained: {path}: no such file; give true, false or a weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"model.pretrained: {path}: not a file of weights: {first_line(error)}") from None
    while isinstance(loaded, Mapping) and any(key in loaded for key in ("state_dict", "model")):
        loaded = loaded.get("state_dict", loaded.get("model"))
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"model.pretrained: {path}: holds no mapping of named tensors")
    return loaded
