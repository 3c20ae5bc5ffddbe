"""Losses that are not finite: training stops and names the images, or leaves the step out as if it had not been."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import open_experiment
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds
from leukofold.training.guarding import NONFINITE, LossGuard
from leukofold.training.launch import make_accelerator
from leukofold.training.trainer import Trainer

SIZE, EPOCHS = 8, 2  # images of a step, and epochs
NAN, INF = float("nan"), float("inf")
STEP_BY_STEP = {"name": "sgd", "schedule": "step", "decay_epochs": 50, "lr": 1e-2}  # a learning rate that stays


def make_config(rendered_wbcbench: Path, tmp_path: Path, **sections: dict[str, Any]) -> Config:
    """A small network with batch statistics and a moving average, six steps an epoch; sections are laid over it."""
    base: dict[str, dict[str, Any]] = {
        "data": {"root": rendered_wbcbench, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False, "dropout": 0.0},
        "training": {"epochs": EPOCHS, "batch_size": SIZE, "ema_decay": 0.5},
        "inference": {"tta": "none"},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return Config.model_validate(base)


Make = Callable[..., Trainer]


@pytest.fixture
def make_trainer(rendered_wbcbench: Path, tmp_path: Path) -> Make:
    """Makes trainers of fold 0, by sections of the configuration."""

    def make(**sections: dict[str, Any]) -> Trainer:
        config, run = make_config(rendered_wbcbench, tmp_path, **sections), RunFolder("run", tmp_path / "oof")
        return Trainer(open_experiment(config, run, progress=False), 0, make_accelerator(config.training, run))

    return make


def spoil(monkeypatch: pytest.MonkeyPatch, places: dict[tuple[int, int], float]) -> None:
    """Multiplies the losses of some steps, by epoch and step."""
    plain = Trainer._loss

    def loss(trainer: Trainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        found, logits = plain(trainer, batch)
        return found * places.get((trainer.guard.epoch, trainer.guard.step + 1), 1.0), logits

    monkeypatch.setattr(Trainer, "_loss", loss)


def spoil_images(trainer: Trainer, step: int, places: slice = slice(None)) -> None:
    """Makes what the backbone sees of some images of a step not finite."""

    def not_a_number(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        images = inputs[0].clone()
        if trainer.network.training and trainer.guard.step + 1 == step:
            images[places] *= NAN
        return (images,)

    trainer.network.backbone.register_forward_pre_hook(not_a_number)


def without(monkeypatch: pytest.MonkeyPatch, steps: set[int], parts: int = 1) -> None:
    """Gives a training all batches but those of some steps."""
    plain = Trainer._batches

    def batches(trainer: Trainer) -> Iterator[dict[str, torch.Tensor]]:
        yield from (batch for k, batch in enumerate(plain(trainer)) if k // parts + 1 not in steps)

    monkeypatch.setattr(Trainer, "_batches", batches)


def drawn(trainer: Trainer, epoch: int, step: int) -> list[str]:
    """The images of a step, in their order."""
    trainer.sampler.start_epoch(epoch)
    rows = [row for batch in trainer.sampler for row, _ in batch]
    size = trainer.config.training.batch_size
    ids: list[str] = trainer.train_frame.image_id.iloc[rows[(step - 1) * size : step * size]].tolist()
    return ids


def bits(trainer: Trainer) -> dict[str, bytes]:
    """All that a training moves: weights, buffers, their average and the optimiser's momentum, byte for byte."""
    assert trainer.ema is not None
    tensors = {**trainer.network.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.module.state_dict().items()}}
    for number, state in trainer.plain_optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": v for name, v in state.items() if isinstance(v, torch.Tensor)}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def fold_bits(run: RunFolder) -> dict[str, bytes]:
    """Fold 0's predictions, losses and named images, byte for byte."""
    found = {f"{kind}.npz": run.fold(0).predictions(kind).logits.tobytes() for kind in ("oof", "test")}
    history = pd.read_csv(run.fold(0).history)[["epoch", "loss", "skipped", "validation_loss"]]
    named = run.fold(0).path / NONFINITE
    return {**found, "history": history.to_csv().encode(), "named": named.read_bytes() if named.exists() else b""}


