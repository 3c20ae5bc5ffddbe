"""Frozen parts do not move, batch statistics included; their features, computed once, train the same head."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from leukofold.augment import Augmentation
from leukofold.blending.loading import load_run
from leukofold.config import CONFIG_FOLDER, Config, ImageConfig, ModelConfig, load_config
from leukofold.errors import UserError
from leukofold.experiment import open_experiment
from leukofold.models.classifier import Classifier
from leukofold.models.trained import load_network
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_accelerator
from leukofold.training.trainer import Trainer


def paper_004(root: Path, tmp_path: Path, config: str = "resnet50_frozen", *changes: str) -> Config:
    """Paper 004's network at a reduced size, on rendered images."""
    return load_config(
        [CONFIG_FOLDER / "cnmc/paper004" / f"{config}.yaml"],
        [
            f"data.root={root}",
            f"data.cache={tmp_path / 'cache'}",
            "data.workers=0",
            "folds.count=2",
            "folds.holdout=0.2",
            "image.size=32",
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "training.epochs=3",
            *changes,
        ],
    )


def test_a_training_changes_no_tensor_of_a_frozen_backbone(rendered_cnmc: Path, tmp_path: Path) -> None:
    config = paper_004(rendered_cnmc, tmp_path, "resnet50_frozen", "training.ema_decay=0.5")
    run = RunFolder("frozen", tmp_path / "oof")
    accelerator = make_accelerator(config.training, run)
    trainer = Trainer(open_experiment(config, run, progress=False), 0, accelerator)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    assert any("running_mean" in name for name in before)
    trainer.fit()
    assert trainer.ema is not None
    for state in (trainer.network.state_dict(), trainer.ema.module.state_dict(), load_file(run.fold(0).weights)):
        assert sorted(state) == sorted(before)
        moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
        assert moved == {"head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"}


def test_without_freezing_weights_and_statistics_move(rendered_cnmc: Path, tmp_path: Path) -> None:
    config = paper_004(rendered_cnmc, tmp_path, "resnet50_frozen", "model.frozen=[backbone.layer1]")
    run = RunFolder("thawed", tmp_path / "oof")
    trainer = Trainer(open_experiment(config, run, progress=False), 0, make_accelerator(config.training, run))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.fit()
    moved = {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"backbone.layer2.0.downsample.1.weight", "backbone.layer2.0.bn1.running_mean", "head.0.weight"} <= moved
    assert not any(name.startswith("backbone.layer1.") for name in moved)


def test_frozen_parts_stay_in_evaluation_mode_and_have_no_gradient() -> None:
    model = ModelConfig(backbone="test_resnet", pretrained=False, frozen=("backbone.layer1*", "backbone.bn1"))
    network = Classifier(model, ImageConfig(size=32), classes=3).train()
    for name, module in network.backbone.named_modules():
        frozen = name.startswith("layer1") or name == "bn1"
        assert module.training is not frozen, name
    for name, parameter in network.named_parameters():
        frozen = name.startswith(("backbone.layer1.", "backbone.bn1."))
        assert parameter.requires_grad is not frozen, name
    assert not network.eval().head.training


def test_patterns_that_freeze_nothing_or_all_are_refused() -> None:
    for frozen, message in (
        (("backbon",), "model.frozen: backbon names no module of the network; its parts are backbone, head"),
        (("backbone", "head"), "model.frozen: nothing is left to train"),
    ):
        model = ModelConfig(backbone="test_resnet", pretrained=False, frozen=frozen)
        with pytest.raises(UserError, match=message):
            Classifier(model, ImageConfig(size=32), classes=2)


def test_cached_features_are_those_of_the_augmented_images_and_of_every_view(
    rendered_cnmc: Path, tmp_path: Path
) -> None:
    config = paper_004(rendered_cnmc, tmp_path, "resnet50_cached", "training.cached_views=2", "inference.tta=dihedral")
    run = RunFolder("cached", tmp_path / "oof")
    experiment = open_experiment(config, run, progress=False)
    trainer = Trainer(experiment, 0, make_accelerator(config.training, run))
    features = trainer.scoring_features
    assert features is not None
    assert features.array.shape == (len(experiment.labelled) + len(experiment.test), 8, 96)
    network = trainer.network.eval()
    image_id = str(experiment.test.image_id.iloc[3])
    pixels = experiment.images.channels(experiment.images.rows([image_id]))[0]
    plain = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        expected = network.embed(torch.rot90(plain, 1, dims=(2, 3)))[0]
    assert features.array[features.rows([image_id])[0], 1] == pytest.approx(expected.numpy(), abs=1e-5)
    # training: some view of the image, by the augmentation that the configuration names
    item = trainer.loader.dataset[(0, 12345)]
    views = {tuple(np.round(trainer.loader.dataset[(0, seed)]["image"].numpy(), 5)) for seed in range(8)}
    assert len(views) == 2
    assert tuple(np.round(item["image"].numpy(), 5)) in views
    raw = experiment.images.channels(experiment.images.rows([str(trainer.train_frame.image_id.iloc[0])]))[0]
    assert not np.array_equal(Augmentation(config.image.augment)(raw.copy(), 1), raw)


