"""Runs that are killed at any moment and go on with --resume: the bits of runs that nobody has disturbed."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.trainings import Started, start, train

KILLS = int(os.environ.get("LEUKOFOLD_KILLS", "2"))
"""Kills of a training on one process, and half as many on two; more of them: make kills."""

CONFIG = """
data: {competition: wbcbench, root: input, workers: 1}
folds: {count: 2}
image: {size: 32}
model: {backbone: test_resnet, pretrained: false, dropout: 0.1}  # batch statistics and noise
mixing: {mixup: 0.5}
sampler: {kind: effective_number}
training: {epochs: 2, batch_size: 16, ema_decay: 0.8}
inference: {tta: none}
"""
ARGUMENTS = ("--config", "tiny.yaml", "--fold", "all", "--resume")
BEGUN = "labelled images of"  # printed when the images are read, before they are prepared


@dataclass(frozen=True)
class Undisturbed:
    """A training that nobody has disturbed.

    Attributes:
        folder: Its working folder.
        events: How often its first process has changed a file.
        seconds: From the summary of its images to its end.
    """

    folder: Path
    events: int
    seconds: float


def make_folder(root: Path, images: Path) -> Path:
    """A working folder with images and a configuration."""
    root.mkdir()
    (root / "input").symlink_to(images)
    (root / "tiny.yaml").write_text(CONFIG)
    return root


def run_undisturbed(folder: Path, processes: int) -> Undisturbed:
    """Trains once, without a cache, and notes how long that takes."""
    started = start(folder, *ARGUMENTS, processes=processes)
    started[0].wait_for(BEGUN)
    begun = started[0].log.stat().st_mtime
    for one in started:
        assert one.end() == 0, one.printed[-3000:]
    return Undisturbed(folder, int(started[0].events.read_text()), started[0].events.stat().st_mtime - begun)


def need_equal(folder: Path, expected: Path) -> None:
    """Compares all that two runs have left, but for times."""
    ours, theirs = folder / "oof" / "tiny", expected / "oof" / "tiny"
    names = [sorted(path.relative_to(run).as_posix() for path in run.rglob("*")) for run in (ours, theirs)]
    assert names[0] == names[1]  # nothing half-written is left either
    for name in names[0]:
        if name.endswith((".npz", ".safetensors", "folds.csv")):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        elif name.endswith("history.csv"):
            times = ["seconds", "images_per_second", "waiting"]
            rows = [pd.read_csv(run / name).drop(columns=times) for run in (ours, theirs)]
            pd.testing.assert_frame_equal(rows[0], rows[1])


def kill_somewhere(folder: Path, undisturbed: Undisturbed, processes: int, rng: random.Random) -> list[Started]:
    """Starts the training, kills it - or one of its processes - and waits for the end of the others."""
    by_event = rng.random() < 0.5
    kill_at = rng.randint(1, undisturbed.events) if by_event else None
    started = start(folder, *ARGUMENTS, processes=processes, kill_at=kill_at)
    victims = started if rng.random() < 0.5 else [rng.choice(started)]
    alone = rng.random() < 0.3  # the loaders find out by themselves
    if not by_event:
        moment = rng.uniform(0, undisturbed.seconds)
        started[0].wait_for(BEGUN)
        started[0].process.join(moment)
        for victim in victims:
            victim.kill(alone=alone)
    elif victims == started:
        started[0].process.join(timeout=120)
        for victim in victims:
            victim.kill()
    for one in started:
        one.end()
    return started


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    rendered_wbcbench: Path, tmp_path: Path, processes: int
) -> None:
    undisturbed = run_undisturbed(make_folder(tmp_path / "undisturbed", rendered_wbcbench), processes)
    rng, folder, kills = random.Random(processes), tmp_path / "killed", 0
    make_folder(folder, rendered_wbcbench)
    while kills < KILLS // processes:
        started = kill_somewhere(folder, undisturbed, processes, rng)
        codes = [one.process.exitcode for one in started]
        kills += -9 in codes
        for one in started:
            if one.process.exitcode not in (0, -9):  # it has lost another one, and says so
                assert one.process.exitcode == 2, one.printed[-3000:]
                assert "error: another process of this command has ended" in one.printed
        if codes == [0] * processes:
            need_equal(folder, undisturbed.folder)
            shutil.rmtree(folder)
            make_folder(folder, rendered_wbcbench)
    train(folder, *ARGUMENTS, processes=processes)
    need_equal(folder, undisturbed.folder)
