"""Studies: the grid, what of it is done, and the command line that trains and tells it."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from leukofold.config import CONFIG_FOLDER, Config, FoldsConfig, OptimizerConfig
from leukofold.errors import UserError
from leukofold.experiment import read_cells
from leukofold.files import write_json
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.studies.grid import Grid, Published, StudyRun, load_study
from leukofold.studies.plan import Images, count_images, duration, make_plan, plan_summary
from leukofold.studies.running import train_runs
from leukofold.training.trainer import Trainer

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "study.py"

STUDY = """
title: A small study
note: Made by hand.
base: base.yaml
axes:
  model:
    resnet: {}
    vit: {config: vit.yaml}
  split:
    group: {set: {folds.by: group}}
    image: {set: {folds.by: image, optimizer.lr: 1.0e-05}}
ensemble: model
metrics: [macro_f1, balanced_accuracy]
compare: [split, model]
published:
  - {model: vit, split: image, views: tta, macro_f1: 0.75, balanced_accuracy: 0.8}
  - {model: ensemble, split: image, views: single, macro_f1: 0.8}
"""
FILES = {
    "base.yaml": """
data: {competition: wbcbench, root: input, workers: 0}
folds: {count: 2}
image: {size: 32}
model: {backbone: test_resnet, pretrained: false}
training: {epochs: 2, batch_size: 16, ema_decay: 0.5}
inference: {tta: none}
""",
    "vit.yaml": "model: {backbone: test_vit}\ntraining: {epochs: 3}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a study and the configurations that it names."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "small.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(folder: Path, old: str = "", new: str = "", **options: Any) -> Grid:
    """Loads the study, its text changed."""
    assert old in STUDY
    (folder / "small.yaml").write_text(STUDY.replace(old, new, 1) if old else STUDY + new)
    return load_study(folder / "small.yaml", **options)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the script in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def finish(run: StudyRun, fold: int, changed: bool = False) -> None:
    """Writes what tells that a fold is done, of an input that is not there."""
    frame = pd.DataFrame({"image_id": ["1.jpg"], "group": ["g"], "fold": [fold]})
    RunFolder(run.name).begin_fold(fold, metadata(run.config, changed), frame)
    write_json(RunFolder(run.name).fold(fold).path / "metrics.json", {})


def metadata(config: Config, changed: bool = False) -> dict[str, Any]:
    """What a training notes when it begins; of other settings where they have changed since."""
    if changed:
        config = config.model_copy(update={"optimizer": OptimizerConfig(lr=0.5)})
    return {
        "config_digest": config.digest(),
        "config": config.resolved(),
        "device": "cpu",
        "processes": 1,
    }


def begin(run: StudyRun, fold: int, epochs: int, seconds: float = 10.0, rate: float = 100.0) -> None:
    """Writes a fold as an interrupted training leaves it."""
    target = RunFolder(run.name).fold(fold)
    frame = pd.DataFrame({"image_id": ["1.jpg"], "group": ["g"], "fold": [fold]})
    RunFolder(run.name).begin_fold(fold, metadata(run.config), frame)
    RunFolder(run.name).folds_csv.unlink()  # it would be of other images than the input
    target.write_history(
        [{"epoch": epoch + 1, "images_per_second": rate, "seconds": seconds} for epoch in range(epochs)]
    )
    target.state.parent.mkdir(exist_ok=True)
    target.state.write_bytes(b"")


# --- the grid ---------------------------------------------------------------------------------------------------


def test_runs_are_the_product_of_the_levels_in_order(folder: Path) -> None:
    grid = study(folder)
    assert [run.name for run in grid.runs] == [
        "studies/small/resnet-group",
        "studies/small/resnet-image",
        "studies/small/vit-group",
        "studies/small/vit-image",
    ]
    assert grid.runs[3].levels == {"model": "vit", "split": "image"}
    assert [tuple(levels.values()) for levels in grid.combinations()] == [
        ("resnet", "group"),
        ("resnet", "image"),
        ("vit", "group"),
        ("vit", "image"),
        ("ensemble", "group"),
        ("ensemble", "image"),
    ]
    members = grid.members({"model": "ensemble", "split": "image"}, 0)
    assert [run.name for run in members] == ["studies/small/resnet-image", "studies/small/vit-image"]


def test_layers_win_in_the_documented_order(folder: Path) -> None:
    (folder / "over.yaml").write_text("image: {size: 48}\ntraining: {epochs: 7}\nfolds: {by: image, count: 4}\n")
    grid = study(
        folder,
        new="set: {optimizer.lr: 0.5, image.crop: 64}\n",
        configs=[Path("over.yaml")],
        overrides=["image.size=40"],
    )
    first, _, third, last = (run.config for run in grid.runs)
    assert (first.model.backbone, last.model.backbone) == ("test_resnet", "test_vit")
    assert (third.training.epochs, third.folds.count) == (7, 4)  # --config over the levels' files
    assert (third.folds.by, last.folds.by) == ("group", "image")  # what a level sets, over --config
    assert (first.optimizer.lr, last.optimizer.lr) == (0.5, 1e-5)  # a level's over the study's
    assert {run.config.image.size for run in grid.runs} == {40}  # --set over all
    assert {run.config.image.crop for run in grid.runs} == {64}


def test_seeds_multiply_runs_and_stand_in_their_names(folder: Path) -> None:
    grid = study(folder, new="seeds: [0, 3]\n", name="elsewhere")
    assert len(grid.runs) == 8
    assert [run.name for run in grid.runs[:2]] == [
        "studies/elsewhere/resnet-group-seed0",
        "studies/elsewhere/resnet-group-seed3",
    ]
    assert [run.config.training.seed for run in grid.runs[:2]] == [0, 3]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 2))
def test_every_combination_is_a_run_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seeds: int
) -> None:
    path = tmp_path_factory.mktemp("grid") / "any.yaml"
    keys = ("image.size", "optimizer.lr", "training.epochs")
    axes = {f"axis{i}": {f"level{j}": {"set": {keys[i]: 16 + j}} for j in range(size)} for i, size in enumerate(sizes)}
    path.write_text(json.dumps({"axes": axes, "seeds": list(range(seeds))}))
    grid = load_study(path)
    assert len({run.name for run in grid.runs}) == len(grid.runs) == math.prod(sizes) * seeds
    assert len({run.config.digest() for run in grid.runs}) == len(grid.runs)
    for levels in grid.combinations():
        assert [run.levels for run in grid.members(levels, 0)] == [levels]


MISTAKES = {
    "study key": ("ensemble:", "ensembel:", "small.yaml: unknown key 'ensembel'; did you mean 'ensemble'?"),
    "level key": ("{config: vit", "{confg: vit", "axes.model.vit: unknown key 'confg'; did you mean 'config'?"),
    "config key": (
        "{folds.by: group}",
        "{folds.bye: group}",
        "small/resnet-group: --set folds.bye=group: unknown key",
    ),
    "config value": (
        "folds.by: group",
        "folds.by: smear",
        "small/resnet-group: --set folds.by=smear: folds.by: Input",
    ),
    "missing file": ("vit.yaml", "wit.yaml", "wit.yaml: no such configuration file"),
    "level name": ("    vit:", "    ViT-B:", "axes.model: 'ViT-B' is no name; take lower-case letters, digits and _"),
    "axis name": ("  split:\n", "  views:\n", "axes.views: the table has a column of that name"),
    "reserved level": ("    vit:", "    ensemble:", "axes.model: 'ensemble' is the name of averaged runs"),
    "no level": ("    resnet: {}\n    vit: {config: vit.yaml}\n", "    {}\n", "axes.model: name at least one level"),
    "ensemble axis": ("ensemble: model", "ensemble: modle", "ensemble: axis 'modle' is unknown; did you mean 'model'?"),
    "compare axis": ("[split, model]", "[spilt]", "compare: axis 'spilt' is unknown; did you mean 'split'?"),
    "metric": ("[macro_f1,", "[macro_f2,", "metrics: metric 'macro_f2' is unknown; did you mean 'macro_f1'?"),
    "view": ("note:", "views: [twice]\nnote:", "views: Input should be 'single' or 'tta', got 'twice'"),
    "repetition": ("note:", "seeds: [1, 1]\nnote:", "seeds: a value stands twice"),
    "published level": ("- {model: vit", "- {model: wit", "published row 1: level of model 'wit' is unknown; did you"),
    "published axis": ("- {model: vit, ", "- {", "published row 1: no 'model'; a row names a level of every axis"),
    "published key": ("macro_f1: 0.75", "makro_f1: 0.75", "published row 1: key 'makro_f1' is unknown; did you mean"),
    "published value": ("macro_f1: 0.75", "macro_f1: 75.1", "published row 1: macro_f1: expected a number from 0 to 1"),
    "published twice": (
        "{model: ensemble, split: image, views: single",
        "{model: vit, split: image, views: tta",
        "row 2",
    ),
    "published spread": (
        "macro_f1: 0.75",
        "macro_f1: {mean: 0.75, sd: 0.1}",
        "published row 1: macro_f1: 'sd' is unknown; did you mean 'std'?",
    ),
    "published deviation": (
        "macro_f1: 0.75",
        "macro_f1: {std: high}",
        "row 1: macro_f1: std: expected a number from 0 to 1, got 'high'",
    ),
    "published on": (
        "note:",
        "on: [folds, holdout]\nset: {folds.holdout: 0.1}\nnote:",
        "row 1: no 'on'; a row names a level of every axis, its views and what it is scored on",
    ),
    "scored on": ("note:", "on: [fold]\nnote:", "small.yaml: on: 'fold' is unknown; did you mean 'folds'?"),
    "no hold-out": ("note:", "on: [holdout]\nnote:", "on: holdout: no run has a hold-out; set folds.holdout"),
    "over": ("note:", "over: fold\nnote:", "small.yaml: over: Input should be 'pooled' or 'folds', got 'fold'"),
    "binary metric": (
        "[macro_f1,",
        "[sensitivity, macro_f1,",
        "metrics: sensitivity is of two classes, wbcbench has 13; take another one",
    ),
    "composition key": (
        "note:",
        "composition: [{prat: a}]\nnote:",
        "composition: unknown key 'prat'; did you mean 'part'?",
    ),
    "composition part": ("note:", "composition: [{splits: [a]}]\nnote:", "composition: no 'part' there"),
    "composition count": (
        "note:",
        "composition: [{part: a, splits: [phase2_eval], images: {BA: -1}}]\nnote:",
        "small.yaml: composition: Input should be greater than or equal to 0, got -1",
    ),
    "composition split": (
        "note:",
        "composition: [{part: Eval, splits: [phase2_evil]}]\nnote:",
        "composition: Eval: split 'phase2_evil' is unknown; did you mean 'phase2_eval'?",
    ),
    "composition class": (
        "note:",
        "composition: [{part: Eval, splits: [phase2_eval], groups: {BB: 3}}]\nnote:",
        "composition: Eval: class 'BB' is unknown; known ones: BA, BL",
    ),
    "same runs": ("{folds.by: image, optimizer.lr: 1.0e-05}", "{folds.by: group}", "have the same configuration"),
}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_study_is_named(folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        study(folder, old, new)


def test_what_is_scored_on_may_stand_without_quotes(folder: Path) -> None:
    rows = "published: [{model: vit, split: group, views: tta, on: holdout, macro_f1: {mean: 0.5, max: 0.6}}]\n"
    text = STUDY[: STUDY.index("published:")] + "on: [folds, holdout]\nset: {folds.holdout: 0.1}\n" + rows
    (folder / "on.yaml").write_text(text)
    grid = load_study(folder / "on.yaml")
    assert grid.study.on == ("folds", "holdout")
    levels = {"model": "vit", "split": "group"}
    assert grid.published(levels, "holdout", "tta", "macro_f1") == Published(0.5, max=0.6)
    assert grid.published(levels, "folds", "tta", "macro_f1") == Published()


def test_metrics_of_two_classes_go_with_two_classes(folder: Path) -> None:
    grid = study(
        folder, "[macro_f1, balanced_accuracy]", "[macro_f1, balanced_accuracy, sensitivity, macro_auc]",
        overrides=["data.competition=cnmc"],
    )  # fmt: skip
    assert [grid.titles[metric] for metric in grid.study.metrics[2:]] == ["sensitivity", "AUC"]
    assert study(folder, "[macro_f1,", "[macro_auc, macro_f1,").titles["macro_auc"] == "macro AUC"


def test_only_chooses_runs_and_names_what_is_unknown(folder: Path) -> None:
    grid = study(folder)
    names = [run.name for run in grid.select(["model=vit", "split=image", "split=group"])]
    assert names == ["studies/small/vit-group", "studies/small/vit-image"]
    assert len(grid.select([])) == 4
    for word, message in (
        ("modle=vit", "--only modle=vit: axis 'modle' is unknown; did you mean 'model'?"),
        ("model=swin", "--only model=swin: level of model 'swin' is unknown; known ones: resnet, vit"),
        ("model", "--only model: level of model '' is unknown; known ones: resnet, vit"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            grid.select([word])


def test_the_studies_at_hand_are_whole() -> None:
    names = ("paper001", "demo", "acevedo", "acevedo_degraded", "acevedo_longtail")
    studies = [load_study(CONFIG_FOLDER / "studies" / f"{name}.yaml") for name in names]
    assert [len(grid.runs) for grid in studies] == [12, 12, 7, 2, 4]
    paper, demo, acevedo, *_ = studies
    assert paper.runs[0].name == "studies/paper001/swinv2-competition-group"
    assert len(paper.study.published) == 16
    best = {"model": "ensemble", "data": "expanded", "split": "image"}
    assert paper.published(best, "folds", "tta", "macro_f1") == Published(0.7798)
    assert paper.published(best, "folds", "tta", "macro_specificity") == Published(0.9945)
    assert paper.published({**best, "data": "competition"}, "folds", "single", "macro_f1") == Published(0.7666)
    assert paper.published({**best, "split": "group"}, "folds", "tta", "macro_f1") == Published()
    assert {run.config.folds.count for run in paper.runs} == {3}
    assert all(run.config.data.render and run.config.data.render.images for run in demo.runs)
    mixing = acevedo.runs[-1].config
    assert (mixing.mixing.cutmix, mixing.mixing.mixup, mixing.training.ema_decay) == (0.15, 0.15, 0.0)


# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_plan_tells_done_from_interrupted_from_open(folder: Path) -> None:
    grid = study(folder)
    resnet, other, vit, vit_image = grid.runs
    finish(resnet, 0)
    begin(resnet, 1, epochs=1)
    finish(other, 1, changed=True)
    plans = make_plan(grid, grid.runs)
    assert [[fold.state for fold in plan.folds] for plan in plans] == [
        ["done", "interrupted"],
        ["to do", "of other settings"],
        ["to do", "to do"],
        ["to do", "to do"],
    ]
    assert plans[0].folds[1].epochs == 1
    assert [fold.fold for fold in make_plan(grid, [vit], [1])[0].folds] == [1]
    text = plan_summary(grid, plans)
    assert "small: 4 run(s), 8 fold(s), 1 done" in text
    assert (
        "studies/small/resnet-group  fold 0: done; fold 1: interrupted after epoch 1 of 2, at most 10 s a fold" in text
    )
    assert text.count("input missing: input: the input folder does not exist") == 1
    assert vit_image.name in text
    with pytest.raises(UserError, match=r"--folds 2: studies/small/resnet-group has folds 0 1; give"):
        make_plan(grid, grid.runs, [2])


def test_times_come_from_the_same_run_then_from_one_of_the_same_work(folder: Path, rendered_wbcbench: Path) -> None:
    grid = study(folder, overrides=[f"data.root={rendered_wbcbench}", "inference.tta=dihedral"])
    begin(grid.runs[0], 0, epochs=1, seconds=12.0, rate=50.0)
    plans = make_plan(grid, grid.runs)
    # 110 labelled images in two folds and 12 to predict, in 8 views at a third of a training image's time
    at_the_end = (110 / 2 + 12) * 8 / 3 / 50
    assert plans[0].images == Images(110, 0, 12, 13)
    assert plans[0].seconds(plans[0].folds[0]) == pytest.approx(1 * 12 + at_the_end)
    assert plans[1].seconds(plans[1].folds[0]) == pytest.approx(2 * 12 + at_the_end)
    assert plans[1].pace is not None
    assert plans[1].pace.source == "times as in studies/small/resnet-group fold0 (1 process(es) on cpu)"
    assert plans[2].pace is None  # another network
    begin(grid.runs[1], 1, epochs=2, seconds=30.0)
    history = RunFolder(grid.runs[0].name).fold(0).history
    os.utime(history, (history.stat().st_atime, history.stat().st_mtime + 60))  # newer, but of another run
    own = make_plan(grid, grid.runs)[1].pace
    assert own is not None
    assert own.epoch == 30.0


def test_networks_that_nothing_is_known_of_are_timed(folder: Path, rendered_wbcbench: Path) -> None:
    torch.set_num_threads(1)
    grid = study(folder, overrides=[f"data.root={rendered_wbcbench}"])
    plans = make_plan(grid, grid.select(["split=group"]), probe=True)
    for plan in plans:
        assert plan.pace is not None
        assert 1e-5 < plan.pace.image < 10
        # half the images trained on, half scored after each epoch, half and the test set at the end
        images = plan.run.config.training.epochs * (55 + 55 / 3) + (55 + 12) / 3
        assert plan.seconds(plan.folds[0]) == pytest.approx(images * plan.pace.image)
    assert "times probed: test_vit at 32 pixels on cpu, the network alone" in plan_summary(grid, plans)
    assert plans[0].pace != plans[1].pace


def test_images_still_to_be_rendered_are_counted_as_planned(tmp_path: Path) -> None:
    external = {"acevedo": {"root": tmp_path / "b", "render": {"images": 30}, "partial": True}}
    data = {"root": tmp_path / "a", "render": {"images": 300, "test_images": 20}, "external": external}
    config = Config.model_validate({"data": data, "folds": {"count": 3}})
    images, missing = count_images(config)
    assert (images, missing) == (Images(300, 30, 20, 13), "")
    assert images is not None
    assert images.per_fold(config) == (220, 100, 110 + 20)
    everywhere = config.model_copy(update={"folds": config.folds.model_copy(update={"external": "train"})})
    assert images.per_fold(everywhere) == (230, 100, 100 + 20)
    counted = Images(300, 0, 20, 2, splits={"train": 240, "prelim": 60})
    held_out = Config(folds=FoldsConfig(by="split", splits=("prelim",)))
    assert counted.per_fold(held_out) == (240, 60, 60 + 20)
    honest = Config(folds=FoldsConfig(count=4, holdout="prelim"))
    assert counted.per_fold(honest) == (180, 60, 60 + 20 + 60)
    share = Config(folds=FoldsConfig(count=3, holdout=0.1))
    assert counted.per_fold(share) == (180, 90, 90 + 20 + 30)
    assert not list(tmp_path.iterdir())


def test_durations_read_well() -> None:
    assert [duration(seconds) for seconds in (0, 89, 90, 3599, 5400, 360_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "60 min",
        "1.5 h",
        "100.0 h",
    ]


# --- the command line -------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_nothing_behind(
    folder: Path, rendered_wbcbench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "input").symlink_to(rendered_wbcbench)
    before = sorted(folder.rglob("*"))
    assert run_main(monkeypatch, "small.yaml", "--dry-run", "--only", "model=resnet", "--folds", "1") == 0
    out = capsys.readouterr().out
    assert "small: 2 run(s), 2 fold(s), 0 done" in out
    assert re.search(r"studies/small/resnet-image  fold 1: to do, at most \d+ (s|min) a fold \[1\]", out)
    assert re.search(r"total: at most \d+ (s|min)$", out.strip())
    (folder / "input").unlink()
    assert run_main(monkeypatch, "small.yaml", "--dry-run") == 0  # a plan, not a fault
    out = capsys.readouterr().out
    assert "[1] input missing: input: the input folder does not exist" in out
    assert out.endswith("total: 8 fold(s) whose time is not known\n")
    assert sorted(folder.rglob("*")) == [path for path in before if path.name != "input"]


CALLS: dict[str, tuple[list[str], str]] = {
    "no study": (["none.yaml"], "none.yaml: no such configuration file"),
    "no input": (["small.yaml"], "studies/small/resnet-group: input: the input folder does not exist"),
    "unknown level": (["small.yaml", "--only", "split=smear"], "--only split=smear: level of split 'smear' is unknown"),
    "no such fold": (
        ["small.yaml", "--folds", "5"],
        "--folds 5: studies/small/resnet-group has folds 0 1; give",
    ),
    "bad setting": (["small.yaml", "--set", "image.sise=64"], "--set image.sise=64: unknown key 'image.sise'; did you"),
    "bad name": (["small.yaml", "--name", "../out"], "a run's name is a path below oof/"),
    "loose word": (["small.yaml", "--set", "model.backbone=test_vit", "training.epochs=1"], "unrecognized arguments"),
}


@pytest.mark.parametrize(("arguments", "message"), CALLS.values(), ids=CALLS)
def test_a_mistake_in_the_call_ends_in_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.rglob("*"))
    assert run_main(monkeypatch, *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert message in last
    assert sorted(folder.rglob("*")) == before


def test_a_fold_of_other_settings_is_refused_before_anything_is_trained(
    folder: Path, rendered_wbcbench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "input").symlink_to(rendered_wbcbench)
    finish(study(folder).runs[3], 1, changed=True)
    monkeypatch.setattr("leukofold.studies.running.train_folds", lambda *_, **__: pytest.fail("trained"))
    assert run_main(monkeypatch, "small.yaml") == 2
    assert capsys.readouterr().err == (
        "error: studies/small/vit-image: fold 1 was trained with other settings than the study's now; give the study "
        "another name with --name NAME, or delete oof/studies/small/vit-image\n"
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Notes every epoch that is trained: the run's name and the fold."""
    trained: list[tuple[str, int]] = []
    epoch: Callable[[Trainer], None] = Trainer._epoch

    def noted(trainer: Trainer) -> None:
        trained.append((trainer.experiment.run.name, trainer.fold))
        epoch(trainer)

    monkeypatch.setattr(Trainer, "_epoch", noted)
    return trained


