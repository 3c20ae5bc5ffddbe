"""Images per second under one, two and four processes: all on one fold, and each on folds of its own."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
import yaml

from leukofold.benchmarks.measuring import Report
from leukofold.config import CONFIG_FOLDER, load_config
from leukofold.errors import UserError
from leukofold.runs import RunFolder

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
PROCESSES = (1, 2, 4)
DEFAULT = CONFIG_FOLDER / "demo.yaml"
EPOCHS = 4  # the first is not counted


def scaling(report: Report, images: int | None, paths: list[Path] | None, overrides: list[str]) -> None:
    """The training of a configuration under several processes, and what each number of them loses."""
    gpus = torch.cuda.device_count()
    count = images or (8000 if gpus else 900)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scaling.yaml"
        config.write_text(yaml.safe_dump(_configuration(count, paths, overrides, Path(folder))))
        where = f"{gpus} GPUs" if gpus else "CPU cores, which all processes share"
        report.begin(f"{count} images, the batch is that of one fold however many train it, {where}")
        rates: dict[tuple[int, bool], float] = {}
        for processes in PROCESSES:
            if gpus and processes > gpus:
                report.not_measured(
                    f"{processes} processes", f"{gpus} GPUs here", "python scripts/benchmark.py scaling on more of them"
                )
                continue
            for apart in (False, True) if processes > 1 else (False,):
                rates[processes, apart] = _rate(config, Path(folder), processes, apart)
                ideal = rates[1, False] * (processes if gpus else 1)
                loss = 1 - rates[processes, apart] / ideal
                what = "a fold each" if apart else "one fold together" if processes > 1 else ""
                report.add(
                    f"{processes} process{'es' if processes > 1 else ''}{', ' if what else ''}{what}",
                    f"{rates[processes, apart]:9.1f} images/s  loss {loss:6.1%}",
                    {"processes": processes, "images_per_second": rates[processes, apart], "loss": loss},
                )


def _configuration(count: int, paths: list[Path] | None, overrides: list[str], folder: Path) -> dict[str, object]:
    """Reads a configuration, and points it to rendered images, with random weights and few epochs."""
    own = [f"data.root={folder / 'wbcbench'}", f"data.cache={folder / 'cache'}", "model.pretrained=false"]
    own += [f"data.render={{images: {count}, test_images: 60, patients: 40}}", "folds.count=4"]
    own += [f"training.epochs={EPOCHS}", f"training.patience={EPOCHS}"]
    config = load_config(paths or [DEFAULT], [*overrides, *own])
    if config.svm is not None or config.data.competition != "wbcbench":
        raise UserError("--config: scaling trains networks on WBCBench's layout")
    return config.resolved()


def _rate(config: Path, folder: Path, processes: int, apart: bool) -> float:
    """Trains with so many processes; returns the images per second of all of them together."""
    name = f"scaling-{processes}-{'apart' if apart else 'together'}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    folds = list(range(processes)) if apart else [0]
    own = ["--config", str(config), "--run-name", name, "--fold", *map(str, folds)]
    command = [sys.executable, *launcher, str(SCRIPTS / "train_fold.py"), *own]
    command += ["--fold-per-process"] if apart else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)}: failed: {done.stderr.strip()[-300:]}")
    run = RunFolder(name, folder / "oof")
    histories = [pd.read_csv(run.fold(fold).history) for fold in folds]
    # the slowest of them: others may have had the machine to themselves at times
    return len(folds) * float(min(history.images_per_second[1:].median() for history in histories))
