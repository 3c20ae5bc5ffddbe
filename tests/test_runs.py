"""Files of predictions that are not sound are refused by name."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from leukofold.blending.aligning import align_runs
from leukofold.blending.loading import load_run
from leukofold.config import Config, FoldsConfig
from leukofold.errors import UserError
from leukofold.runs import Predictions, RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunMaker


@pytest.mark.parametrize(("array", "kind"), [("logits", "oof"), ("single_view", "test")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(wbc_runs: "RunMaker", array: str, kind: str, value: float) -> None:
    path = wbc_runs.make("run").folder.fold(0).path / f"{kind}.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[array][1, 0] = value
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"{array} of 1 images are not finite, {arrays['image_id'][1]} first; train"):
        Predictions.load(path)


def test_logits_of_another_number_of_classes_are_refused(wbc_runs: "RunMaker") -> None:
    path = wbc_runs.make("run").folder.fold(0).path / "oof.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["logits"] = arrays["logits"][:, :12]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"logits \(10, 12\) for 10 images and 13 classes; train that fold again"):
        Predictions.load(path)


def change(path: "Path", **changed: Any) -> None:
    """Puts other arrays into a file of predictions; None takes one out."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": None}, r"oof.npz: no labels in it"),
        ({"label": np.zeros(9, dtype=int)}, r"label \(9,\) int64 for 10 images"),
        ({"label": np.full(10, 99)}, r"labels beyond its 13 classes"),
        ({"label": np.full(10, -1)}, r"labels beyond its 13 classes"),
        ({"group": np.array(["a"] * 9)}, r"group \(9,\) <U1 for 10 images"),
        ({"is_external": np.zeros(10)}, r"is_external \(10,\) float64 for 10 images"),
        ({"logits": np.full((10, 13), "x")}, r"logits \(10, 13\) for 10 images"),
    ],
    ids=["no label", "a label short", "label too high", "label too low", "a group short", "no booleans", "no numbers"],
)
def test_damaged_predictions_are_refused_by_name(
    wbc_runs: "RunMaker", changed: dict[str, np.ndarray], message: str
) -> None:
    run = wbc_runs.make("run").folder
    change(run.fold(0).path / "oof.npz", **changed)
    with pytest.raises(UserError, match=message + ".*train that fold again"):
        load_run(run)


@pytest.mark.parametrize(("text", "message"), [("[]", "not a JSON object"), ("{", "not readable"), ("{}", "no such")])
def test_damaged_metadata_are_refused_by_name(wbc_runs: "RunMaker", text: str, message: str) -> None:
    run = wbc_runs.make("run").folder
    (run.fold(1).path / "metadata.json").write_text(text)
    with pytest.raises(UserError, match=rf"fold1/metadata.json: {message}"):
        load_run(run)


@pytest.mark.parametrize("key", ["metric", "data_fingerprint", "config", "rendered"])
def test_metadata_without_what_is_needed_are_refused_by_name(wbc_runs: "RunMaker", key: str) -> None:
    run = wbc_runs.make("run").folder
    path = run.fold(1).path / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata[key]
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=rf"fold1/metadata.json: no {key} in it; train that fold again"):
        load_run(run)


@pytest.mark.parametrize("name", ["label", "group", "is_external"])
def test_runs_that_say_otherwise_of_an_image_are_refused_by_name(wbc_runs: "RunMaker", name: str) -> None:
    first, other = wbc_runs.make("first").folder, wbc_runs.make("other", seed=1).folder
    path = other.fold(1).path / "oof.npz"
    with np.load(path) as file:
        values = file[name].copy()
        image_id = str(file["image_id"][3])
    values[3] = {"label": (values[3] + 1) % 13 if name == "label" else 0, "group": "x", "is_external": True}[name]
    change(path, **{name: values})
    with pytest.raises(
        UserError, match=rf"other and first: {name} of {image_id} differs; train them on the same input"
    ):
        align_runs([load_run(first), load_run(other)])


def test_a_run_from_before_a_key_was_known_is_gone_on_with(tmp_path: "Path") -> None:
    config = Config()
    old = config.resolved()
    del old["folds"]["holdout"], old["optimizer"]["groups"]
    run = RunFolder("old", tmp_path)
    same = {"data_fingerprint": "f", "class_names": ["a", "b"], "precision": "no"}
    split = pd.DataFrame({"image_id": ["1.jpg"], "group": ["g"], "fold": [0]})
    run.begin_fold(0, {**same, "config": old, "config_digest": "0" * 16}, split)
    run.need_same({**same, "config": config.resolved(), "config_digest": config.digest()})
    assert run.split_settings() == config.folds
    other = Config(folds=FoldsConfig(holdout=0.2))
    with pytest.raises(UserError, match=r"the run was trained with another folds.holdout \(None, now 0.2\)"):
        run.need_same({**same, "config": other.resolved(), "config_digest": other.digest()})
