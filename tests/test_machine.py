"""A support vector machine through the same folds and files as a network, blended, reported and asked again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import LoadedRun, joint_name, load_run
from leukofold.competitions import get_competition
from leukofold.config import CONFIG_FOLDER, Config, FoldsConfig, ImageConfig, load_config
from leukofold.embeddings import run_embeddings
from leukofold.experiment import open_experiment
from leukofold.folds import assign_folds
from leukofold.handcrafted.measures import NAMES, measure
from leukofold.handcrafted.svm import SupportVectorMachine
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.rendering import RenderSpec, render
from leukofold.reopening import reopen
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

if TYPE_CHECKING:
    from tests.conftest import Commands


def config_of(root: Path, cache: Path, *changes: str) -> Config:
    """Paper 004's baseline at a reduced size, on rendered images."""
    return load_config(
        [CONFIG_FOLDER / "cnmc/paper004/svm.yaml"],
        [f"data.root={root}", f"data.cache={cache}", "folds.count=2", "folds.holdout=0.2", "image.size=100", *changes],
    )


@pytest.fixture(scope="module")
def trained(rendered_cnmc: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, LoadedRun]:
    """A run of two folds."""
    folder = tmp_path_factory.mktemp("machine")
    config = config_of(rendered_cnmc, folder / "cache", "data.workers=0")
    run = RunFolder("cnmc/svm", folder / "oof")
    train_folds(config, run, [0, 1], resume=False, debug=False)
    return config, load_run(run)


def test_a_machine_leaves_the_files_of_a_run(trained: tuple[Config, LoadedRun]) -> None:
    config, run = trained
    experiment = open_experiment(config, run.folder, progress=False)
    for k in (0, 1):
        fold = run.folder.fold(k)
        assert fold.machine.exists()
        assert not fold.weights.exists()
        part = fold.predictions("oof")
        assert np.array_equal(part.logits, part.single_view)
        train, held_out = experiment.fold_rows(k)
        pixels = experiment.images.caches[0].pixels
        features, wanted = (
            np.stack([measure(pixels[row]) for row in experiment.images.rows(ids.image_id.tolist())])
            for ids in (train, held_out)
        )
        again = SupportVectorMachine.fit(
            features, train.label.to_numpy(), train.group.to_numpy(dtype=str), 2, 10, "scale", 0
        )
        assert part.image_id.tolist() == held_out.image_id.tolist()
        assert np.array_equal(part.logits, again.logits(wanted))
        (history,) = pd.read_csv(fold.history).to_dict("records")
        assert history["validation_loss"] == pytest.approx(log_loss(held_out.label, np.exp(again.logits(wanted))), 1e-4)
        assert history["weighted_f1"] == fold.metrics()["competition_rows"]["weighted_f1"]
        counts = train.label.value_counts()
        assert fold.metadata()["training_images"] == {"hem": counts[0], "all": counts[1]}
    assert len(run.holdouts) == 2
    assert sorted(run.oof.image_id) == sorted(experiment.labelled.image_id[experiment.folds >= 0])