def test_a_training_stops_at_the_step_and_names_its_images(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer()
    spoil(monkeypatch, {(2, 3): NAN})
    trainer.folder.path.mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        trainer.fit()
    assert str(caught.value) == (
        "fold 0: the loss is nan in epoch 2, step 3 (8 images, named in oof/run/fold0/nonfinite_loss.csv); lower "
        "optimizer.lr, look at these images, or leave such steps out with training.nonfinite_loss=skip"
    )
    assert trainer.guard.step == 3  # at once
    named = pd.read_csv(trainer.folder.path / NONFINITE, keep_default_na=False)
    assert list(named) == ["epoch", "step", "process", "image_id", "label", "loss", "finite_logits"]
    assert named.image_id.tolist() == drawn(trainer, 2, 3)
    labels = trainer.train_frame.set_index("image_id").label[named.image_id]
    assert named.label.tolist() == [trainer.experiment.table.class_names[k] for k in labels]
    assert {tuple(row) for row in named[["epoch", "step", "process", "loss", "finite_logits"]].to_numpy()} == {
        (2, 3, 0, "nan", True)
    }
    state = torch.load(trainer.folder.state, weights_only=True)
    assert state["progress"]["epoch"] == 1  # nothing was saved after it
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_images_whose_logits_are_not_finite_are_told(make_trainer: Make) -> None:
    trainer = make_trainer(model={"backbone": "test_vit"})  # no batch statistics: images do not touch each other
    spoil_images(trainer, 2, slice(3, 5))
    with pytest.raises(UserError, match="the loss is nan in epoch 1, step 2"):
        trainer.train_epoch(1)
    named = pd.read_csv(trainer.folder.path / NONFINITE)
    assert named.finite_logits.tolist() == [True] * 3 + [False] * 2 + [True] * 3


@pytest.mark.parametrize(("step", "stopped"), [(2, 4), (6, 6)])
def test_on_a_gpu_a_training_stops_a_few_steps_later_but_within_the_epoch(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, step: int, stopped: int
) -> None:
    waited = []

    class Event:
        """Stands in for a GPU's."""

        def record(self) -> None:
            """Is noted where the losses are."""

        def synchronize(self) -> None:
            """Is waited for before a loss is read."""
            waited.append(trainer.guard.step)

    monkeypatch.setattr("torch.cuda.Event", Event)
    spoil(monkeypatch, {(1, step): INF})
    trainer = make_trainer()
    trainer.guard.lag = 2
    with pytest.raises(UserError, match=rf"the loss is inf in epoch 1, step {step} \(8 images"):
        trainer.train_epoch(1)
    assert waited == [min(k + 2, 6) for k in range(1, step + 1)]
    assert trainer.guard.step == stopped
    assert pd.read_csv(trainer.folder.path / NONFINITE).image_id.tolist() == drawn(trainer, 1, step)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_left_out_is_as_if_its_images_had_not_been_given(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    sections: dict[str, Any] = {
        "training": {"nonfinite_loss": "skip", "accumulate": parts},
        "optimizer": {**STEP_BY_STEP, "clip_norm": 1.0},
    }
    trainer = make_trainer(**sections)
    spoil_images(trainer, 3)
    left_out = trainer.train_epoch(1)
    assert trainer.guard.skipped == 1
    named = pd.read_csv(trainer.folder.path / NONFINITE)
    assert named.image_id.tolist() == drawn(trainer, 1, 3)  # of all parts
    assert not named.finite_logits.any()
    reference = make_trainer(**sections)
    without(monkeypatch, {3}, parts)
    assert reference.train_epoch(1)["loss"] == left_out["loss"] > 0
    assert reference.guard.skipped == 0
    assert bits(trainer) == bits(reference)
    assert all(np.isfinite(value.numpy()).all() for value in trainer.network.state_dict().values())


def test_a_gradient_that_is_not_finite_is_left_out_too_but_not_where_fp16_scales_it(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt() -> Trainer:
        trainer = make_trainer(training={"nonfinite_loss": "skip"}, optimizer=STEP_BY_STEP)
        weight = next(trainer.network.backbone.parameters())
        weight.register_hook(lambda gradient: gradient * (INF if trainer.guard.step == 1 else 1.0))
        return trainer

    trainer = spoilt()
    trainer.train_epoch(1)
    assert trainer.guard.skipped == 1
    named = pd.read_csv(trainer.folder.path / NONFINITE)
    assert named.step.unique().tolist() == [2]
    assert np.isfinite(named.loss).all()
    scaled = spoilt()
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    monkeypatch.setattr(scaled.optimizer, "step", lambda: None)  # as that scaler would
    scaled.train_epoch(1)
    assert scaled.guard.skipped == 0
    with monkeypatch.context() as patched:
        reference = make_trainer(training={"nonfinite_loss": "skip"}, optimizer=STEP_BY_STEP)
        without(patched, {2})
        reference.train_epoch(1)
    assert bits(trainer) == bits(reference)


def test_the_schedule_goes_on_over_a_step_that_is_left_out(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def rates() -> list[float]:
        trainer, taken = make_trainer(training={"nonfinite_loss": "skip"}), list[float]()
        trainer.plain_optimizer.register_step_pre_hook(lambda *_: taken.append(trainer.schedule.rate))
        trainer.train_epoch(1)
        return taken

    whole = rates()
    spoil(monkeypatch, {(1, 2): NAN})
    assert rates() == [rate for k, rate in enumerate(whole) if k != 1]
    assert len(set(whole)) == 6


def test_an_epoch_without_a_step_that_counts_stops(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {(2, step): INF for step in range(1, 20)})
    trainer = make_trainer(training={"nonfinite_loss": "skip"})
    trainer.folder.path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"fold 0: all 6 steps of epoch 2 were left out, .*; lower optimizer.lr"):
        trainer.fit()
    named = pd.read_csv(trainer.folder.path / NONFINITE)
    assert named.groupby("step").image_id.agg(list).tolist() == [drawn(trainer, 2, step) for step in range(1, 7)]
    assert torch.load(trainer.folder.state, weights_only=True)["progress"]["epoch"] == 1


def test_without_such_a_loss_both_ways_give_the_same_bits_and_are_one_run(
    rendered_wbcbench: Path, tmp_path: Path
) -> None:
    configs = [
        make_config(rendered_wbcbench, tmp_path, training={"nonfinite_loss": way, "accumulate": 2}, mixing={"mixup": 1})
        for way in ("stop", "skip")
    ]
    runs = [RunFolder(f"run{k}", tmp_path / "oof") for k in range(2)]
    for config, run in zip(configs, runs, strict=True):
        train_folds(config, run, [0], False, False)
    assert fold_bits(runs[0]) == fold_bits(runs[1])
    assert configs[0].digest() == configs[1].digest()
    assert pd.read_csv(runs[0].fold(0).history).skipped.tolist() == [0] * EPOCHS
    assert fold_bits(runs[0])["named"] == b""


def test_a_training_that_stopped_goes_on_by_leaving_out_as_if_it_had_from_the_beginning(
    rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = {"epochs": 3}
    stop = make_config(rendered_wbcbench, tmp_path, training=epochs)
    skip = make_config(rendered_wbcbench, tmp_path, training={**epochs, "nonfinite_loss": "skip"})
    whole, broken = RunFolder("whole", tmp_path / "oof"), RunFolder("broken", tmp_path / "oof")
    spoil(monkeypatch, {(2, 4): NAN, (3, 1): INF, (3, 2): -INF})
    train_folds(skip, whole, [0], False, False)
    assert pd.read_csv(whole.fold(0).history).skipped.tolist() == [0, 1, 2]
    assert "  2 of 6 steps left out, see nonfinite_loss.csv" in capsys.readouterr().out
    for _ in range(2):  # a second try stops at the same step, and names it once
        with pytest.raises(UserError, match="epoch 2, step 4"):
            train_folds(stop, broken, [0], True, False)
        assert len((broken.fold(0).path / NONFINITE).read_text().splitlines()) == 1 + SIZE
    train_folds(skip, broken, [0], True, False)
    assert "fold 0: resumed after epoch 1" in capsys.readouterr().out
    assert fold_bits(broken) == fold_bits(whole)
    assert len((broken.fold(0).path / NONFINITE).read_text().splitlines()) == 1 + 3 * SIZE


def test_leaving_out_resumes_with_the_same_bits(
    rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(rendered_wbcbench, tmp_path, training={"epochs": 3, "nonfinite_loss": "skip"})
    whole, broken = RunFolder("whole", tmp_path / "oof"), RunFolder("broken", tmp_path / "oof")
    spoil(monkeypatch, {(1, 2): NAN, (3, 5): NAN})
    train_folds(config, whole, [0], False, False)
    validate = Trainer._validate

    def interrupted(trainer: Trainer, epoch: int) -> dict[str, float]:
        if epoch == 3:
            raise KeyboardInterrupt  # the third epoch's images are named, but its weights are not saved
        return validate(trainer, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_folds(config, broken, [0], False, False)
    assert (broken.fold(0).path / NONFINITE).read_bytes() == (whole.fold(0).path / NONFINITE).read_bytes()
    train_folds(config, broken, [0], True, False)
    assert fold_bits(broken) == fold_bits(whole)
    monkeypatch.undo()
    train_folds(config, broken, [0], False, False)  # afresh, and without such a loss
    assert not (broken.fold(0).path / NONFINITE).exists()


def test_a_weight_that_a_checkpoint_brings_broken_stops_the_training(
    rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = make_config(rendered_wbcbench, tmp_path), RunFolder("run", tmp_path / "oof")
    with monkeypatch.context() as patched:
        spoil(patched, {(2, 1): NAN})
        with pytest.raises(UserError, match="epoch 2, step 1"):
            train_folds(config, run, [0], False, False)
    state = torch.load(run.fold(0).state, weights_only=True)
    next(value for name, value in state["model"].items() if name.startswith("backbone") and value.ndim == 4)[0] = INF
    for row in state["progress"]["history"]:
        del row["skipped"]  # as of an older version
    torch.save(state, run.fold(0).state)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 2, step 1 \(8 images"):
        train_folds(config, run, [0], True, False)
    assert not pd.read_csv(run.fold(0).path / NONFINITE).finite_logits.any()


def test_a_network_that_its_last_steps_broke_is_not_kept(make_trainer: Make) -> None:
    trainer = make_trainer(training={"epochs": 1, "batch_size": 64}, optimizer={"lr": 1e30})  # one step
    trainer.folder.path.mkdir(parents=True)
    told = r"fold 0: after epoch 1, the logits of (\d+) of \1 validation images are not finite; lower optimizer.lr"
    with pytest.raises(UserError, match=told):
        trainer.fit()
    assert not trainer.folder.weights.exists()


def test_independent_cells_are_named_each(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_id": [f"c{k}" for k in range(6)], "label": [0, 1, 0, 1, 0, 1]})
    config, run = Config(), RunFolder("run", tmp_path)
    guard = LossGuard(
        make_accelerator(config.training, run), nn.Linear(2, 2), frame, ("a", "b"), tmp_path / "named.csv", 1, False
    )
    logits = torch.zeros(2, 3, 2)  # two places of three heads
    logits[1, 2, 0] = INF
    guard.note(torch.tensor(NAN), logits, torch.tensor([[0, 5, 2], [3, 3, 1]]))
    with pytest.raises(UserError, match=re.escape("fold 1: the loss is nan in epoch 1, step 1 (6 images")):
        guard.step_counts()
    named = pd.read_csv(tmp_path / "named.csv")
    assert named.image_id.tolist() == ["c0", "c5", "c2", "c3", "c3", "c1"]
    assert named.label.tolist() == ["a", "b", "a", "b", "b", "b"]
    assert named.finite_logits.tolist() == [True] * 5 + [False]
