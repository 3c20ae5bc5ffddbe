"""Where the time of a training goes: parts of a step, the share of waiting, and what history and bar say of it."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tqdm import tqdm

from leukofold.config import Config
from leukofold.experiment import open_experiment
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_accelerator
from leukofold.training.stopwatch import WAITING, Stopwatch
from leukofold.training.trainer import Trainer


class Clock:
    """A clock that goes on by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Returns the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for the stopwatch's clock."""
    made = Clock()
    monkeypatch.setattr("leukofold.training.stopwatch.time.perf_counter", made)
    return made


def test_parts_add_up_and_begin_anew(clock: Clock) -> None:
    watch = Stopwatch()
    for seconds in (1.0, 2.0):
        with watch.part("forward"):
            clock.now += seconds
        with watch.part(WAITING):
            clock.now += 0.5
    clock.now += 4.0
    assert watch.seconds == {"forward": 3.0, WAITING: 1.0}
    assert (watch.elapsed, watch.waiting) == (8.0, 0.125)
    watch.restart()
    clock.now += 2.0
    assert (dict(watch.seconds), watch.elapsed, watch.waiting) == ({}, 2.0, 0.0)


def test_a_part_that_fails_is_counted_too(clock: Clock) -> None:
    watch = Stopwatch()

    def fail() -> None:
        with watch.part("forward"):
            clock.now += 3.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert watch.seconds["forward"] == 3.0


def test_what_a_device_still_computes_belongs_to_the_part_that_asked_for_it(clock: Clock) -> None:
    queued: list[float] = []

    def synchronise() -> None:
        clock.now += sum(queued)
        queued.clear()

    watch = Stopwatch(synchronise)
    with watch.part("forward"):
        queued.append(5.0)
    with watch.part("backward"):
        clock.now += 1.0
    assert watch.seconds == {"forward": 5.0, "backward": 1.0}


@pytest.fixture
def trainer(rendered_wbcbench: Path, tmp_path: Path) -> Trainer:
    """A small network before its first epoch."""
    sections: dict[str, Any] = {
        "data": {"root": rendered_wbcbench, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 2, "batch_size": 16, "ema_decay": 0.5},
        "optimizer": {"clip_norm": 1.0},
    }
    config, run = Config.model_validate(sections), RunFolder("run", tmp_path / "oof")
    return Trainer(open_experiment(config, run, progress=False), 0, make_accelerator(config.training, run))


def test_a_step_is_split_into_its_parts(trainer: Trainer) -> None:
    seen: list[int] = []
    trainer.stopwatch = Stopwatch(lambda: seen.append(1))
    pace = trainer.train_epoch(1)
    parts = ("transfer", "forward", "backward", "optimiser", "EMA")
    assert set(trainer.stopwatch.seconds) == {WAITING, *parts}
    # Before and after each part of each step, and of the look for one more batch
    once = 2 * (len(parts) + 1) * trainer.sampler.steps + 2
    assert once <= len(seen) <= once + 3 * trainer.sampler.steps + 5  # the bar and the rate look at the watch besides
    assert 0 < pace["waiting"] < 1
    assert sum(trainer.stopwatch.seconds.values()) < trainer.stopwatch.elapsed
    assert pace["waiting"] == pytest.approx(
        trainer.stopwatch.seconds[WAITING] * pace["images_per_second"] / trainer.sampler.steps / 16, rel=0.2
    )


def test_slow_images_show_up_as_waiting(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = trainer.loader.__iter__

    def slow(_: Any) -> Any:
        for batch in batches():
            time.sleep(0.3)
            yield batch

    quick = trainer.train_epoch(1)["waiting"]
    monkeypatch.setattr(type(trainer.loader), "__iter__", slow)
    began = time.perf_counter()
    slowed = trainer.train_epoch(2)
    seconds = time.perf_counter() - began
    assert slowed["waiting"] > quick
    assert slowed["waiting"] * seconds >= 0.3 * trainer.sampler.steps * 0.95


def test_the_history_tells_the_pace_and_the_waiting(
    rendered_wbcbench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shown(tqdm):  # type: ignore[type-arg]
        """A bar that is drawn at every step, however quick."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "mininterval": 0, "miniters": 1})

    monkeypatch.setattr("leukofold.training.trainer.tqdm", Shown)
    sections: dict[str, Any] = {
        "data": {"root": rendered_wbcbench, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 2, "batch_size": 16},
    }
    run = RunFolder("run", tmp_path / "oof")
    train_folds(Config.model_validate(sections), run, [0], False, False)
    history = pd.read_csv(run.fold(0).history)
    assert list(history.columns[-4:]) == ["lr", "images_per_second", "waiting", "seconds"]
    assert history.waiting.between(0, 1).all()
    assert "% waiting for data]" in capsys.readouterr().err


def test_batches_arrive_on_the_device_as_they_were_drawn(trainer: Trainer) -> None:
    trainer.sampler.start_epoch(1)
    batches = list(trainer._batches())
    assert len(batches) == trainer.sampler.steps
    assert {batch["image"].device for batch in batches} == {torch.device("cpu")}
    drawn = torch.cat([batch["row"] for batch in batches]).tolist()
    assert drawn == [row for batch in trainer.sampler for row, _ in batch]
