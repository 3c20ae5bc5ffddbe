"""Shared fixtures: rendered inputs, inputs and runs made by hand, and a way to call the command lines."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from leukofold.competitions import get_competition
from leukofold.config import Config, FoldsConfig
from leukofold.rendering import RenderSpec, render
from leukofold.runs import Predictions, RunFolder
from tests.trainings import run_script

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
N_LABELLED, N_FOLDS = 30, 3  # of the runs made by hand

JPEG = bytes(cv2.imencode(".jpg", np.full((12, 10, 3), 127, np.uint8))[1])
BMP = bytes(cv2.imencode(".bmp", np.full((12, 10, 3), 127, np.uint8))[1])


def pytest_configure() -> None:
    """Gives each process of ``pytest -n`` a core of its own: torch's threads would wait for each other's cores."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        torch.set_num_threads(1)  # it counted the cores when it was imported


@pytest.fixture(autouse=True)
def _restore_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a training, or the timing of one, switches for its whole process."""
    monkeypatch.setattr("leukofold.cli.keep_freed_memory", lambda: None)  # it could not be put back
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def rendered_wbcbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered WBCBench folder with its truth; read only."""
    root = tmp_path_factory.mktemp("rendered") / "wbcbench"
    render("wbcbench", root, RenderSpec(images=110, test_images=12, patients=24), workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def rendered_cnmc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered C-NMC folder with its truth and three images under two subjects; read only."""
    root = tmp_path_factory.mktemp("rendered") / "cnmc"
    spec = RenderSpec(images=80, test_images=12, patients=14, exact_duplicates=3)
    render("cnmc", root, spec, workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Twelve small random images as rows of a table; read only."""
    folder, rng, paths = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(12):
        paths.append(str(folder / f"{i}.png"))
        cv2.imwrite(paths[-1], rng.integers(0, 256, (40, 44, 3), dtype=np.uint8))
    ids = [f"{i}.png" for i in range(12)]
    return pd.DataFrame({"image_id": ids, "path": paths, "label": np.arange(12) % 3, "split": ""})


def draw_cell(path: Path, label: int, seed: int, light: int) -> None:
    """Draws a disc whose size is its class, in a laboratory's light."""
    rng = np.random.default_rng(seed)
    image = np.full((48, 48, 3), light, np.float64) + rng.normal(0, 4, (48, 48, 3))
    y, x = np.mgrid[:48, :48]
    image[np.hypot(y - 24 - rng.normal(), x - 24 - rng.normal()) < 5 + 3 * label] *= 0.45
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def laboratories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raabin's training images, its two test sets, LISC, and a folder of yet another laboratory; read only."""
    root = tmp_path_factory.mktemp("laboratories")
    parts = {
        "RaabinWBC/Train": (8, 220),
        "RaabinWBC/TestA": (3, 220),
        "RaabinWBC/TestB": (3, 190),
        "LISCCropped": (3, 120),
    }
    number = 0
    for part, (count, light) in parts.items():
        for label, name in enumerate(get_competition("raabin").class_names):
            if part.endswith("TestB") and name not in ("Lymphocyte", "Neutrophil"):
                continue
            for k in range(count):
                number += 1
                smear = {"TestB": f"96-{k}", "LISCCropped": "field"}.get(part.rpartition("/")[2], f"95-{k % 4}")
                draw_cell(root / "input" / part / name / f"{smear}_{number}_1.png", label, number, light)
    for k in range(4):
        draw_cell(root / "elsewhere" / "Neutrophils" / f"{k}.png", 4, 1000 + k, 90)
        draw_cell(root / "elsewhere" / "monocyte" / f"{k}.png", 3, 2000 + k, 90)
    return root


@dataclass(frozen=True)
class MultimodalInput:
    """Cells of three images each, whose class the images show in part: brightness, size and colour of a disc."""

    root: Path
    cells: int = 60
    patients: int = 10


@pytest.fixture(scope="session")
def drawn_multimodal(tmp_path_factory: pytest.TempPathFactory) -> MultimodalInput:
    """Draws the cells, twelve of each class."""
    drawn = MultimodalInput(tmp_path_factory.mktemp("drawn") / "multimodal")
    names, modalities = get_competition("multimodal").class_names, ("Fluorescent", "Color1", "Color2")
    y, x = np.mgrid[:40, :40]
    rows = []
    for number in range(drawn.cells):
        label, rng = number % 5, np.random.default_rng(number)
        disc = np.hypot(y - 20 - rng.normal(), x - 20 - rng.normal())
        paths = []
        for k, modality in enumerate(modalities):
            image = rng.normal((30, 200, 160)[k], 6, (40, 40, 3))
            image[disc < (8, 6 + 2 * label, 9)[k]] += (30 + 40 * label, -90, 0)[k]
            image[disc < 9, 0] += (0, 0, 20 * label)[k]
            path = Path(modality) / names[label] / f"c{number}.png"
            (drawn.root / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(drawn.root / path), image.clip(0, 255).astype(np.uint8)[..., ::-1])
            paths.append(path.as_posix())
        rows.append((f"c{number}", names[label], f"p{number // 6}", *paths))
    table = pd.DataFrame(rows, columns=["cell_id", "label", "patient", *modalities])
    table.to_csv(drawn.root / "cells.csv", index=False)
    return drawn


@pytest.fixture
def multimodal(drawn_multimodal: MultimodalInput, tmp_path_factory: pytest.TempPathFactory) -> MultimodalInput:
    """A copy of drawn multimodal cells, to be changed at will."""
    root = tmp_path_factory.mktemp("multimodal") / "input"
    shutil.copytree(drawn_multimodal.root, root)
    return MultimodalInput(root)


class WbcInput:
    """A WBCBench folder of a dozen images, any list of which can be replaced before it is written."""

    FOLDERS: ClassVar = {
        "phase1_label.csv": "phase1",
        "phase2_train.csv": "phase2/train",
        "phase2_eval.csv": "phase2/eval",
        "phase2_test.csv": "phase2/test",
    }

    def __init__(self, root: Path) -> None:
        """Sets the folder and the default lists."""
        self.root = root
        self.lists: dict[str, str | bytes | None] = {
            "phase1_label.csv": "ID,labels,split,,,\n01447013.jpg,SNE,phase1_train,,,\n"
            "01447020.jpg,LY,phase1_train,,,\n01447100.jpg,BL,phase1_train,,,\n",
            "phase2_train.csv": "ID,labels,split\n02000001.jpg,BA,phase2_train\n02000002.jpg,LY,phase2_train\n"
            "02000003.jpg,BA,phase2_train\n02000004.jpg,SNE,phase2_train\n",
            "phase2_eval.csv": "ID,labels,split\n03000001.jpg,EO,phase2_eval\n03000002.jpg,MO,phase2_eval\n",
            "phase2_test.csv": "ID,labels\n04000009.jpg,\n04000002.jpg,\n04000005.jpg,\n",
        }

    def write(self, lists: Mapping[str, str | bytes | None] | None = None) -> Path:
        """Writes the lists (None: left out) and a JPEG for each id in its list's folder."""
        self.lists.update(lists or {})
        phase1 = _ids(self.lists["phase1_label.csv"])
        for name, content in self.lists.items():
            folder = self.root / self.FOLDERS[name]
            folder.mkdir(parents=True, exist_ok=True)
            repeated = phase1 if name == "phase2_train.csv" else []
            for image_id in sorted(set(_ids(content)) - set(repeated)):
                (folder / image_id).write_bytes(JPEG)
            if content is not None:
                (self.root / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self.root


def _ids(content: str | bytes | None) -> list[str]:
    text = content.decode("utf-8", "ignore") if isinstance(content, bytes) else content or ""
    return re.findall(r"\b\d{8}\.jpg", text)


@pytest.fixture
def wbc(tmp_path: Path) -> WbcInput:
    """A WBCBench folder to be written, below the command lines' working folder."""
    return WbcInput(tmp_path / "work" / "input" / "wbcbench")


class CnmcInput:
    """A C-NMC folder to which images are added one by one, in any packaging."""

    PRELIM, FINAL = "C-NMC_test_prelim_phase_data", "C-NMC_test_final_phase_data"

    def __init__(self, root: Path) -> None:
        """Sets the folder, and Kaggle's packaging below it."""
        self.root = root
        self.training = "C-NMC_Leukemia/training_data"
        self.prelim = f"C-NMC_Leukemia/validation_data/{self.PRELIM}"
        self.final = f"C-NMC_Leukemia/testing_data/{self.FINAL}"

    def add(self, path: str, content: bytes = BMP) -> Path:
        """Writes one file below the folder."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def train(self, fold: int, name: str, content: bytes = BMP) -> Path:
        """Adds a training image to the folder of the class that its name ends on."""
        label = name.rsplit("_", 1)[-1].split(".")[0].lower()
        return self.add(f"{self.training}/fold_{fold}/{label}/{name}", content)

    def prelim_list(self, rows: Sequence[str], header: str = "Patient_ID,new_names,labels") -> Path:
        """Writes the preliminary phase's CSV beside its folder."""
        return self.add(f"{self.prelim}_labels.csv", "\n".join([header, *rows, ""]).encode())

    def write(self, finals: int = 12) -> Path:
        """Adds two subjects, two preliminary and some final images."""
        self.train(0, "UID_1_1_1_all.bmp", b"one")
        self.train(1, "UID_H2_1_1_hem.bmp", b"two")
        self.add(f"{self.prelim}/1.bmp", b"three")
        self.add(f"{self.prelim}/2.bmp", b"four")
        self.prelim_list(["UID_57_29_1_all.bmp,1.bmp,1", "UID_H30_2_1_hem.bmp,2.bmp,0"])
        for number in range(1, finals + 1):
            self.add(f"{self.final}/{number}.bmp")
        return self.root


@pytest.fixture
def cnmc_input(tmp_path: Path) -> CnmcInput:
    """A C-NMC folder to be filled, below the command lines' working folder."""
    return CnmcInput(tmp_path / "work" / "input" / "cnmc")


@dataclass(frozen=True)
class Commands:
    """Calls the scripts as a user would, in a working folder and with a home of their own.

    Attributes:
        cwd: The working folder.
        home: The home folder; programs are found in its ``bin`` alone.
    """

    cwd: Path
    home: Path

    @property
    def path(self) -> str:
        """Where programs are looked for."""
        return str(self.home / "bin")

    def run(self, script: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Runs one script to its end."""
        environment = {"PATH": self.path, "HOME": str(self.home), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        return run_script(SCRIPTS / script, [str(argument) for argument in arguments], self.cwd, environment)

    def succeed(self, script: str, *arguments: str | Path) -> str:
        """Runs one script that must succeed, and returns what it printed."""
        done = self.run(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, script: str, *arguments: str | Path, untouched: bool = True) -> str:
        """Runs one script that must end on one line and exit code 2, and returns that line.

        With ``untouched``, not so much as an empty folder may have been left behind.
        """
        before = self.tree()
        done = self.run(script, *arguments)
        lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("decoding images:")]
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        if untouched:
            assert self.tree() == before
        return lines[0]

    def tree(self) -> dict[str, bytes | None]:
        """Returns all files with their content and all folders of the working folder."""
        paths = sorted(self.cwd.rglob("*"))
        return {str(path.relative_to(self.cwd)): path.read_bytes() if path.is_file() else None for path in paths}

    def fake_kaggle(self, *lines: str) -> None:
        """Puts a ``kaggle`` on the path that notes its arguments in ``calls`` and runs some shell lines."""
        program = self.home / "bin" / "kaggle"
        program.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {self.home}/calls', *lines, ""]), encoding="utf-8")
        program.chmod(0o755)

    def sign_in(self) -> None:
        """Puts credentials where the Kaggle client looks for them."""
        (self.home / ".kaggle").mkdir()
        (self.home / ".kaggle" / "kaggle.json").write_text("{}", encoding="utf-8")

    def kaggle_calls(self) -> list[str]:
        """Returns the arguments of the fake client's calls."""
        calls = self.home / "calls"
        return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The scripts, in an empty working folder; this process's home and path are the same ones."""
    made = Commands(tmp_path / "work", tmp_path / "home")
    made.cwd.mkdir(exist_ok=True)
    (made.home / "bin").mkdir(parents=True)
    for program in ("cp", "git", "mkdir"):  # all that the scripts and the fake client call: no real client is found
        found = shutil.which(program)
        if found:
            (made.home / "bin" / program).symlink_to(found)
    for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setenv("HOME", str(made.home))
    return made


@dataclass(frozen=True)
class MadeRun:
    """A run made by hand: what it holds, by image.

    Attributes:
        folder: Where it lies.
        labels: Class index of each labelled image.
        folds: Fold of each labelled image.
        logits: Out-of-fold logits of each labelled image in a trained fold.
        test: Per trained fold, the logits of each test image.
    """

    folder: RunFolder
    labels: dict[str, int]
    folds: dict[str, int]
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    test: list[dict[str, np.ndarray]] = field(default_factory=list)

    def mean_test(self, image_id: str) -> np.ndarray:
        """Averages one test image's logits over the folds."""
        return np.asarray(np.mean([fold[image_id].astype(np.float64) for fold in self.test], axis=0))


@dataclass(frozen=True)
class RunMaker:
    """Writes run folders as training leaves them, with logits drawn from a seed.

    Attributes:
        root: Folder of all runs.
        source: The competition's input folder.
        competition: Its name.
        test_ids: Its test images.
    """

    root: Path
    source: Path
    competition: str
    test_ids: Sequence[str]

    def make(
        self,
        name: str,
        seed: int = 0,
        trained: Sequence[int] = range(N_FOLDS),
        shift: int = 0,
        shuffled: bool = False,
        **changes: Any,
    ) -> MadeRun:
        """Writes one run.

        Args:
            name: The run's name.
            seed: Of its logits, and of the order of its rows.
            trained: The complete folds.
            shift: Moves every group to the fold so many further on.
            shuffled: Whether rows lie in a random order.
            **changes: Other values in the metadata, such as ``rendered`` or ``class_names``.
        """
        rng = np.random.default_rng(seed)
        meta = {**self._metadata(name), **changes}
        n_classes = len(meta["class_names"])
        ids = [f"{i:08d}.jpg" for i in range(N_LABELLED)]
        run = MadeRun(
            RunFolder(name, self.root),
            labels={image_id: i % n_classes for i, image_id in enumerate(ids)},
            folds={image_id: (i // 2 + shift) % N_FOLDS for i, image_id in enumerate(ids)},
        )
        groups = [f"g{i // 2}" for i in range(N_LABELLED)]
        split = pd.DataFrame({"image_id": ids, "group": groups, "fold": list(run.folds.values())})
        for k in trained:
            held_out = [image_id for image_id in ids if run.folds[image_id] == k]
            oof, test = (
                {image_id: rng.normal(size=n_classes).astype(np.float32) for image_id in some}
                for some in (held_out, self.test_ids)
            )
            for image_id in held_out:
                oof[image_id][run.labels[image_id]] += 1
            run.logits.update(oof)
            run.test.append(test)
            run.folder.begin_fold(k, {**meta, "fold": k}, split)
            order = rng.permutation(held_out).tolist() if shuffled else held_out
            test_order = rng.permutation(list(self.test_ids)).tolist() if shuffled and k == trained[0] else None
            run.folder.finish_fold(
                k,
                _predictions(oof, order, meta["class_names"], run.labels),
                _predictions(test, test_order or self._test_order(run), meta["class_names"], None),
                {"macro_f1": 0.5},
            )
        return run

    def _test_order(self, run: MadeRun) -> list[str]:
        """All folds of a run keep the order of its first one."""
        complete = run.folder.complete_folds()
        first = run.folder.fold(complete[0]).predictions("test").image_id if complete else self.test_ids
        return [str(image_id) for image_id in first]

    def _metadata(self, name: str) -> dict[str, Any]:
        competition = get_competition(self.competition)
        config = Config(folds=FoldsConfig(count=N_FOLDS))
        return {
            "run": name,
            "competition": competition.name,
            "metric": competition.metric,
            "class_names": list(competition.class_names),
            "rendered": False,
            "debug": False,
            "split_by": "group",
            "input": str(self.source),
            "data_fingerprint": "0123456789abcdef",
            "config_digest": config.digest(),
            "config": config.resolved(),
            "commit": "unknown",
            "versions": {"python": "3"},
            "precision": "no",
            "device": "cpu",
            "processes": 1,
        }


def _predictions(
    logits: Mapping[str, np.ndarray], order: Sequence[str], class_names: Sequence[str], labels: Mapping[str, int] | None
) -> Predictions:
    return Predictions(
        image_id=np.array(order, dtype=str),
        logits=np.array([logits[image_id] for image_id in order], dtype=np.float32),
        single_view=np.array([logits[image_id] for image_id in order], dtype=np.float32)[:, ::-1].copy(),
        class_names=tuple(class_names),
        group=np.array([f"g{int(image_id[:8]) // 2}" if labels else "" for image_id in order]),
        is_external=np.zeros(len(order), bool),
        label=np.array([labels[image_id] for image_id in order], dtype=np.int64) if labels else None,
    )


@pytest.fixture
def wbc_runs(wbc: WbcInput, commands: Commands) -> RunMaker:
    """A maker of WBCBench runs whose input is written."""
    root = wbc.write()
    return RunMaker(commands.cwd / "oof", root, "wbcbench", ["04000009.jpg", "04000002.jpg", "04000005.jpg"])


@pytest.fixture
def cnmc_runs(cnmc_input: CnmcInput, commands: Commands) -> RunMaker:
    """A maker of C-NMC runs whose input is written."""
    root = cnmc_input.write()
    return RunMaker(commands.cwd / "oof", root, "cnmc", [f"{number}.bmp" for number in range(1, 13)])
