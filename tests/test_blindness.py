"""What is predicted of a test image depends on its pixels: not on its label, its name, or its place in the list."""

import csv
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from leukofold.blending.combining import Blend, blend_runs
from leukofold.blending.loading import load_run
from leukofold.blending.methods import method_names
from leukofold.cells import UNLABELLED
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.deciding import by_highest_logit, by_training_prior
from leukofold.experiment import Experiment, open_experiment
from leukofold.prediction import list_images, load_members, predict_images
from leukofold.runs import Predictions, RunFolder
from leukofold.submission import write_submission
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_accelerator
from leukofold.training.trainer import Trainer

if TYPE_CHECKING:
    from tests.conftest import MadeRun, RunMaker

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "network": {},
    "cached views": {"model": {"frozen": ["backbone"]}, "training": {"cached_views": 1}},
    "batch statistics": {"inference": {"batch_statistics": "domain"}},
    "machine": {"svm": {}, "inference": {"tta": "none"}},
}


@dataclass(frozen=True)
class Inputs:
    """The same images twice: as they were drawn, and with another test list.

    Attributes:
        given: As they were drawn.
        changed: The test images under other names, in another order, and each with a random label in the list.
        names: Name of a test image in the first -> its name in the second.
    """

    given: Path
    changed: Path
    names: Mapping[str, str]


