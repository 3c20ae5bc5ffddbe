"""The benchmarks' own arithmetic, files and refusals, on the smallest sizes; no test asserts a time."""

import json
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from leukofold.benchmarks import predicting, scaling, start_up
from leukofold.benchmarks.images import denoise
from leukofold.benchmarks.measuring import Report, take_turns
from leukofold.benchmarks.plain import OwnProcess
from leukofold.benchmarks.training import train
from leukofold.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

TINY = """
image: {size: 32}
model: {backbone: test_resnet, pretrained: false, head: linear}
training: {batch_size: 8, precision: 'no'}
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Calls the script; returns what it saved."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--out", "."])
    runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")
    saved: dict[str, Any] = json.loads(Path(f"{arguments[0]}.json").read_text(encoding="utf-8"))
    return saved


def by_name(report: Report | dict[str, Any]) -> dict[str, Any]:
    """The results by their name."""
    results = report.results if isinstance(report, Report) else report["results"]
    return {row["name"]: row for row in results}


def test_ways_take_turns() -> None:
    calls: list[str] = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert {name: taken.shape for name, taken in seconds.items()} == {"a": (3,), "b": (3,)}


def test_a_report_says_what_it_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("what", "python scripts/benchmark.py what")
    report.begin("ten images")
    report.add_rate("one way", 10, 4.0)
    report.add_ratio("one / other", 2.0, 3.0)
    report.not_measured("GPU", "none here", "python other.py")
    said = capsys.readouterr().out
    assert said.startswith("ten images\n  one way ")
    assert "      2.5 images/s   400.000 ms per image     4.00 s\n" in said
    assert "     2.00 times as fast  (aimed at: 3 times; not met)\n" in said
    assert "not measured: none here; python other.py\n" in said
    saved = json.loads(report.save(tmp_path).read_text(encoding="utf-8"))
    assert saved["results"] == [
        {"of": "ten images", "name": "one way", "images": 10, "seconds": 4.0, "images_per_second": 2.5},
        {"of": "ten images", "name": "one / other", "ratio": 2.0, "target": 3.0},
        {"of": "ten images", "name": "GPU", "not_measured": "none here", "command": "python other.py"},
    ]
    assert saved["versions"]["torch"] == torch.__version__.split("+")[0]
    assert saved["machine"]["cores"] >= 1


def test_training_is_compared_with_the_plain_loop_and_split_into_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.setattr("leukofold.benchmarks.training.TURNS", 1)
    saved = run(monkeypatch, "train", "--config", "tiny.yaml", "--images", "60")
    found = by_name(saved)
    ours, plain = (found[f"{name}, an epoch"] for name in ("our trainer", "PyTorch + timm + torchvision"))
    assert ours["images"] == plain["images"] == 48  # 4 of 5 folds, in whole batches of 8
    assert found["ours / plain"]["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    parts = [row for row in saved["results"] if row["of"].startswith("where a step goes")]
    names = ["waiting for data", "transfer", "forward", "backward", "optimiser", "EMA", "everything else"]
    assert [row["name"] for row in parts][:7] == names
    assert sum(row["share"] for row in parts[:7]) == pytest.approx(1)


def test_the_test_pass_agrees_with_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "wbcbench" / "paper001"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predicting, "NETWORKS", ("tiny",))
    monkeypatch.setattr(predicting, "CONFIG_FOLDER", tmp_path)
    monkeypatch.setattr(predicting, "MATRIX", {"cpu": 64})
    saved = run(monkeypatch, "test_pass", "--images", "10")
    assert saved["results"][0]["of"].startswith("1 networks of 3 folds, 8 views, 10 images from their files")
    found = by_name(saved)
    ours, plain = found["ours"], found["plain loop over models and views"]
    assert found["ours / plain loop"]["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert found["both predict the same class of"]["agreement"] >= 0.8  # of images resized by OpenCV and by Pillow
    arithmetic = found["ours, arithmetic"]
    share = arithmetic["flop_per_second"] / arithmetic["matrix_flop_per_second"]
    assert arithmetic["share_of_matrix_rate"] == pytest.approx(share)


def test_outputs_of_denoising_that_count_as_equal_are_equal_to_45_decibels() -> None:
    report = Report("denoise", "")
    denoise(report, 1)
    between = {row["of"]: row["ours_to_scikit_image"] for row in report.results if row["name"] == "PSNR in dB"}
    assert len(between) == 9
    assert all(value > 45 for title, value in between.items() if "patch 3" not in title)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for the launched trainings: writes the histories that they would; returns the commands."""
    commands: list[list[str]] = []

    def train(command: list[str], cwd: Path, **_: Any) -> Any:
        commands.append(command)
        processes = int(command[command.index("--nproc_per_node") + 1])
        apart = "--fold-per-process" in command
        name = command[command.index("--run-name") + 1]
        for fold in range(processes if apart else 1):
            folder = cwd / "oof" / name / f"fold{fold}"
            folder.mkdir(parents=True)
            rate = {1: 100.0, 2: 80.0 if not apart else 45.0, 4: 60.0 if not apart else 20.0}[processes]
            table = pd.DataFrame({"epoch": [1, 2, 3], "images_per_second": [1.0, rate - 5, rate + 5]})
            table.to_csv(folder / "history.csv", index=False)
        return type("Done", (), {"returncode": 0})()

    monkeypatch.setattr("leukofold.benchmarks.scaling.subprocess.run", train)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return commands