def test_two_workers_give_the_same_bits_and_features_are_measured_once(
    trained: tuple[Config, LoadedRun], rendered_cnmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = trained
    config = config_of(rendered_cnmc, tmp_path / "cache", "data.workers=2")
    train_folds(config, RunFolder("again", tmp_path / "oof"), [0], resume=False, debug=False)
    one, other = (
        (folder.fold(0).path / "oof.npz").read_bytes() for folder in (run.folder, RunFolder("again", tmp_path / "oof"))
    )
    assert one == other
    monkeypatch.setattr("leukofold.handcrafted.table.measure", lambda _: 1 / 0)
    train_folds(config, RunFolder("again", tmp_path / "oof"), [1], resume=False, debug=False)


def test_embeddings_are_the_standardised_features(trained: tuple[Config, LoadedRun]) -> None:
    _, run = trained
    vectors = run_embeddings(reopen(run))
    assert vectors.shape == (len(run.oof.image_id), len(NAMES))
    machine = SupportVectorMachine.load(run.folder.fold(1).machine)
    assert np.abs(machine.standardised(machine.features).mean(axis=0)).max() < 1e-4
    rows = run.folds == 1
    logits = machine.logits(vectors[rows] * machine.scaler.scale_ + machine.scaler.mean_)
    assert logits == pytest.approx(run.oof.logits[rows], abs=1e-3)


def test_machine_and_network_are_blended_reported_and_predict_new_images(
    rendered_cnmc: Path, commands: "Commands"
) -> None:
    shared = ["--set", f"data.root={rendered_cnmc}", "--set", "folds.count=2", "--set", "folds.holdout=0.2"]
    network = ["--set", "image.size=32", "--set", "training.epochs=1", "--set", "data.workers=0"]
    configs = CONFIG_FOLDER / "cnmc/paper004"
    printed = commands.succeed(
        "train_fold.py", "--config", configs / "svm.yaml", *shared, "--set", "image.size=64", "--run", "svm"
    )
    assert f"a support vector machine on {len(NAMES)} handcrafted features" in printed
    commands.succeed("train_fold.py", "--config", configs / "small_cnn.yaml", *shared, *network, "--run", "cnn")
    blended = commands.succeed("blend.py", "--run", "svm", "--run", "cnn", "--name", "both")
    blend = blend_runs([load_run(RunFolder(name, commands.cwd / "oof")) for name in ("svm", "cnn")])
    assert blend.holdout is not None
    mean = np.mean([run.holdout.logits for run in blend.runs if run.holdout is not None], axis=0)
    assert blend.holdout.logits == pytest.approx(mean, abs=1e-5)
    scores = blend.holdout_scores()
    assert scores is not None
    assert f"blend {scores['weighted_f1']:.4f}" in blended
    origin = json.loads((commands.cwd / "submissions/cnmc/both.json").read_text())
    assert origin["holdout"]["weighted_f1"] == scores["weighted_f1"]
    printed = commands.succeed("report.py", "--run", "svm", "--run", "cnn")
    assert "Grad-CAM cannot look into a support vector machine" in printed
    page = (commands.cwd / "oof" / joint_name(blend.runs) / "report/report.html").read_text()
    assert "support vector machine" in page
    images = next(rendered_cnmc.rglob("fold_1/all"))
    commands.succeed("predict.py", "--run", "svm", "--images", images, "--out", "p.csv")
    predicted = pd.read_csv(commands.cwd / "p.csv")
    run = load_run(RunFolder("svm", commands.cwd / "oof"))
    assert len(predicted) == len(list(images.glob("*.bmp")))
    assert predicted.p_all.between(0, 1).all()
    assert run.metadata["config"]["svm"] == {"c": 10.0, "gamma": "scale"}


def test_rendered_subjects_differ_so_that_folds_by_subject_are_harder_than_folds_by_image(tmp_path: Path) -> None:
    render("cnmc", tmp_path / "cnmc", RenderSpec(images=300, test_images=4, patients=24), progress=False)
    labelled = get_competition("cnmc").read(tmp_path / "cnmc").labelled
    preparation = Preparation(ImageConfig(crop=300, size=100), lambda image: image)
    features = np.stack([measure(preparation(read_image(path))) for path in labelled.path])
    labels, groups = labelled.label.to_numpy(), labelled.group.to_numpy(dtype=str)
    scores = {}
    for by, units in (("group", groups), ("image", labelled.image_id.to_numpy())):
        folds = assign_folds(labelled, units, FoldsConfig.model_validate({"count": 3, "by": by}))
        logits = np.empty((len(labels), 2))
        for fold in range(3):
            kept = folds != fold
            machine = SupportVectorMachine.fit(features[kept], labels[kept], groups[kept], 2, 10, "scale", 0)
            logits[~kept] = machine.logits(features[~kept])
        scores[by] = roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert scores["image"] > 0.8
    assert scores["group"] < scores["image"] - 0.08
