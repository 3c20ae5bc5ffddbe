"""Files of weights and numbers from elsewhere: what they hold is never run, and what is wrong with them is one line."""

from __future__ import annotations

import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from leukofold.config import ModelConfig
from leukofold.errors import UserError
from leukofold.handcrafted.svm import SupportVectorMachine
from leukofold.models.classifier import build_backbone
from leukofold.models.pretrained import load_backbone
from leukofold.runs import Predictions


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        """Tells pickle what to call."""
        return os.mkdir, (str(self.mark),)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


WAYS: dict[str, Callable[[Any, Path], object]] = {
    "alone": lambda evil, path: torch.save(evil, path),
    "among tensors": lambda evil, path: torch.save({"state_dict": {"conv1.weight": torch.zeros(1), "x": evil}}, path),
    "in PyTorch's old format": lambda evil, path: torch.save(
        {"a": evil}, path, _use_new_zipfile_serialization=False
    ),
    "as a key": lambda evil, path: torch.save({evil: torch.zeros(1)}, path),
    "as a plain pickle": lambda evil, path: path.write_bytes(pickle.dumps(evil)),
    "as a plain pickle of protocol 2": lambda evil, path: path.write_bytes(pickle.dumps({"model": evil}, 2)),
}  # fmt: skip


@pytest.mark.filterwarnings("error")  # a second line on standard error
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_code_in_a_file_of_weights_is_refused_and_not_run(tmp_path: Path, way: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    WAYS[way](Evil(tmp_path / "ran"), path)
    with pytest.raises(UserError) as caught:
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=path), 32)
    assert not (tmp_path / "ran").exists()
    message = str(caught.value)
    assert message.startswith(f"model.pretrained: {path}: not a file of weights")
    assert "weights_only" not in message  # PyTorch's own message tells how to run the code
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, {1: torch.zeros(1)}, [torch.zeros(1)], torch.zeros(1), {"model": {"state_dict": 3}}, {"model": None}],
)  # fmt: skip
def test_a_file_that_holds_other_things_than_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: holds no mapping of named tensors"):
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=tmp_path / "w.pth"), 32)


def test_a_file_that_holds_itself_is_refused_and_not_opened_for_ever(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: holds no mapping of named tensors"):
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=tmp_path / "w.pth"), 32)


def test_names_in_a_file_of_weights_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    save_file({"\x1b[2J\n": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"it has, and the backbone has not, \\x1b\[2J\\n") as caught:
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=tmp_path / "w.safetensors"), 32)
    assert str(caught.value).isprintable()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module, dict[str, bytes]]:
    """A folder, a small network, and its weights in three formats."""
    folder = tmp_path_factory.mktemp("weights")
    network = timm.create_model("test_resnet", num_classes=0)
    torch.save(network.state_dict(), folder / "new.pth")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), folder / "w.safetensors")
    return folder, network, {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mutated_weights_are_read_or_refused(saved: tuple[Path, torch.nn.Module, dict[str, bytes]], seed: int) -> None:
    folder, network, contents = saved
    rng = random.Random(seed)
    name = rng.choice(sorted(contents))
    content, fault = bytearray(contents[name]), ""
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(4000)  # names and shapes
        content[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    (folder / f"mutated-{name}").write_bytes(content)
    try:
        load_backbone(network, folder / f"mutated-{name}")
    except UserError as error:
        fault = str(error)
    assert "\n" not in fault


# --- numbers ------------------------------------------------------------------------------------


def arrays_with(name: str, evil: Evil) -> dict[str, Any]:
    """The arrays of predictions and of a support vector machine, one of which is an object."""
    arrays: dict[str, Any] = {
        "image_id": np.array(["a"]), "logits": np.zeros((1, 2), np.float32), "class_names": np.array(["x", "y"]),
        "single_view": np.zeros((1, 2), np.float32), "group": np.array(["a"]), "is_external": np.array([False]),
        "label": np.array([0]), "split": np.array([""]), "features": np.zeros((2, 3)), "labels": np.array([0, 1]),
        "groups": np.array(["a", "b"]), "settings": np.array('{"classes": 2}'),
    }  # fmt: skip
    return {**arrays, name: np.array([evil], dtype=object)}


@pytest.mark.parametrize(
    ("name", "load", "said"),
    [
        *((name, Predictions.load, "not a file of predictions") for name in ("image_id", "logits", "class_names")),
        *((name, SupportVectorMachine.load, "not a support vector machine") for name in ("features", "settings")),
    ],
)  # fmt: skip
def test_objects_in_arrays_are_refused_and_not_unpickled(
    tmp_path: Path, name: str, load: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays_with(name, Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match=rf"arrays\.npz: {said} .*train that fold again") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [Predictions.load, SupportVectorMachine.load])
def test_a_pickle_under_the_name_of_arrays_is_refused_and_not_unpickled(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "arrays.npz"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"arrays\.npz: not a "):
        load(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(tmp_path / "ran")], dtype=object))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"arrays\.npz: not a "):
        load(path)
    assert not (tmp_path / "ran").exists()