def test_losses_are_counted_from_what_one_process_does_on_all_cores(trainings: list[list[str]]) -> None:
    report = Report("scaling", "")
    scaling.scaling(report, 60, None, ["image.size=32"])
    loss = {name: round(row["loss"], 6) for name, row in by_name(report).items()}
    assert loss == {
        "1 process": 0.0,
        "2 processes, one fold together": 0.2,
        "2 processes, a fold each": 0.1,
        "4 processes, one fold together": 0.4,
        "4 processes, a fold each": 0.2,
    }
    assert trainings[4][-6:] == ["--fold", "0", "1", "2", "3", "--fold-per-process"]
    parser = runpy.run_path(str(SCRIPTS / "train_fold.py"))["parse_arguments"]
    for command in trainings:
        arguments = command[command.index(str(SCRIPTS / "train_fold.py")) :]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            assert parser().run.startswith("scaling-")


def test_the_first_counted_batch_is_the_first_step() -> None:
    assert not start_up.FIRST_BATCH.search("fold 0 epoch 1 training:   0%|          | 0/64 [00:00<?, ?image/")
    assert start_up.FIRST_BATCH.search("fold 0 epoch 1 training:  50%|#####     | 32/64 [00:00<00:00, 76.04image/")
    assert not start_up.FIRST_BATCH.search("preparing images:  50%|#####     | 32/64 [00:00<00:00, 76.04image/")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cache", "--images", "5"], "--images 5: give at least 30"),
        (["train", "--run", "x"], "--run: of latency alone"),
        (["latency", "--run", "x", "--config", "y"], "--run: of latency alone, and in the place of --config"),
        (["train", "--precision", "bf16"], "--precision: of test_pass alone; train takes --set training.precision="),
        (["blend", "--config", "x"], "--config: latency and scaling and train take one, blend has no network"),
        (["latency", "--set", "a=1"], "--set: scaling and train take it, latency does not"),
    ],
)
def test_options_of_other_benchmarks_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")
    assert ended.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.head=mlp", "model.head"),
        ("data.competition=cnmc", "data.competition"),
        ("mixing.mixup=0.5", "mixing"),
        ("optimizer.name=lamb", "optimizer.name"),
    ],
)
def test_what_the_plain_loop_does_not_have_is_refused(override: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{key}: train compares with a plain loop, which has none of that"):
        train(Report("train", ""), 60, [], [override])


def test_work_in_a_process_of_its_own_is_done_each_time_and_tells_its_mistakes() -> None:
    with OwnProcess(partial, [5, 17].pop) as work:
        assert [work(), work()] == [17, 5]  # the list lives on there
        with pytest.raises(IndexError, match="pop from empty list"):
            work()


def test_every_benchmark_is_a_function_of_its_module() -> None:
    script = runpy.run_path(str(SCRIPTS / "benchmark.py"))
    for what, module in script["MODULES"].items():
        loaded = __import__(f"leukofold.benchmarks.{module}", fromlist=[what])
        assert callable(getattr(loaded, what))
