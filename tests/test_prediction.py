"""Predicting any images from run folders: the same logits as the run's own, from a folder or a CSV, and refusals."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.images import reading
from leukofold.prediction import list_images, load_members, predict_images, write_predictions
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

if TYPE_CHECKING:
    from tests.conftest import Commands


@dataclass(frozen=True)
class Trained:
    """Two runs of different image sizes and views, trained on the same rendered images."""

    work: Path
    images: Path


@pytest.fixture(scope="module")
def trained(rendered_wbcbench: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trains run ``small`` (two folds) and run ``large`` (one fold, denoised, turned by any angle)."""
    work, threads = tmp_path_factory.mktemp("work"), torch.get_num_threads()
    base: dict[str, Any] = {
        "data": {"root": rendered_wbcbench, "cache": work / "cache", "workers": 0},
        "folds": {"count": 2},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0.5},
    }
    small = {**base, "image": {"size": 32}}
    large = {**base, "image": {"size": 40, "crop": 200, "denoise": {}}, "inference": {"tta": "rotations", "angles": 3}}
    train_folds(Config.model_validate(small), RunFolder("small", work / "oof"), [0, 1], False, False)
    train_folds(Config.model_validate(large), RunFolder("large", work / "oof"), [1], False, False)
    yield Trained(work, rendered_wbcbench / "phase2" / "test")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def test_the_test_images_get_the_logits_that_the_runs_gave_them(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def counting(path: str) -> np.ndarray:
        decoded.append(path)
        return reading.read_image(path)

    accelerator = Accelerator(cpu=True)
    members = load_members(["small", "large"], accelerator.device, trained.work / "oof")
    assert [len(member.networks) for member in members] == [2, 1]
    assert [len(member.views) for member in members] == [8, 6]
    files = list_images(trained.images)
    paths = files.path.tolist()
    monkeypatch.setattr("leukofold.prediction.read_image", counting)
    logits = predict_images(members, files, accelerator, 5, 0)
    assert sorted(decoded) == sorted(paths)  # one decode for three networks and all views
    small = [RunFolder("small", trained.work / "oof").fold(k).predictions("test") for k in (0, 1)]
    large = RunFolder("large", trained.work / "oof").fold(1).predictions("test")
    order = {image_id: row for row, image_id in enumerate(large.image_id)}
    rows = [order[Path(path).name] for path in paths]
    expected = ((small[0].logits + small[1].logits) / 2 + large.logits) / 2
    assert logits == pytest.approx(expected[rows], abs=1e-4)


def test_the_command_line_writes_a_row_per_listed_image(trained: Trained, commands: "Commands") -> None:
    shutil.copytree(trained.work / "oof", commands.cwd / "oof")
    names = sorted(path.name for path in trained.images.iterdir())[:3]
    (commands.cwd / "cells").mkdir()
    for name in names:
        shutil.copy(trained.images / name, commands.cwd / "cells" / name)
    listed = [f"cells/{names[2]}", f"cells/{names[0]}"]
    (commands.cwd / "list.csv").write_text("path,note\n" + "".join(f"{path},x\n" for path in listed))
    said = commands.succeed("predict.py", "--run", "small", "--images", "list.csv", "--out", "out/p.csv")
    assert "2 images, 2 networks of 1 run(s): out/p.csv" in said
    assert "trained on RENDERED images, its predictions say nothing about patients: small" in said
    for options, message in (
        (["--out", "cells"], "error: --out cells: is a folder; name a CSV file"),
        (["--batch-size", "0"], "error: --batch-size 0: give at least 1"),
    ):
        assert commands.refused("predict.py", "--run", "small", "--images", "list.csv", *options) == message
    table = pd.read_csv(commands.cwd / "out" / "p.csv")
    classes = get_competition("wbcbench").class_names
    assert table.columns.tolist() == ["path", "prediction", *(f"p_{name}" for name in classes)]
    assert table.path.tolist() == listed
    assert table.iloc[:, 2:].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert table.prediction.tolist() == [classes[k] for k in table.iloc[:, 2:].to_numpy().argmax(axis=1)]


def test_probabilities_are_the_softmax_of_the_logits(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", ["a.jpg"], np.array([[0.0, np.log(3)]], np.float32), ["hem", "all"])
    assert (tmp_path / "p.csv").read_text() == "path,prediction,p_hem,p_all\na.jpg,all,0.250000,0.750000\n"


def test_sub_folders_are_searched_and_other_files_passed_over(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    source = next(iter(sorted(trained.images.iterdir())))
    shutil.copy(source, tmp_path / "a" / "b" / "X.JPG")
    shutil.copy(source, tmp_path / "z.jpg")
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert list_images(tmp_path).path.tolist() == [f"{tmp_path.as_posix()}/a/b/X.JPG", f"{tmp_path.as_posix()}/z.jpg"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("nothing", r"--images .*: neither a folder nor a CSV file that is there"),
        ("empty folder", r"--images .*: no image files \(.jpg "),
        ("no column", r"list.csv: no column 'path', only file"),
        ("absent", r"list.csv: 1 of 2 images are not there: .*gone.jpg"),
        ("twice", r"list.csv: 1 images are listed more than once: .*here.jpg"),
        ("corrupt", r"--images .*: 1 of 1 are unreadable: .*here.jpg: not an image"),
    ],
)
def test_what_cannot_be_predicted_is_named(tmp_path: Path, made: str, said: str) -> None:
    source = tmp_path / "list.csv"
    (tmp_path / "here.jpg").write_bytes(b"404")
    contents = {
        "no column": "file\nhere.jpg\n",
        "absent": "path\nhere.jpg\ngone.jpg\n",
        "twice": "path\nhere.jpg\n./here.jpg\n",
        "corrupt": "path\nhere.jpg\n",
    }
    if made in contents:
        source.write_text(contents[made])
    elif made == "empty folder":
        source.mkdir()
    with pytest.raises(UserError, match=said):
        list_images(source)


def test_runs_that_are_not_there_damaged_or_of_other_classes_are_refused(trained: Trained, tmp_path: Path) -> None:
    device, runs = torch.device("cpu"), tmp_path / "oof"
    shutil.copytree(trained.work / "oof", runs)
    with pytest.raises(UserError, match=r"nowhere: no run with a complete fold"):
        load_members(["nowhere"], device, runs)
    metadata = runs / "large" / "fold1" / "metadata.json"
    text = metadata.read_text()
    metadata.write_text(text.replace('"competition": "wbcbench"', '"competition": "cnmc"', 1))
    with pytest.raises(UserError, match=r"--run large: different competition from small; such runs cannot be averaged"):
        load_members(["small", "large"], device, runs)
    metadata.write_text(text.replace('"training": {', '"training": {"unheard_of": 1,', 1))
    with pytest.raises(UserError, match=r"large: of another version of this project"):
        load_members(["large"], device, runs)
    metadata.unlink()
    with pytest.raises(UserError, match=r"metadata.json: no such file; train that fold again"):
        load_members(["large"], device, runs)
    metadata.write_text(text)
    weights = runs / "large" / "fold1" / "best.safetensors"
    os.truncate(weights, 1000)
    with pytest.raises(UserError, match=r"best.safetensors: not the weights of its run"):
        load_members(["large"], device, runs)


def test_compiled_networks_give_the_same_and_are_compiled_once_for_all_views_and_batches(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dynamo's own backend, which needs no C++ compiler; what is compiled twice is compiled for minutes."""
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(1)
        return module.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    accelerator, root = Accelerator(cpu=True), trained.work / "oof"
    files = list_images(trained.images)
    plain = predict_images(load_members(["small"], torch.device("cpu"), root), files, accelerator, 5, 0)
    assert not compiled
    assert len(files) % 5 != 0  # the last batch is a smaller one
    members = load_members(["small"], torch.device("cpu"), root)
    torch._dynamo.reset()
    fast = predict_images(members, files, accelerator, 5, 0, compiled=True)
    assert len(compiled) == len(members[0].networks) == 2
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-5)
