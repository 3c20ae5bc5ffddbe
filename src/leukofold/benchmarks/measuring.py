"""What every benchmark shares: taking turns, printing as it goes, and a JSON file of all that was printed."""

import platform
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leukofold.files import write_json
from leukofold.processes import available_cores
from leukofold.provenance import git_commit, library_versions

Figures = Mapping[str, float | int | str | None]


class Report:
    """Prints what a benchmark finds, and keeps it.

    Args:
        what: The benchmark's name.
        command: How it was called.
    """

    def __init__(self, what: str, command: str) -> None:
        self.what, self.command = what, command
        self.title = ""
        self.results: list[dict[str, Any]] = []

    def begin(self, title: str) -> None:
        """Prints the heading of what comes next."""
        self.title = title
        print(title, flush=True)

    def add(self, name: str, line: str, figures: Figures) -> None:
        """Prints one result and keeps its figures.

        Args:
            name: What was measured.
            line: The figures for people.
            figures: The same for programs; the unit is part of each name.
        """
        print(f"  {name:<44} {line}", flush=True)
        self.results.append({"of": self.title, "name": name, **figures})

    def time(self, name: str, count: int, work: Callable[[], object]) -> float:
        """Runs some work on so many images once; adds and returns its seconds."""
        seconds = timed(work)
        self.add_rate(name, count, seconds)
        return seconds

    def add_rate(self, name: str, count: int, seconds: float) -> None:
        """Adds what some work on so many images took."""
        self.add(
            name,
            f"{count / seconds:9.1f} images/s  {1000 * seconds / count:8.3f} ms per image  {seconds:7.2f} s",
            {"images": count, "seconds": seconds, "images_per_second": count / seconds},
        )

    def add_seconds(self, name: str, seconds: float) -> None:
        """Adds what some work took."""
        self.add(name, f"{seconds:9.2f} s", {"seconds": seconds})

    def add_ratio(self, name: str, value: float, target: float | None = None) -> None:
        """Adds how many times faster one way is than another, and whether that is what was aimed at."""
        aim = "" if target is None else f"  (aimed at: {target:g} times; {'met' if value >= target else 'not met'})"
        self.add(name, f"{value:9.2f} times as fast{aim}", {"ratio": value, "target": target})

    def not_measured(self, name: str, why: str, command: str) -> None:
        """Says that something could not be measured here, and what will measure it."""
        self.add(name, f"not measured: {why}; {command}", {"not_measured": why, "command": command})

    def save(self, folder: Path) -> Path:
        """Writes machine, versions and all results as JSON; returns the file."""
        path = folder / f"{self.what}.json"
        write_json(
            path,
            {
                "benchmark": self.what,
                "command": self.command,
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "commit": git_commit(),
                "machine": machine(),
                "versions": library_versions(),
                "results": self.results,
            },
        )
        return path


def timed(work: Callable[[], object]) -> float:
    """Returns the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, np.ndarray]:
    """Times several ways by turns, so that a slow minute of the machine hits all of them.

    Args:
        ways: Name -> the same work, done in one way.
        turns: How often each is timed.

    Returns:
        Name -> its seconds, one per turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    return {name: np.array(taken) for name, taken in seconds.items()}


def machine() -> dict[str, Any]:
    """Describes the hardware that this process runs on."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {"system": platform.platform(), "cpu": _cpu(), "cores": available_cores(), "gpus": gpus}


def _cpu() -> str:
    """Names the processor, with what it multiplies matrices by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    fields = dict(part.split(":", 1) for part in lines if ":" in part)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    flags = known.get("flags", "").split()
    units = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    return f"{known.get('model name', platform.processor())} ({' '.join(units)})"


def synchronise() -> None:
    """Waits until the GPU, where there is one, has done all that it was asked to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