def test_a_head_trained_on_cached_features_scores_images_alike(rendered_cnmc: Path, tmp_path: Path) -> None:
    config = paper_004(rendered_cnmc, tmp_path, "resnet50_cached", "optimizer.lr=1e-2", "inference.tta=dihedral")
    run = RunFolder("cached", tmp_path / "oof")
    train_folds(config, run, [0], resume=False, debug=False)
    experiment = open_experiment(config, run, progress=False)
    loaded = load_run(run)
    network = load_network(config, run.fold(0), 2, torch.device("cpu"))
    rows = experiment.images.rows(loaded.oof.image_id.tolist())
    pixels = torch.from_numpy(experiment.images.channels(rows).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        assert loaded.oof.single_view == pytest.approx(network(pixels).numpy(), abs=1e-4)
    history = pd.read_csv(run.fold(0).history)
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    assert (history.validation_loss > 0).all()


def test_features_are_computed_once_for_all_folds_and_seeds(
    rendered_cnmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    embed = Classifier.embed

    def counted(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(Classifier, "embed", counted)
    torch.manual_seed(3)
    donor = Classifier(ModelConfig(backbone="test_resnet", pretrained=False), ImageConfig(size=32), 2).backbone
    weights = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), weights)  # else every fold's backbone begins with random weights of its own
    changes = (f"model.pretrained={weights}", "training.cached_views=2")
    config = paper_004(rendered_cnmc, tmp_path, "resnet50_cached", *changes)
    train_folds(config, RunFolder("a", tmp_path / "oof"), [0], resume=False, debug=False)
    table = open_experiment(config, RunFolder("a", tmp_path / "oof"), progress=False)
    assert sum(calls) == 2 * len(table.labelled) + len(table.labelled) + len(table.test)
    calls.clear()
    train_folds(config, RunFolder("a", tmp_path / "oof"), [1], resume=False, debug=False)
    other = paper_004(rendered_cnmc, tmp_path, "resnet50_cached", *changes, "training.seed=7")
    train_folds(other, RunFolder("b", tmp_path / "oof"), [0, 1], resume=False, debug=False)
    assert calls == []
    bits = [(tmp_path / "oof" / run / "fold0" / "oof.npz").read_bytes() for run in ("a", "b")]
    assert bits[0] != bits[1]  # another head
    again = paper_004(rendered_cnmc, tmp_path, "resnet50_cached", *changes, "inference.tta=rotations")
    train_folds(again, RunFolder("c", tmp_path / "oof"), [0], resume=False, debug=False)
    assert sum(calls) == 16 * (len(table.labelled) + len(table.test))  # other views are other features


def test_a_resumed_training_by_plateau_and_features_has_the_same_bits(
    rendered_cnmc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = paper_004(
        rendered_cnmc, tmp_path, "resnet50_cached", "training.epochs=4", "optimizer.decay_epochs=0", "optimizer.lr=1"
    )
    whole, parts = RunFolder("whole", tmp_path / "oof"), RunFolder("parts", tmp_path / "oof")
    train_folds(config, whole, [0], resume=False, debug=False)
    epoch = Trainer._epoch

    def interrupted(self: Trainer) -> None:
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_folds(config, parts, [0], resume=False, debug=False)
    train_folds(config, parts, [0], resume=True, debug=False)
    assert (whole.fold(0).path / "oof.npz").read_bytes() == (parts.fold(0).path / "oof.npz").read_bytes()
    rates = pd.read_csv(whole.fold(0).history).lr
    assert rates.iloc[-1] < rates.iloc[0]  # the plateau was met
    assert rates.tolist() == pd.read_csv(parts.fold(0).history).lr.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"cached_views": 2}}, r"needs a backbone that stays as it is; set model.frozen=\[backbone\]"),
        (
            {"training": {"cached_views": 2}, "model": {"frozen": ["backbone"]}, "mixing": {"mixup": 0.5}},
            "features of images cannot be mixed",
        ),
        ({"svm": {}}, "an image is measured once, in whichever position; set inference.tta=none"),
    ],
)
def test_features_that_would_not_be_right_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(changes)