@pytest.fixture(scope="module")
def inputs(rendered_wbcbench: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Shuffles, renames and labels the test images of a copy."""
    changed, rng = tmp_path_factory.mktemp("changed") / "wbcbench", np.random.default_rng(0)
    shutil.copytree(rendered_wbcbench, changed)
    with (changed / "phase2_test.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    names = dict(zip(ids, (f"{90000000 + k:08d}.jpg" for k in rng.permutation(len(ids))), strict=True))
    folder = changed / "phase2" / "test"
    for old, new in names.items():
        (folder / old).rename(folder / new)
    classes = get_competition("wbcbench").class_names
    rows = [f"{names[ids[k]]},{classes[rng.integers(13)]}" for k in rng.permutation(len(ids))]
    (changed / "phase2_test.csv").write_text("\n".join(["ID,labels", *rows, ""]), encoding="utf-8")
    return Inputs(rendered_wbcbench, changed, names)


@dataclass(frozen=True)
class Pair:
    """A run on either input.

    Attributes:
        work: The folder of both.
        config: Of the one on the images as they were drawn.
        runs: The one on these, and the one on the other test list.
        names: See ``Inputs``.
    """

    work: Path
    config: Config
    runs: tuple[RunFolder, RunFolder]
    names: Mapping[str, str]


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Trains one fold on each input, by every kind of training."""
    work, threads = tmp_path_factory.mktemp("work"), torch.get_num_threads()
    base: dict[str, Any] = {
        "data": {"cache": work / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0.5, "keep": "last"},
    }
    configs = []
    for root in (inputs.given, inputs.changed):
        sections = {**base, "data": {**base["data"], "root": root}}
        for name, values in KINDS[request.param].items():
            sections[name] = {**sections.get(name, {}), **values}
        configs.append(Config.model_validate(sections))
    runs = RunFolder("given", work / "oof"), RunFolder("changed", work / "oof")
    for config, run in zip(configs, runs, strict=True):
        train_folds(config, run, [0], resume=False, debug=False)
    yield Pair(work, configs[0], runs, inputs.names)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def test_a_trainer_gives_each_test_image_the_same_logits(pair: Pair) -> None:
    given, changed = (run.fold(0).predictions("test") for run in pair.runs)
    assert given.label is None
    assert changed.label is None
    assert changed.image_id.tolist() != [pair.names[name] for name in given.image_id]
    place = {name: row for row, name in enumerate(changed.image_id)}
    rows = [place[pair.names[name]] for name in given.image_id]
    np.testing.assert_allclose(changed.logits[rows], given.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(changed.single_view[rows], given.single_view, rtol=0, atol=1e-5)
    held = [run.fold(0).predictions("oof") for run in pair.runs]
    assert np.array_equal(held[0].logits, held[1].logits)  # the training does not look at the test images at all


def test_predict_gives_each_image_the_same_logits_whatever_its_name_and_place(pair: Pair, tmp_path: Path) -> None:
    accelerator, rng = Accelerator(cpu=True), np.random.default_rng(1)
    source = Path(pair.config.data.root) / "phase2" / "test"
    files = list_images(source)
    order = rng.permutation(len(files))
    for number, row in enumerate(order):
        shutil.copy(files.path[row], tmp_path / f"{number:02d}_BL.jpg")  # a name that tells a class, and the wrong one
    logits = []
    for listed in (files, list_images(tmp_path)):
        members = load_members(["given"], accelerator.device, pair.work / "oof")
        logits.append(predict_images(members, listed, accelerator, 64, 0))
    np.testing.assert_allclose(logits[1], logits[0][order], rtol=0, atol=1e-5)


def test_the_same_batches_give_the_same_bits_under_any_label_name_and_group(inputs: Inputs, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "data": {"root": inputs.given, "cache": tmp_path / "cache", "workers": 0},
            "folds": {"count": 2},
            "image": {"size": 32},
            "model": {"backbone": "test_resnet", "pretrained": False},
        }
    )
    experiment = open_experiment(config, RunFolder("run", tmp_path / "oof"), progress=False)
    trainer = Trainer(experiment, 0, make_accelerator(config.training, experiment.run))
    test, rng = experiment.test, np.random.default_rng(0)
    poisoned = test.assign(label=rng.integers(0, 13, len(test)), group=rng.permutation(len(test)).astype(str))
    poisoned = poisoned.assign(source="elsewhere", is_external=True, split="train", bytes=0, path="nowhere.jpg")
    assert np.array_equal(trainer.predict(poisoned, "test"), trainer.predict(test, "test"))


def test_labels_in_the_competitions_test_list_are_not_read(inputs: Inputs) -> None:
    given, changed = (get_competition("wbcbench").read(root).test for root in (inputs.given, inputs.changed))
    assert (changed.label == UNLABELLED).all()
    assert (changed.group == "").all()
    assert sorted(changed.image_id) == sorted(inputs.names[name] for name in given.image_id)


def test_nothing_of_a_test_image_but_its_pixels_reaches_an_experiments_folds(inputs: Inputs, tmp_path: Path) -> None:
    experiments: list[Experiment] = []
    for root in (inputs.given, inputs.changed):
        config = Config.model_validate({"data": {"root": root, "cache": tmp_path / "cache"}, "image": {"size": 32}})
        experiments.append(open_experiment(config, RunFolder("run", tmp_path / "oof"), progress=False))
    assert np.array_equal(experiments[0].folds, experiments[1].folds)
    for one, other in zip(*(experiment.fold_rows(0) for experiment in experiments), strict=True):
        pd.testing.assert_frame_equal(one.drop(columns="path"), other.drop(columns="path"))


def poison(made: "MadeRun", name: str, seed: int) -> RunFolder:
    """Copies a run, its test images in another order, each with a label, a group and a split."""
    run, rng = RunFolder(name, made.folder.root), np.random.default_rng(seed)
    shutil.copytree(made.folder.path, run.path)
    for k in run.complete_folds():
        test = run.fold(k).predictions("test")
        n = len(test.image_id)
        order = np.random.default_rng(seed).permutation(n)
        false = replace(
            test.rows(order),
            label=rng.integers(0, len(test.class_names), n),
            group=rng.permutation(n).astype(str),
            split=rng.permutation(["train", "test", "a"] * n)[:n],
            is_external=rng.random(n) < 0.5,
        )
        false.save(run.fold(k).path / "test.npz")
        assert Predictions.load(run.fold(k).path / "test.npz").label is not None
    return run


def both(maker: "RunMaker", method: str) -> tuple[Blend, Blend]:
    """Blends two runs, and the same two with poisoned test images."""
    counts = {name: 10 + 7 * k for k, name in enumerate(get_competition(maker.competition).class_names)}
    made = [maker.make(name, seed, training_images=counts) for seed, name in enumerate(("one", "two"))]
    poisoned = [poison(run, f"{run.folder.name}-poisoned", 10 + k) for k, run in enumerate(made)]
    given = blend_runs([load_run(run.folder) for run in made], method, insist=True)
    return given, blend_runs([load_run(run) for run in poisoned], method, insist=True)


@pytest.mark.parametrize("method", method_names())
def test_every_blend_decides_by_logits_alone(cnmc_runs: "RunMaker", method: str) -> None:
    given, changed = both(cnmc_runs, method)
    assert changed.test.image_id.tolist() != given.test.image_id.tolist()
    place = {name: row for row, name in enumerate(changed.test.image_id)}
    rows = [place[name] for name in given.test.image_id]
    assert np.array_equal(changed.test.logits[rows], given.test.logits)
    assert np.array_equal(changed.oof.logits, given.oof.logits)
    for decide in (by_highest_logit, by_training_prior):
        assert np.array_equal(decide(changed).labels[rows], decide(given).labels)
        assert decide(changed).threshold == decide(given).threshold


def test_a_submission_has_the_same_classes_whatever_the_order_and_labels_of_the_runs_files(
    wbc_runs: "RunMaker", tmp_path: Path
) -> None:
    given, changed = both(wbc_runs, "mean_logits")
    back = np.argsort(changed.test.image_id)[np.argsort(np.argsort(given.test.image_id))]  # the list's own order again
    listed = replace(changed, test=changed.test.rows(back))
    one, other = (write_submission(blend, "s", tmp_path / str(k)) for k, blend in enumerate((given, listed)))
    assert one.read_bytes() == other.read_bytes()
