"""Weights that a training keeps, as safetensors with a digest of what is in them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from leukofold.errors import UserError, first_line
from leukofold.files import replacing

DIGEST = "sha256"  # its key in the file's metadata


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a network's parameters and buffers as safetensors, in one step.

    Args:
        model: Without wrappers, so that keys carry no ``module.`` or ``_orig_mod.``.
        path: The file.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state, {DIGEST: _digest(state)}))


def load_weights(model: nn.Module, path: Path) -> None:
    """Reads weights that ``save_weights`` wrote, and checks that they are the same still.

    Args:
        model: The network to put them into.
        path: The file. One that an older version of this project wrote has no digest and is not checked.

    Raises:
        UserError: The file is missing, damaged or of another network.
    """
    state = check_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of its run ({first_line(error)}); train that fold again") from None


def check_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads weights and checks that they are what was written; see ``load_weights``.

    Returns:
        The tensors by name.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            expected = (file.metadata() or {}).get(DIGEST)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not the weights of its run ({first_line(error)}); train that fold again") from None
    if expected is not None and _digest(state) != expected:
        raise UserError(f"{path}: damaged, not what was written; train that fold again, without --resume")
    return state


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """Digests names, kinds, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
