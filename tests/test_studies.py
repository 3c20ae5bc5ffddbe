"""Studies: the grid, what of it is done, and a table whose numbers an independent reference confirms."""

import io
import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from leukofold.config import CONFIG_FOLDER, Config
from leukofold.errors import UserError
from leukofold.experiment import read_cells
from leukofold.files import write_json
from leukofold.metrics import interval
from leukofold.rendering import RenderSpec, render
from leukofold.runs import Predictions, RunFolder
from leukofold.studies.grid import RESULT_COLUMNS, Grid, StudyRun, load_study
from leukofold.studies.plan import Images, count_images, duration, make_plan, plan_summary
from leukofold.studies.results import collect_results
from leukofold.studies.running import train_runs
from leukofold.studies.table import to_csv, to_markdown, write_tables
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
CLASSES = ("BA", "BL", "EO")


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


def make_run(
    run: StudyRun, folds: Sequence[int] = (0, 1), images: int = 40, digest: str | None = None, rendered: bool = False
) -> Predictions:
    """Writes a run as training leaves it, a third of its images external; returns the competition's rows."""
    rng = np.random.default_rng([len(run.name), *run.name.encode()])
    split = np.random.default_rng(5).permutation(images) % 2
    external = np.arange(images) % 3 == 2
    label = np.arange(images) // 3 % 3
    logits = rng.normal(size=(images, 2, 3)).astype(np.float32)
    logits[np.arange(images), :, label] += 1
    ids = np.array([f"{number:08d}.jpg" for number in range(images)])
    group = np.array([f"g{number // 4}" for number in range(images)])

    def predictions(rows: np.ndarray, labelled: bool = True) -> Predictions:
        return Predictions(
            ids[rows],
            logits[rows, 0],
            logits[rows, 1],
            CLASSES,
            group[rows],
            external[rows],
            label[rows] if labelled else None,
        )

    frame = pd.DataFrame({"image_id": ids, "group": group, "fold": split})
    for k in folds:
        RunFolder(run.name).begin_fold(k, metadata(run.config, digest, rendered), frame)
        held_out = np.random.default_rng(k).permutation(np.flatnonzero(split == k))
        RunFolder(run.name).finish_fold(k, predictions(held_out), predictions(np.arange(3), False), {"macro_f1": 0.5})
    return predictions(np.flatnonzero(~external & np.isin(split, folds)))