def test_a_study_trains_what_is_open_and_nothing_twice(
    folder: Path,
    rendered_wbcbench: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[tuple[str, int]],
) -> None:
    (folder / "input").symlink_to(rendered_wbcbench)
    resnet = ["small.yaml", "--only", "model=resnet", "--set", "training.epochs=1"]
    assert run_main(monkeypatch, *resnet, "--folds", "0") == 0
    assert "| 1/2 partial |" in capsys.readouterr().out
    assert run_main(monkeypatch, *resnet) == 0
    assert sorted(calls) == [(f"studies/small/resnet-{split}", fold) for split in ("group", "image") for fold in (0, 1)]
    out = capsys.readouterr().out
    assert "studies/small/resnet-group  fold 0: done; fold 1: to do" in out
    assert "RENDERED images: these numbers say nothing about patients" in out
    pictures = sorted(str(path) for path in Path("oof/studies/small/figures").iterdir())
    assert [Path(path).name for path in pictures] == ["confusion.png", "learning_curves.png", "subjects.png"]
    assert sorted(out.splitlines()[-1].removeprefix("pictures: ").split(", ")) == pictures
    table = pd.read_csv("oof/studies/small/table.csv").set_index(["model", "split", "views", "metric"])
    row = table.loc[[("resnet", "group", "tta", "macro_f1")]].iloc[0]
    oof = [RunFolder("studies/small/resnet-group").fold(k).predictions("oof") for k in (0, 1)]
    label, logits = (np.concatenate([getattr(part, name) for part in oof]) for name in ("label", "logits"))
    expected = f1_score(label, logits.argmax(1), labels=range(13), average="macro", zero_division=0)
    assert row.value == pytest.approx(expected)
    assert (row.folds, row.images, row.rendered) == ("2/2", 110, "yes")
    calls.clear()
    monkeypatch.setattr("leukofold.studies.pictures.save_pictures", lambda _: [])  # drawn once is enough
    assert run_main(monkeypatch, *resnet) == 0
    assert calls == []
    assert "total: nothing is left to do" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in Path("oof").rglob("fold*/*")}
    monkeypatch.setattr("leukofold.studies.running.train_folds", lambda *_, **__: pytest.fail("trained"))
    assert run_main(monkeypatch, "small.yaml", "--table", "--set", "training.epochs=1") == 0
    assert {path: path.stat().st_mtime_ns for path in Path("oof").rglob("fold*/*")} == times


