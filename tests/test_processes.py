"""Several real processes: each image is scored once whatever the counts, and all decide the same about a bad loss."""

import os
import pickle
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch.multiprocessing.spawn import start_processes

from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import Experiment, open_experiment
from leukofold.inference import score_rows
from leukofold.loaders import SizedDataset, make_loader
from leukofold.runs import RunFolder
from leukofold.training.guarding import NONFINITE
from leukofold.training.launch import joined_processes, make_accelerator
from leukofold.training.trainer import Trainer

COUNTS = (1, 2, 3, 5, 8, 9, 16, 17, 29)
BATCHES = (1, 4, 64)  # per process

Work = Callable[[Path], Any]


def in_processes(count: int, folder: Path, work: Work) -> list[Any]:
    """Does some work in several processes that know each other, as a launcher's do; returns what each found.

    They are forked, so that nothing is imported anew.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (count, port, folder, work)
    context = start_processes(_join, arguments, count, join=False, start_method="fork")  # type: ignore[no-untyped-call]
    for _ in range(2 * count):  # each that ends is told
        if context.join(timeout=60):
            return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(count)]
    for process in context.processes:
        process.kill()
    raise TimeoutError(f"{count} processes wait for each other")


def _join(rank: int, count: int, port: int, folder: Path, work: Work) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with pytest.MonkeyPatch.context() as patched, joined_processes():
        patched.setattr("leukofold.training.launch.cores_per_process", lambda: 1)  # threads do not survive a fork
        found = work(folder)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


class Numbered(SizedDataset):
    """Images that are noise by their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Brings one image."""
        generator = torch.Generator().manual_seed(row)
        return {"image": torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8), "row": row}


def tiny_network() -> torch.nn.Module:
    """The same everywhere."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5), torch.nn.Tanh()).eval()


def score_many(folder: Path) -> dict[tuple[int, int, int], np.ndarray]:
    """Scores data sets of many sizes, by batches of many sizes and with and without workers."""
    accelerator, network, found = make_accelerator(Config().training, RunFolder("run", folder)), tiny_network(), {}

    @torch.inference_mode()
    def forward(batch: Mapping[str, Any]) -> torch.Tensor:
        return torch.cat([batch["row"][:, None].float(), network(batch["image"].float() / 255)], dim=1)

    for count in COUNTS:
        for batch in BATCHES:
            for workers in (0, 1) if (count, batch) in ((1, 4), (17, 4)) else (0,):
                loader = make_loader(Numbered(count), workers, batch * accelerator.num_processes)
                found[count, batch, workers] = score_rows(accelerator, loader, forward, count, "test")
    return found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_is_scored_once_by_any_number_of_processes(processes: int, tmp_path: Path) -> None:
    results = in_processes(processes, tmp_path / "scored", score_many)
    network = tiny_network()
    for (count, batch, workers), scored in results[0].items():
        images = torch.stack([Numbered(count)[row]["image"] for row in range(count)])
        with torch.inference_mode():
            expected = network(images.float() / 255).numpy()
        case = f"{count} images, {batch} at a time, {workers} workers"
        assert scored[:, 0].tolist() == list(range(count)), case
        assert scored[:, 1:] == pytest.approx(expected, abs=1e-6), case
        for other in results[1:]:
            assert np.array_equal(other[count, batch, workers], scored), case


@pytest.fixture
def experiment(rendered_wbcbench: Path, tmp_path: Path) -> Experiment:
    """Rendered cells, to be trained on by a network without batch statistics and noise."""
    return open_rendered(rendered_wbcbench, tmp_path)