def metadata(config: Config, digest: str | None = None, rendered: bool = False) -> dict[str, Any]:
    """What a training notes when it begins."""
    return {
        "competition": "wbcbench",
        "metric": "macro_f1",
        "class_names": list(CLASSES),
        "rendered": rendered,
        "split_by": config.folds.by,
        "data_fingerprint": "0123456789abcdef",
        "debug": False,
        "input": "input/wbcbench",
        "config_digest": digest or config.digest(),
        "config": config.resolved(),
        "commit": "unknown",
        "versions": {},
        "precision": "no",
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
    "same runs": ("{folds.by: image, optimizer.lr: 1.0e-05}", "{folds.by: group}", "have the same configuration"),
}


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_study_is_named(folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        study(folder, old, new)


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
    assert paper.published(best, "tta", "macro_f1") == 0.7798
    assert paper.published(best, "tta", "macro_specificity") == 0.9945
    assert paper.published({**best, "data": "competition"}, "single", "macro_f1") == 0.7666
    assert paper.published({**best, "split": "group"}, "tta", "macro_f1") is None
    assert {run.config.folds.count for run in paper.runs} == {3}
    assert all(run.config.data.render and run.config.data.render.images for run in demo.runs)
    mixing = acevedo.runs[-1].config
    assert (mixing.mixing.cutmix, mixing.mixing.mixup, mixing.training.ema_decay) == (0.15, 0.15, 0.0)


# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_plan_tells_done_from_interrupted_from_open(folder: Path) -> None:
    grid = study(folder)
    resnet, other, vit, vit_image = grid.runs
    make_run(resnet, folds=[0])
    begin(resnet, 1, epochs=1)
    make_run(other, folds=[1], digest="0" * 16)
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


# --- the table --------------------------------------------------------------------------------------------------


def macro_f1(oof: Predictions, logits: np.ndarray) -> float:
    """Scikit-learn's."""
    assert oof.label is not None
    return float(f1_score(oof.label, logits.argmax(1), labels=range(3), average="macro", zero_division=0))


def entry(table: pd.DataFrame, *key: str) -> Any:
    """One row of ``table.csv`` by its index."""
    return table.loc[[key]].iloc[0]


def test_rows_hold_the_scores_of_the_competitions_images(folder: Path) -> None:
    grid = study(folder)
    made = {tuple(run.levels.values()): make_run(run) for run in grid.runs}
    results = collect_results(grid, progress=False)
    assert [row.view for row in results.rows] == ["single"] * 6 + ["tta"] * 6
    for row in results.rows:
        model, split = row.levels.values()
        models = ["resnet", "vit"] if model == "ensemble" else [model]
        oofs = [made[name, split] for name in models]
        logits = np.mean([oof.logits if row.view == "tta" else oof.single_view for oof in oofs], axis=0)
        label = oofs[0].label
        assert label is not None
        assert row.values["macro_f1"].value == pytest.approx(macro_f1(oofs[0], logits))
        expected = balanced_accuracy_score(label, logits.argmax(1))
        assert row.values["balanced_accuracy"].value == pytest.approx(expected)
        bootstrap = interval("macro_f1", label, logits.astype(np.float32), oofs[0].group)
        assert (row.values["macro_f1"].low, row.values["macro_f1"].high) == (bootstrap.low, bootstrap.high)
        assert (row.folds, row.folds_wanted, row.images, row.split_by) == (2, 2, 27, split)
        assert row.complete
        assert row.rendered is False
    assert results.remarks == []


def test_levels_are_compared_in_pairs(folder: Path) -> None:
    grid = study(folder)
    made = {tuple(run.levels.values()): make_run(run) for run in grid.runs}
    results = collect_results(grid, progress=False)
    # per view: split image against group for two models and the ensemble; vit and the ensemble against resnet, twice
    assert [(each.axis, each.view) for each in results.comparisons] == [
        *[("split", "single")] * 3,
        *[("split", "tta")] * 3,
        *[("model", "single")] * 4,
        *[("model", "tta")] * 4,
    ]
    found = next(
        each
        for each in results.comparisons
        if (each.axis, each.view, each.levels) == ("model", "tta", {"model": "vit", "split": "image"})
    )
    one, other = made["vit", "image"], made["resnet", "image"]
    assert one.label is not None
    assert found.reference == "resnet"
    assert found.value == pytest.approx(macro_f1(one, one.logits))
    assert found.reference_value == pytest.approx(macro_f1(other, other.logits))
    assert found.difference.value == pytest.approx(found.value - found.reference_value)
    expected = interval("macro_f1", one.label, one.logits, one.group, other.logits)
    assert (found.difference.low, found.difference.high) == (expected.low, expected.high)
    assert expected.low < found.difference.value < expected.high


def test_runs_of_different_images_are_not_compared(folder: Path) -> None:
    grid = study(folder)
    make_run(grid.runs[0])
    make_run(grid.runs[1], folds=[0])
    make_run(grid.runs[2], images=34)
    assert collect_results(grid, progress=False).comparisons == []


def test_seeds_give_mean_and_deviation(folder: Path) -> None:
    grid = study(folder, new="seeds: [0, 1, 2]\n")
    values: dict[tuple[str, ...], list[float]] = {}
    for run in grid.runs:
        oof = make_run(run)
        values.setdefault(tuple(run.levels.values()), []).append(macro_f1(oof, oof.logits))
    results = collect_results(grid, progress=False)
    row = next(row for row in results.rows if row.view == "tta" and list(row.levels.values()) == ["vit", "group"])
    value = row.values["macro_f1"]
    assert value.value == pytest.approx(np.mean(values["vit", "group"]))
    assert value.std == pytest.approx(np.std(values["vit", "group"], ddof=1))
    assert (value.low, value.high) == (None, None)
    assert (row.folds, row.folds_wanted, len(row.runs)) == (6, 6, 3)
    differences = np.subtract(values["vit", "image"], values["vit", "group"])
    found = next(
        each
        for each in results.comparisons
        if (each.axis, each.view, each.levels) == ("split", "tta", {"model": "vit", "split": "image"})
    )
    assert found.difference.value == pytest.approx(differences.mean())
    assert found.difference.std == pytest.approx(differences.std(ddof=1))
    text = to_markdown(results)
    assert f"{value.value:.4f} ± {value.std:.4f}" in text
    assert "Mean ± standard deviation over 3 seeds." in text


def test_markdown_says_what_ran_and_on_what(folder: Path) -> None:
    grid = study(folder)
    make_run(grid.runs[0], rendered=True)
    oof = make_run(grid.runs[3], folds=[1], rendered=True)
    text = to_markdown(collect_results(grid, progress=False))
    lines = text.splitlines()
    assert lines[:3] == ["# A small study", "", "Made by hand."]
    assert sum("RENDERED images: these numbers say nothing about patients" in line for line in lines) == 1
    assert sum("Image-level folds: patients cross, scores too high" in line for line in lines) == 1
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1  # aligned
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    header = ["model", "split", "views", "macro-F1", "paper", "balanced accuracy", "paper"]
    assert cells[0] == [*header, "folds", "images", "split", "rendered"]
    rows = {tuple(row[:3]): row[3:] for row in cells[2:]}
    assert len(rows) == 12
    assert rows["vit", "group", "TTA"] == ["not run", "-", "-", "-", "0/2", "0", "group", "-"]
    assert rows["ensemble", "image", "no TTA"] == ["not run", "0.8000", "-", "-", "0/2", "0", "image", "-"]
    value, paper, _, other, folds, images, split, rendered = rows["vit", "image", "TTA"]
    assert re.fullmatch(rf"{macro_f1(oof, oof.logits):.4f} \[0\.\d{{4}}, [01]\.\d{{4}}\]", value)
    assert (paper, other, folds, split, rendered) == ("0.7500", "0.8000", "1/2 partial", "image", "yes")
    assert images == str(len(oof.image_id))
    assert rows["resnet", "group", "TTA"][4] == "2/2"


def test_clean_results_carry_no_warning(folder: Path) -> None:
    grid = study(folder, "title: A small study\nnote: Made by hand.\n", "")
    make_run(grid.runs[0])
    text = to_markdown(collect_results(grid, progress=False))
    assert text.startswith("# studies/small\n\n| model ")
    assert "RENDERED" not in text
    assert "Image-level" not in text


def test_csv_is_long_and_complete(folder: Path) -> None:
    grid = study(folder)
    made = [make_run(run, rendered=True) for run in grid.runs[:3]]
    results = collect_results(grid, progress=False)
    files = write_tables(results)
    assert files == (Path("oof/studies/small/table.md"), Path("oof/studies/small/table.csv"))
    assert files[0].read_text(encoding="utf-8") == to_markdown(results)
    assert sorted(path.name for path in Path("oof/studies/small").iterdir() if path.is_file()) == [
        "table.csv",
        "table.md",
    ]
    table = pd.read_csv(io.StringIO(to_csv(results)), dtype={"folds": str})
    assert list(table.columns) == ["model", "split", *RESULT_COLUMNS]
    assert len(table) == 6 * 2 * 2
    table = table.set_index(["model", "split", "views", "metric"])
    row = entry(table, "vit", "group", "single", "macro_f1")
    assert row.value == pytest.approx(macro_f1(made[2], made[2].single_view))
    assert row.low < row.value < row.high
    assert (row.folds, row.images, row.split_by, row.rendered, row.runs) == (
        "2/2",
        27,
        "group",
        "yes",
        "studies/small/vit-group",
    )
    assert math.isnan(entry(table, "vit", "group", "single", "balanced_accuracy").low)
    absent = entry(table, "vit", "image", "tta", "balanced_accuracy")
    assert math.isnan(absent.value)
    assert (absent.published, absent.folds) == (0.8, "0/2")
    assert (
        entry(table, "ensemble", "group", "tta", "macro_f1").runs
        == "studies/small/resnet-group studies/small/vit-group"
    )
    assert entry(table, "ensemble", "image", "tta", "macro_f1").folds == "0/2"


def test_runs_that_do_not_belong_are_remarked_on(folder: Path) -> None:
    grid = study(folder)
    make_run(grid.runs[0], digest="0" * 16)
    make_run(grid.runs[1])
    make_run(grid.runs[2], images=34)
    (RunFolder(grid.runs[1].name).fold(0).path / "oof.npz").write_bytes(b"broken")
    results = collect_results(grid, progress=False)
    assert results.remarks[0] == "studies/small/resnet-group: trained with other settings than the study's now"
    assert "studies/small/resnet-image/fold0/oof.npz: not a file of predictions" in results.remarks[1]
    assert results.remarks[2].startswith(
        "no ensemble: studies/small/vit-group and studies/small/resnet-group: different split"
    )
    assert [row.folds for row in results.rows[:6]] == [2, 0, 2, 0, 0, 0]
    assert "\n- studies/small/resnet-group: trained with other settings" in to_markdown(results)


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
    make_run(study(folder).runs[3], folds=[1], digest="0" * 16)
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
    table = pd.read_csv("oof/studies/small/table.csv").set_index(["model", "split", "views", "metric"])
    row = entry(table, "resnet", "group", "tta", "macro_f1")
    oof = [RunFolder("studies/small/resnet-group").fold(k).predictions("oof") for k in (0, 1)]
    label, logits = (np.concatenate([getattr(part, name) for part in oof]) for name in ("label", "logits"))
    expected = f1_score(label, logits.argmax(1), labels=range(13), average="macro", zero_division=0)
    assert row.value == pytest.approx(expected)
    assert (row.folds, row.images, row.rendered) == ("2/2", 110, "yes")
    calls.clear()
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
