"""Where a training step goes, and our trainer against a straightforward loop."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from leukofold.benchmarks.measuring import Report, synchronise, take_turns
from leukofold.benchmarks.plain import OwnProcess, PlainTraining
from leukofold.config import CONFIG_FOLDER, Config, load_config
from leukofold.errors import UserError
from leukofold.experiment import open_experiment
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.training.launch import make_accelerator
from leukofold.training.stopwatch import WAITING, Stopwatch
from leukofold.training.trainer import Trainer

TURNS = 3
MOST_WAITING = 0.03  # of a step
TARGET, TARGET_ON_GPU = 1.5, 2.0  # times the plain loop
PARTS = (WAITING, "transfer", "forward", "backward", "optimiser", "EMA")
DEFAULT = CONFIG_FOLDER / "wbcbench" / "convnextv2_tiny.yaml"
GPU_OPTIONS = "--set training.precision=bf16 --set training.deterministic=false"


def train(report: Report, images: int | None, paths: list[Path] | None, overrides: list[str]) -> None:
    """Epochs of a configuration by our trainer and by a plain loop; then the parts of our step."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        config = _configuration(paths or [DEFAULT], overrides, Path(folder))
        count = images or (6000 if on_gpu else 160)
        render("wbcbench", config.data.root, RenderSpec(images=count, test_images=30, patients=30))
        run = RunFolder("benchmark", Path(folder) / "oof")
        accelerator = make_accelerator(config.training, run)
        experiment = open_experiment(config, run, progress=False)
        trainer = Trainer(experiment, 0, accelerator)
        report.begin(
            f"{config.model_title} at {config.image.side} pixels, batch {config.training.batch_size}, precision "
            f"{accelerator.mixed_precision}, {trainer.sampler.steps} steps an epoch, on {accelerator.device.type}"
        )
        _against_plain(report, trainer, config)
        _parts(report, trainer)
        if not on_gpu:
            report.not_measured("the same on a GPU", "no GPU here", f"python scripts/benchmark.py train {GPU_OPTIONS}")


def _configuration(paths: list[Path], overrides: list[str], folder: Path) -> Config:
    """Reads a configuration and points it to rendered images, with random weights."""
    own = [f"data.root={folder / 'wbcbench'}", f"data.cache={folder / 'cache'}", "data.render=null"]
    own += ["model.pretrained=false", "training.epochs=1000", "training.patience=1000"]
    config = load_config(paths, [*overrides, *own])
    other = [key for key, value in _usual().items() if _value(config, key) != value]
    if other:
        raise UserError(f"{other[0]}: train compares with a plain loop, which has none of that; leave it as it is")
    return config


def _usual() -> dict[str, object]:
    """Returns the keys that the plain loop does not know, with their default values."""
    keys = "data.competition svm mixing distillation training.accumulate training.cached_views model.head model.frozen "
    keys += "model.normalisation model.fusion model.one_logit optimizer.name optimizer.groups optimizer.clip_norm "
    keys += "image.input_size"
    return {key: _value(Config(), key) for key in keys.split()}


def _value(config: Config, key: str) -> object:
    """Returns the value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def _against_plain(report: Report, trainer: Trainer, config: Config) -> None:
    """Times epochs of both by turns; the first of each is not counted."""
    number, waiting = 0, []

    def ours() -> None:
        nonlocal number
        number += 1
        waiting.append(trainer.train_epoch(number)["waiting"])
        synchronise()

    device = trainer.accelerator.device
    precision = trainer.accelerator.mixed_precision
    with OwnProcess(PlainTraining, trainer.train_frame, config, trainer.classes, device, precision) as plain:
        seconds = take_turns({"our trainer": ours, "PyTorch + timm + torchvision": plain}, TURNS + 1)
    medians = {name: float(np.median(taken[1:])) for name, taken in seconds.items()}
    for name, taken in medians.items():
        report.add_rate(f"{name}, an epoch", trainer.sampler.steps * config.training.batch_size, taken)
    target = TARGET_ON_GPU if torch.cuda.is_available() else TARGET
    report.add_ratio("ours / plain", medians["PyTorch + timm + torchvision"] / medians["our trainer"], target)
    share = float(np.median(waiting[1:]))
    report.add(
        "our trainer, waiting for data",
        f"{share:9.2%} of the time  (aimed at: less than {MOST_WAITING:.0%}; "
        f"{'met' if share < MOST_WAITING else 'not met'})",
        {"waiting_share": share, "target": MOST_WAITING},
    )


def _parts(report: Report, trainer: Trainer) -> None:
    """Prints where a step goes, in an epoch that waits for the device after each part."""
    trainer.stopwatch = Stopwatch(synchronise)
    trainer.train_epoch(TURNS + 2)
    elapsed, steps = trainer.stopwatch.elapsed, trainer.sampler.steps
    seconds = {name: trainer.stopwatch.seconds[name] for name in PARTS}
    seconds["everything else"] = elapsed - sum(seconds.values())
    report.begin("where a step goes, with the device waited for after each part")
    for name, taken in seconds.items():
        report.add(
            name,
            f"{1000 * taken / steps:9.2f} ms  {taken / elapsed:6.1%}",
            {"ms": 1000 * taken / steps, "share": taken / elapsed},
        )
