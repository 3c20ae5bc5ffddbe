"""Weights of backbones from a file."""

import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import nn

from leukofold.containment import shown
from leukofold.errors import UserError, first_line, name_some
from leukofold.files import sha256

State = Mapping[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model", "teacher")  # names under which trainers keep the tensors, at times one in another
_MOST_WRAPPED = 4
UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error, SafetensorError,
)  # fmt: skip
"""What reading a damaged or foreign file of weights may raise."""


def load_backbone(
    backbone: nn.Module,
    path: Path,
    classifier: tuple[str, ...] = (),
    convert: Callable[[State], State] = dict,
    published: Mapping[str, str] | None = None,
) -> None:
    """Loads a backbone's weights, leaving out the file's classifier.

    Args:
        backbone: A timm model without classifier; changed in place.
        path: A ``.safetensors`` file, or a PyTorch file that holds tensors only.
        classifier: Names of the classifier's layers, whose tensors are left out.
        convert: Brings the file's keys to the backbone's.
        published: SHA-256 digests of official files by their name; a file of such a name must have it.

    Raises:
        UserError: The file is missing, unreadable or not the official one of its name, or its keys or
            shapes are of another architecture.
    """
    if not path.is_file():
        raise UserError(f"model.pretrained: {path}: no such file; give true, false or a weights file")
    expected = (published or {}).get(path.name)
    if expected is not None and sha256(path) != expected:
        raise UserError(
            f"model.pretrained: {path}: its SHA-256 is not that of the official {path.name} ({expected[:16]}...); "
            "download it again, or rename weights of your own"
        )
    state = _read_state(path)
    own = backbone.state_dict()
    try:
        state = convert(state)
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"model.pretrained: {path} is of another architecture: {first_line(error)}") from None
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{c}." for c in classifier))}
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    reshaped = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    faults = [
        f"{verb} {name_some([shown(key) for key in keys])}"
        for keys, verb in (
            (missing, "lacks"),
            (unexpected, "has, and the backbone has not,"),
            (reshaped, "has in another shape"),
        )
        if keys
    ]
    if faults:
        raise UserError(f"model.pretrained: {path} is of another architecture: it {'; it '.join(faults)}")
    backbone.load_state_dict(dict(state))


def widened(state: State, stems: Sequence[str], channels: int) -> State:
    """Widens first convolutions for three channels to more, as timm widens those of its own weights.

    Args:
        state: Tensors by name, of the backbone or of what holds it under ``backbone.``.
        stems: Names of the first convolutions.
        channels: What they are to take.

    Returns:
        The tensors; convolutions that take so many already stay.
    """
    names = {f"{prefix}{stem}.weight" for stem in stems for prefix in ("", "backbone.")}
    return {
        key: adapt_input_conv(channels, value) if key in names and value.shape[1] == 3 else value
        for key, value in state.items()
    }


def _read_state(path: Path) -> State:
    """Reads a file of named tensors, without ever running code from it.

    A pickle may name functions to be called. PyTorch's reader for weights alone refuses those; what it raises on files
    that are damaged or made to break it is not documented, and was found by damaging files.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # of pickles that are not PyTorch's
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # PyTorch's own advice is to run the file's code
        raise UserError(
            f"model.pretrained: {path}: not a file of weights, or one that holds more than tensors; that may be code, "
            "which is never run; save the network's state_dict() alone"
        ) from None
    except UNREADABLE as error:
        raise UserError(f"model.pretrained: {path}: not a file of weights: {first_line(error)}") from None
    for _ in range(_MOST_WRAPPED):
        if not isinstance(loaded, Mapping):
            break
        loaded = next((loaded[key] for key in _WRAPPERS if key in loaded), loaded)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise UserError(f"model.pretrained: {path}: holds no mapping of named tensors")
    return loaded
