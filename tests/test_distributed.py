"""Two real processes: every image scored once, the same result as one process, one clear end."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from tests.trainings import train

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = """
data: {competition: wbcbench, root: input, render: {images: 75, test_images: 13, patients: 13}, workers: 1}
folds: {count: 2}
image: {size: 32}
model: {backbone: test_vit, pretrained: false, dropout: 0.0}  # no batch statistics and no noise: must agree
training: {epochs: 2, batch_size: 8, ema_decay: 0.5}
inference: {batch_size: 8}
"""


def launch(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/train_fold.py under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(REPOSITORY / "scripts" / "train_fold.py"), "--config", "tiny.yaml", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with images and a configuration."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "tiny.yaml").write_text(CONFIG)
    render("wbcbench", path / "input", RenderSpec(images=75, test_images=13, patients=13), workers=1, progress=False)
    return path


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[int, RunFolder]:
    """The same training under one and two processes."""
    for processes in (1, 2):
        name = f"processes{processes}"
        started = train(folder, "--config", "tiny.yaml", "--fold", "0", "--run", name, processes=processes)
        assert f"{processes} process(es) on cpu" in started[0].printed
        told = [one.printed.count("fold 0: out-of-fold") for one in started]
        assert told == [1] + [0] * (processes - 1)  # only the first process speaks
    return {processes: RunFolder(f"processes{processes}", folder / "oof") for processes in (1, 2)}


def test_two_processes_score_every_image_exactly_once(runs: dict[int, RunFolder]) -> None:
    split = runs[2].split()
    held_out = split.image_id[split.fold == 0].tolist()
    oof, test = (runs[2].fold(0).predictions(kind) for kind in ("oof", "test"))
    assert len(held_out) % 2 or len(held_out) % 8  # the last batch is uneven
    assert oof.image_id.tolist() == held_out
    assert len(np.unique(test.image_id)) == len(test.image_id) == 13


def test_two_processes_agree_with_one(runs: dict[int, RunFolder]) -> None:
    for kind in ("oof", "test"):
        one, two = (runs[processes].fold(0).predictions(kind) for processes in (1, 2))
        assert one.image_id.tolist() == two.image_id.tolist()
        assert two.logits == pytest.approx(one.logits, abs=2e-4)
        assert one.logits.std() > 0.05  # agreement means something
    metrics = [runs[processes].fold(0).metrics() for processes in (1, 2)]
    assert metrics[0]["competition_rows"] == pytest.approx(metrics[1]["competition_rows"], abs=1e-9)
    assert [runs[processes].fold(0).metadata()["processes"] for processes in (1, 2)] == [1, 2]


def test_a_users_mistake_ends_both_processes_with_one_line(folder: Path, runs: dict[int, RunFolder]) -> None:
    image = next((folder / "input" / "phase1").glob("*.jpg"))
    whole = image.read_bytes()
    try:
        image.write_bytes(whole[:500])
        done = launch(folder, 2, "--fold", "1", "--run-name", "corrupt")
    finally:
        image.write_bytes(whole)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: 1 of 88 images are unreadable: input/phase1/{image.name}: the file is cut short; download it again"
    ]
    assert done.stderr.count("exitcode  : 2") >= 1
    assert not (folder / "oof" / "corrupt").exists()
