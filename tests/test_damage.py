"""Files that a disk or a copy has changed or cut short: refused by name, made again, or harmless."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from leukofold.errors import UserError
from leukofold.models.weights import load_weights, save_weights
from leukofold.rowmaps import RowMap, fault_of, write_rows
from leukofold.runs import Predictions
from leukofold.training.checkpoint import load_state, save_state

often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
damages = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))  # where, and what with; 0: cut there


def damaged(content: bytes, damage: tuple[float, int]) -> bytes:
    """Changes some bits of one byte, or cuts the rest off."""
    place, mask = int(damage[0] * len(content)), damage[1]
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :] if mask else content[:place]


class Network(nn.Module):
    """A convolution with batch statistics, a count among them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution, self.normalisation = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def refused(read: Callable[[], Any]) -> tuple[str | None, Any]:
    """Reads something: what it was refused with, and what was read."""
    try:
        return None, read()
    except UserError as error:
        return str(error), None


def refused_or_same(
    path: Path, damage: tuple[float, int], read: Callable[[], Any], same: Callable[[Any], bool]
) -> None:
    """Damages a file; reading it names the file, or gives what was written."""
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(whole, damage))
        refusal, found = refused(read)
        assert same(found) if refusal is None else path.name in refusal and "\n" not in refusal
    finally:
        path.write_bytes(whole)


@given(damages)
@often
def test_kept_weights(tmp_path: Path, damage: tuple[float, int]) -> None:
    path, network = tmp_path / "best.safetensors", Network(1)
    save_weights(network, path)
    other = Network(2)

    def same(_: None) -> bool:
        return all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())

    refused_or_same(path, damage, lambda: load_weights(other, path), same)


def test_weights_in_which_every_byte_is_changed_in_turn(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(nn.Linear(2, 1), path)
    whole, refusals = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(damaged(whole, ((place + 0.5) / len(whole), 0x01)))
        refusals += refused(lambda: load_weights(nn.Linear(2, 1), path))[0] is not None
    unchecked = len('__metadata__"sha256') + 8  # the digest's own name, and blanks before the numbers
    assert len(whole) - unchecked <= refusals <= len(whole)


def test_weights_of_an_older_version_are_read_without_a_digest(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network, other = Network(1), Network(2)
    save_file(network.state_dict(), tmp_path / "old.safetensors")
    load_weights(other, tmp_path / "old.safetensors")
    assert torch.equal(other.convolution.weight, network.convolution.weight)


@given(damages)
@often
def test_the_state_of_a_training(tmp_path: Path, damage: tuple[float, int]) -> None:
    path, values = tmp_path / "state.pt", torch.arange(600.0)
    save_state({"model": {"a": values, "b": values[:7] + 1}, "epoch": 3, "history": [{"loss": 0.5}]}, path)

    def same(state: Any) -> bool:
        plain = (state["epoch"], state["history"]) == (3, [{"loss": 0.5}])
        return plain and torch.equal(state["model"]["a"], values) and torch.equal(state["model"]["b"], values[:7] + 1)

    refused_or_same(path, damage, lambda: load_state(path), same)


class Trap:
    """An object that pickles as a call."""

    def __reduce__(self) -> Any:
        """Says which."""
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("foreign", [{"model": Trap()}, [1, 2], torch.ones(3)], ids=["code", "list", "tensor"])
def test_a_state_with_other_things_in_it_is_refused_and_not_run(tmp_path: Path, foreign: Any) -> None:
    torch.save(foreign, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: damaged \(it holds (more than numbers|no state of a training)\)"):
        load_state(tmp_path / "state.pt")


@given(damages)
@often
def test_predictions(tmp_path: Path, damage: tuple[float, int]) -> None:
    path, n = tmp_path / "oof.npz", 40
    logits = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    ids = np.array([f"{k}.jpg" for k in range(n)])
    made = Predictions(ids, logits, logits, ("a", "b", "c"), ids, np.zeros(n, bool), np.arange(n) % 3)
    made.save(path)

    def same(found: Predictions) -> bool:
        arrays = ("image_id", "logits", "single_view", "group", "is_external", "split")
        equal = all(np.array_equal(getattr(found, name), getattr(made, name)) for name in arrays)
        labels = found.label is None or np.array_equal(found.label, np.arange(n) % 3)  # who reads it asks for labels
        return equal and labels and found.class_names == made.class_names

    refused_or_same(path, damage, lambda: Predictions.load(path), same)


ROWS = np.random.default_rng(1).normal(size=(9, 2, 5)).astype(np.float32)
IDS = pd.Series([f"image {k}" for k in range(9)])


@given(damages, st.sampled_from(["features.npy", "checksums.npy", "index.csv", "features.json"]))
@often
def test_rows_on_disk(tmp_path: Path, damage: tuple[float, int], name: str) -> None:
    folder = tmp_path / "rows"
    if not folder.exists():
        write_rows(folder, "features", IDS, iter([ROWS[:4], ROWS[4:]]), {"made": "of"})
    file = folder / name
    whole = file.read_bytes()
    try:
        file.write_bytes(damaged(whole, damage))
        if fault_of(folder, "features") is not None:
            return  # it is made again
        opened = RowMap(folder, "features")
        for row in range(9):
            refusal, values = refused(partial(opened.read, row))
            if refusal is None:
                assert np.array_equal(values, ROWS[row])
            else:
                assert f"damaged in the row of image {row}; delete" in refusal
        assert opened.rows(["image 3", "image 0"]).tolist() == [3, 0]
    finally:
        file.write_bytes(whole)


def test_rows_are_read_singly_and_many_at_a_time(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", "features", IDS, iter([ROWS]), {})
    opened = RowMap(tmp_path / "rows", "features")
    assert np.array_equal(opened.read(np.array([7, 2, 2])), ROWS[[7, 2, 2]])
    assert opened.read(np.array([], dtype=np.int64)).shape == (0, 2, 5)
    one = opened.read(5)
    one[:] = 0  # a copy
    assert np.array_equal(opened.read(5), ROWS[5])


@pytest.mark.parametrize("lost", ["features.npy", "checksums.npy", "index.csv", "features.json"])
def test_a_folder_that_lacks_a_file_is_not_whole(tmp_path: Path, lost: str) -> None:
    write_rows(tmp_path / "rows", "features", IDS, iter([ROWS]), {})
    assert fault_of(tmp_path / "rows", "features") is None
    (tmp_path / "rows" / lost).unlink()
    assert fault_of(tmp_path / "rows", "features") == f"{lost} is missing"
    assert fault_of(tmp_path / "none", "features") == "is not there"
