"""The command line of training: every mistake ends in one line, exit code 2 and nothing half-written."""

import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_fold.py"
TINY = """
data: {competition: wbcbench, root: input, workers: 0}
folds: {count: 2}
image: {size: 32}
model: {backbone: test_resnet, pretrained: false}
training: {epochs: 1, batch_size: 16}
"""


@pytest.fixture
def folder(rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with its own copy of the images and a configuration."""
    shutil.copytree(rendered_wbcbench, tmp_path / "input")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the script in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def first_image(folder: Path) -> Path:
    """An image of phase 2's training set."""
    return min((folder / "input" / "phase2" / "train").iterdir())


def remove_input(folder: Path) -> None:
    """Removes the input folder."""
    shutil.rmtree(folder / "input")


def empty_input(folder: Path) -> None:
    """Empties the input folder."""
    remove_input(folder)
    (folder / "input").mkdir()


def replace_in_list(old: str, new: str) -> Callable[[Path], None]:
    """Changes the text of a list."""

    def change(folder: Path) -> None:
        path = folder / "input" / "phase2_eval.csv"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "missing input": (remove_input, [], "input: the input folder does not exist; see input/README.md"),
    "empty input": (empty_input, [], "input: the input folder is empty; see input/README.md"),
    "no column": (replace_in_list("ID,labels", "ID,label"), [], "phase2_eval.csv: no column 'labels', only ID, label"),
    "unknown label": (replace_in_list(",SNE,", ",SEG,"), [], "phase2_eval.csv: unknown label 'SEG' at "),
    "no file": (lambda folder: first_image(folder).unlink(), [], "1 listed images have no file, input/phase2/train/"),
    "corrupt": (
        lambda folder: first_image(folder).write_text("404"),
        [],
        "1 of 122 images are unreadable: input/phase2",
    ),
    "unknown key": (
        lambda _: None,
        ["--set", "training.epoch=3"],
        "unknown key 'training.epoch'; did you mean 'epochs'?",
    ),
    "impossible fold": (lambda _: None, ["--fold", "2"], "--fold 2: no fold to train; give some of 0 1, or all"),
    "no number": (lambda _: None, ["--fold", "first"], "--fold first: no fold to train; give some of 0 1"),
    "no configuration": (lambda _: None, ["--config", "none.yaml"], "none.yaml: no such configuration file"),
    "no competition": (lambda _: None, ["--set", "data.competition=cnmcc"], "did you mean 'cnmc'?"),
    "no such backbone": (lambda _: None, ["--set", "model.backbone=resnet5"], "has no 'resnet5'; did you mean resnet"),
    "no weights": (lambda _: None, ["--set", "model.pretrained=w.pth"], "model.pretrained: w.pth: no such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    damage, arguments, message = MISTAKES[mistake]
    damage(folder)
    assert run_main(monkeypatch, "--config", "tiny.yaml", "--fold", "0", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folder / "oof").exists()


def run_script(folder: Path, *arguments: str, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the script in a process of its own, which may write no file over a limit."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    command = [sys.executable, str(SCRIPT), "--config", "tiny.yaml", "--fold", "0", *arguments]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, preexec_fn=limit, timeout=300, check=False
    )


def test_a_write_that_fails_ends_in_one_line_and_leaves_no_half_file(folder: Path) -> None:
    done = run_script(folder, file_limit=600_000)  # the weights alone are larger; a full disk fails in the same place
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: File too large: oof/tiny/fold0/best.safetensors; "
        "free some space or check the folder's rights, then run again"
    )
    assert sorted(path.name for path in (folder / "oof" / "tiny" / "fold0").iterdir()) == [
        "history.csv",
        "metadata.json",
    ]


def test_an_image_that_breaks_after_the_check_is_named_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--config", "tiny.yaml", "--fold", "0", "--debug") == 0  # the set is known to decode
    for image in (folder / "input" / "phase2" / "train").iterdir():
        times, whole = image.stat(), image.read_bytes()
        image.write_bytes(whole[:-1100] + b"0" * 1100)
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert run_main(monkeypatch, "--config", "tiny.yaml", "--fold", "0", "--set", "data.workers=1") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.fullmatch(r"error: input/phase2/train/\d+\.jpg: the file is cut short; download it again", errors[0])


def test_help_answers_without_loading_anything_heavy() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'cv2', 'pydantic', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--resume" in done.stdout
