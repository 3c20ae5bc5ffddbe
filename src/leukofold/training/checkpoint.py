"""What an interrupted training goes on from."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from leukofold.errors import UserError, first_line
from leukofold.files import replacing
from leukofold.models.pretrained import UNREADABLE

ANEW = "delete it, and --resume trains that fold from its beginning"


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
        with zipfile.ZipFile(path) as parts:  # torch writes a checksum of each part, and does not look at it
            damaged = parts.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"its part {damaged} is not what was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # PyTorch's own advice is to run the file's code
        raise UserError(f"{path}: damaged (it holds more than numbers); {ANEW}") from None
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {ANEW}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged (it holds no state of a training); {ANEW}")
    return state