def open_rendered(rendered_wbcbench: Path, tmp_path: Path, **sections: dict[str, Any]) -> Experiment:
    """Opens rendered cells with sections laid over the configuration."""
    base: dict[str, dict[str, Any]] = {
        "data": {"root": rendered_wbcbench, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_vit", "pretrained": False, "dropout": 0.0},
        "training": {"epochs": 1, "batch_size": 12, "ema_decay": 0.5},
        "optimizer": {"schedule": "step", "decay_epochs": 50},  # a learning rate that stays
        "inference": {"batch_size": 4},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    config = Config.model_validate(base)
    return open_experiment(config, RunFolder("run", tmp_path / "oof"), progress=False)


def make_trainer(experiment: Experiment) -> Trainer:
    """Makes a trainer of fold 0 in this process."""
    return Trainer(experiment, 0, make_accelerator(experiment.config.training, experiment.run))


def test_a_fold_of_any_size_is_scored_as_by_one_process(experiment: Experiment, tmp_path: Path) -> None:
    sizes = (0, 1, 2, 13)  # none, fewer than processes, and last batches that are uneven

    def score(_: Path) -> tuple[dict[int, np.ndarray], dict[int, dict[str, float]]]:
        trainer = make_trainer(experiment)
        held_out = trainer.validation
        logits = {size: trainer.predict(held_out.head(size), "test") for size in sizes}
        metrics = {}
        for size in sizes[1:]:
            trainer.validation = held_out.head(size)
            metrics[size] = trainer._validate(1)
        return logits, metrics

    alone = score(tmp_path)
    for logits, metrics in in_processes(2, tmp_path / "scored", score):
        for size in sizes:
            assert logits[size].shape == (size, 2, 13)
            assert logits[size] == pytest.approx(alone[0][size], abs=1e-6)
        for size in sizes[1:]:
            loss, expected = metrics[size].pop("validation_loss"), dict(alone[1][size])
            assert loss == pytest.approx(expected.pop("validation_loss"), abs=1e-6)
            assert metrics[size] == expected
    assert np.ptp(alone[0][13], axis=0).max() > 0.01  # agreement means something


@pytest.mark.parametrize("batch_size", [12, 132])
def test_processes_train_alike_with_any_batch(batch_size: int, rendered_wbcbench: Path, tmp_path: Path) -> None:
    training = {"batch_size": batch_size, "epochs": 1, "ema_decay": 0.5}
    experiment = open_rendered(rendered_wbcbench, tmp_path, training=training)

    def train(_: Path) -> tuple[float, np.ndarray]:
        trainer = make_trainer(experiment)
        loss = trainer.train_epoch(1)["loss"]
        return loss, trainer.predict(experiment.test, "test")

    loss, logits = train(tmp_path)
    found = in_processes(2, tmp_path / "trained", train)
    for other_loss, other in found:
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert other == pytest.approx(logits, abs=2e-4)
    assert np.array_equal(found[0][1], found[1][1])


def test_all_processes_score_with_the_weights_that_are_kept(rendered_wbcbench: Path, tmp_path: Path) -> None:
    experiment = open_rendered(rendered_wbcbench, tmp_path, model={"backbone": "test_resnet"})  # has batch statistics

    def train(_: Path) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        trainer = make_trainer(experiment)
        trainer.train_epoch(1)
        return trainer.scored.state_dict(), trainer.predict(experiment.test, "test")

    (kept, logits), (_, other) = in_processes(2, tmp_path / "trained", train)
    assert np.array_equal(logits, other)
    alone = make_trainer(experiment)
    alone.scored.load_state_dict(kept)
    assert logits == pytest.approx(alone.predict(experiment.test, "test"), abs=1e-6)


def test_two_processes_give_the_same_bits_each_time_with_any_number_of_workers(
    rendered_wbcbench: Path, tmp_path: Path
) -> None:
    found = []
    for number, workers in enumerate((0, 0, 1, 2)):
        experiment = open_rendered(
            rendered_wbcbench,
            tmp_path,
            data={"workers": workers},
            model={"backbone": "test_resnet", "dropout": 0.2},
            mixing={"cutmix": 0.4, "mixup": 0.4},
            training={"batch_size": 12, "accumulate": 3, "ema_decay": 0.5},
        )

        def train(_: Path, experiment: Experiment = experiment) -> tuple[float, bytes]:
            trainer = make_trainer(experiment)
            loss = trainer.train_epoch(1)["loss"]
            return loss, trainer.predict(experiment.test, "test").tobytes()

        found += in_processes(2, tmp_path / f"trained{number}", train)
    assert len(found) == 8
    assert len(set(found)) == 1


def spoil_second_process(trainer: Trainer, step: int) -> None:
    """Makes the loss of the second process not finite in a step."""
    plain = trainer._loss

    def loss(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        found, logits = plain(batch)
        bad = trainer.accelerator.process_index == 1 and trainer.guard.step + 1 == step
        return found * (float("nan") if bad else 1.0), logits

    trainer._loss = loss  # type: ignore[method-assign]


def test_a_loss_that_is_not_finite_on_one_process_stops_both_and_names_the_images_of_both(
    experiment: Experiment, tmp_path: Path
) -> None:
    def train(_: Path) -> tuple[str, int]:
        trainer = make_trainer(experiment)
        spoil_second_process(trainer, 2)
        with pytest.raises(UserError) as caught:
            trainer.train_epoch(1)
        return str(caught.value), trainer.guard.step

    (told, stopped), other = in_processes(2, tmp_path / "stopped", train)
    assert (told, stopped) == other
    assert stopped == 2
    assert "the loss is nan in epoch 1, step 2 (12 images, named in " in told
    trainer = make_trainer(experiment)
    trainer.sampler.start_epoch(1)
    rows = [row for row, _ in list(trainer.sampler)[1]]
    named = pd.read_csv(experiment.run.fold(0).path / NONFINITE)
    assert named.image_id.tolist() == trainer.train_frame.image_id.iloc[rows].tolist()
    assert named.process.tolist() == [0] * 6 + [1] * 6
    assert named.loss.isna().tolist() == [False] * 6 + [True] * 6  # which is written as nan
    assert named.finite_logits.all()


def test_a_step_that_one_process_cannot_take_is_left_out_on_both(rendered_wbcbench: Path, tmp_path: Path) -> None:
    experiment = open_rendered(
        rendered_wbcbench,
        tmp_path,
        model={"backbone": "test_resnet"},
        training={"batch_size": 12, "ema_decay": 0.5, "nonfinite_loss": "skip"},
    )

    def train(folder: Path) -> tuple[float, int, dict[str, bytes]]:
        trainer = make_trainer(experiment)
        if folder.name == "spoilt":
            spoil_second_process(trainer, 2)
        else:
            batches = trainer._batches
            trainer._batches = lambda: (batch for k, batch in enumerate(batches()) if k != 1)  # type: ignore
        loss = trainer.train_epoch(1)["loss"]
        assert trainer.ema is not None
        weights = dict(trainer.network.named_parameters()) | {
            f"ema.{name}": value for name, value in trainer.ema.module.named_parameters()
        }
        if trainer.accelerator.is_main_process:  # whose batch statistics all score with
            weights |= dict(trainer.network.named_buffers())
        return loss, trainer.guard.skipped, {name: value.detach().numpy().tobytes() for name, value in weights.items()}

    spoilt, left_out = (in_processes(2, tmp_path / name, train) for name in ("spoilt", "left out"))
    assert [skipped for _, skipped, _ in spoilt] == [1, 1]
    assert [skipped for _, skipped, _ in left_out] == [0, 0]
    for (loss, _, weights), (expected_loss, _, expected) in zip(spoilt, left_out, strict=True):
        assert loss == expected_loss
        assert weights == expected
    assert spoilt[1][2].items() <= spoilt[0][2].items()  # both processes have the same weights
    assert len(pd.read_csv(experiment.run.fold(0).path / NONFINITE)) == 12