def test_a_mistake_within_a_run_is_told_with_its_name(
    folder: Path, rendered_wbcbench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "input").symlink_to(rendered_wbcbench)
    assert run_main(monkeypatch, "small.yaml", "--set", "model.pretrained=none.pth") == 2
    assert re.match(r"error: studies/small/resnet-group: .*none\.pth", capsys.readouterr().err.splitlines()[-1])


def test_two_processes_stay_together_over_the_runs(folder: Path, rendered_wbcbench: Path) -> None:
    (folder / "input").symlink_to(rendered_wbcbench)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    settings = ["--set", "training.epochs=1", "--only", "model=vit", "--folds", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "small.yaml", *settings], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test_vit, 2 process(es) on cpu") == 2
    assert done.stdout.count("saved as oof/studies/small/table.md") == 1  # only the first process speaks
    assert [RunFolder(f"studies/small/vit-{split}").complete_folds() for split in ("group", "image")] == [[0], [0]]


def test_folds_of_other_images_are_told_and_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = folder / "few", folder / "many"
    for root, images in ((small, 60), (large, 61)):
        render("wbcbench", root, RenderSpec(images=images, test_images=4, patients=9), workers=1, progress=False)
    overrides = ["training.epochs=1", "data.render=null"]
    grid = study(folder, overrides=[*overrides, f"data.root={small}"])
    run = grid.runs[0]
    labelled = read_cells(run.config, progress=False).labelled
    metadata = {"config_digest": run.config.digest(), "config": run.config.resolved()}
    RunFolder(run.name).begin_fold(0, metadata, labelled.assign(fold=0))
    write_json(RunFolder(run.name).fold(0).path / "metrics.json", {})
    assert make_plan(grid, [run])[0].folds[0].state == "done"
    other = study(folder, overrides=[*overrides, f"data.root={large}"])
    plans = make_plan(other, [other.runs[0]])
    assert plans[0].folds[0].state == "of other images"
    monkeypatch.setattr("leukofold.studies.running.train_folds", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"fold 0 was trained with other images than the study's now; give the study"):
        train_runs(plans)
