"""How long commands take to answer: ``--help``, and the first training step."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from leukofold.benchmarks.measuring import Report
from leukofold.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
TURNS = 3
HELP, FIRST_STEP = 0.5, 10.0  # seconds that are aimed at
FIRST_BATCH = re.compile(r"epoch 1 training: .*?\| *[1-9]\d*/")


def start_up(report: Report, images: int | None) -> None:
    """Every script's --help, and the time from the command to the first training step with a warm cache."""
    report.begin("--help")
    for script in sorted(SCRIPTS.glob("*.py")):
        taken = float(np.median([_help(script) for _ in range(TURNS)]))
        report.add(script.name, _line(taken, HELP), {"seconds": taken, "target": HELP})
    count = images or 3000
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "start_up.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "data": {
                        "root": f"{folder}/wbcbench",
                        "cache": f"{folder}/cache",
                        "render": {"images": count, "test_images": 60, "patients": 30},
                    },
                    "image": {"size": 96},
                    "model": {"backbone": "test_resnet", "pretrained": False},
                }
            )
        )
        report.begin(f"from the command to the first training step, {count} images, test_resnet")
        cold = _first_step(config, Path(folder))
        report.add_seconds("cold: images drawn, checked, compared, prepared", cold)
        for name, options in (("python", []), ("accelerate launch", ["-m", "accelerate.commands.launch"])):
            warm = float(np.median([_first_step(config, Path(folder), *options) for _ in range(TURNS)]))
            report.add(f"warm, {name}", _line(warm, FIRST_STEP), {"seconds": warm, "target": FIRST_STEP})


def _line(seconds: float, target: float) -> str:
    """Says what was taken, and whether that is what was aimed at."""
    return f"{seconds:9.2f} s  (aimed at: less than {target:g} s; {'met' if seconds < target else 'not met'})"


def _help(script: Path) -> float:
    """Returns the seconds that a script's --help takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def _first_step(config: Path, folder: Path, *launcher: str) -> float:
    """Starts a training, and stops it when the progress bar counts the first batch; returns the seconds until then."""
    own = ["--quiet", "--num_processes", "1", "--mixed_precision", "no", "--dynamo_backend", "no"] if launcher else []
    command = [sys.executable, *launcher, *own, str(SCRIPTS / "train_fold.py"), "--fold", "0", "--config", str(config)]
    began, said = time.perf_counter(), ""
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes) as started:
        assert started.stderr is not None
        while piece := started.stderr.read(1):
            said += piece
            if piece == "/" and FIRST_BATCH.search(said[-200:]):
                taken = time.perf_counter() - began
                os.killpg(started.pid, signal.SIGKILL)  # accelerate's launcher would leave the training behind
                return taken
    raise UserError(f"{' '.join(command)}: ended before its first step: {said.strip()[-200:]}")
