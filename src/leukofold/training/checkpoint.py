"""What an interrupted training goes on from, and the weights that are kept."""

import io
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from leukofold.errors import UserError, first_line
from leukofold.files import replacing


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a network's parameters and buffers as safetensors, in one step.

    Args:
        model: Without wrappers, so that keys carry no ``module.`` or ``_orig_mod.``.
        path: The file.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads weights that ``save_weights`` wrote.

    Raises:
        UserError: The file is missing, damaged or of another network.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: the weights cannot be loaded ({first_line(error)})") from None


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes the state of a training in one step.

    Args:
        state: Tensors and plain values, nested in dicts and lists.
        path: The file.
    """
    buffer = io.BytesIO()  # torch.save to a path reports a full disk as a bug of its own
    torch.save(dict(state), buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Reads what ``save_state`` wrote; no code in the file is ever run.

    Raises:
        UserError: The file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); start the fold afresh without --resume") from None
    assert isinstance(state, dict)
    return state
