"""Studies of fusion: averaged probabilities, teachers named by level, costs, confidences, and the paper's table."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from leukofold.blending.loading import load_run
from leukofold.errors import UserError
from leukofold.figures.confidences import confidence_figure
from leukofold.figures.style import COLOURS
from leukofold.runs import RunFolder
from leukofold.studies.grid import Grid, load_study
from leukofold.studies.pictures import save_pictures
from leukofold.studies.plan import make_plan, plan_summary
from leukofold.studies.results import Results, collect_results
from leukofold.studies.running import train_runs
from leukofold.studies.table import to_csv, to_markdown

if TYPE_CHECKING:
    from tests.conftest import MultimodalInput

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SINGLE = {"one": {"set": {"data.modalities": ["Fluorescent"]}}, "two": {"set": {"data.modalities": ["Color1"]}}}
BOTH = ["Fluorescent", "Color1"]
METHODS: dict[str, dict[str, Any]] = {
    **SINGLE,
    "early": {},
    "mimo_kd": {"set": {"model.fusion": "mimo"}, "teachers": ["one", "two"]},
}

TABLE_1 = """
93.61 0.97 93.73 0.94 93.06 1.47 98.41 0.26 147.79 1.259
94.17 0.55 94.23 0.61 93.75 0.98 98.62 0.31 147.79 1.259
94.60 0.42 94.66 0.45 93.81 1.35 98.70 0.32 147.79 1.259
95.33 0.70 95.41 0.65 94.79 1.32 99.00 0.44 147.79 1.259
95.43 0.36 95.52 0.35 94.91 0.63 99.04 0.28 172.17 1.261
95.87 0.31 95.98 0.35 94.88 1.05 99.43 0.22 591.16 5.036
95.65 0.46 95.84 0.44 94.64 0.93 99.35 0.12 172.19 1.276
95.68 0.49 95.80 0.46 94.96 0.85 99.10 0.40 172.17 1.261
95.99 0.52 96.10 0.50 95.00 0.95 99.32 0.41 172.19 1.276
93.67 0.81 93.78 0.73 93.14 0.97 98.24 0.29 3670.75 21.287
94.32 0.90 94.41 0.87 93.15 1.72 98.68 0.20 3670.75 21.287
94.82 0.57 94.87 0.57 94.43 1.19 98.76 0.30 3670.75 21.287
95.48 0.52 95.55 0.47 94.89 1.23 99.04 0.22 3670.75 21.287
95.56 0.63 95.65 0.58 94.89 1.05 99.08 0.48 4024.79 21.315
96.04 0.48 96.14 0.43 95.00 1.02 99.44 0.14 14683.02 85.148
95.81 0.64 95.94 0.63 94.76 1.39 99.28 0.20 4024.80 21.323
95.84 0.51 95.92 0.49 95.30 0.63 99.17 0.23 4024.79 21.315
96.13 0.28 96.24 0.28 95.33 0.47 99.38 0.13 4024.80 21.323
"""
"""Yang et al. 2022: mean and deviation of F1, sensitivity, specificity, AUC in percent; FLOPs and parameters in M."""

IN_ITS_ORDER = (
    "fluorescent", "color1", "color2", "color3", "early", "late", "mm_mimo", "early_kd", "mm_mimo_kd",
)  # fmt: skip


def write_study(folder: Path, root: Path, methods: dict[str, Any] = METHODS, **keys: Any) -> Path:
    """Writes a study of a small network."""
    config = {
        "data": {"competition": "multimodal", "root": str(root), "cache": str(folder / "cache"), "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32, "augment": []},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 10, "ema_decay": 0, "keep": "last"},
        "inference": {"tta": "none"},
    }
    (folder / "base.yaml").write_text(json.dumps(config), encoding="utf-8")
    study = {
        "base": "base.yaml",
        "set": {"data.modalities": BOTH},
        "axes": {"method": methods},
        "ensemble": {"axis": "method", "levels": ["one", "two"], "mean": "probabilities", "name": "late"},
        "views": ["single"],
        "over": "folds",
        "metrics": ["weighted_f1", "weighted_specificity", "weighted_auc"],
        **keys,
    }
    (folder / "fusion.yaml").write_text(json.dumps(study), encoding="utf-8")
    return folder / "fusion.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study lies."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def trained(drawn_multimodal: MultimodalInput, folder: Path) -> Results:
    """A study of four methods, trained; read only."""
    published = [{"method": "late", "views": "single", "weighted_f1": 0.9, "multiply_adds": 591.16, "parameters": 5}]
    path = write_study(
        folder, drawn_multimodal.root, complexity=True, confidences={"method": "mimo_kd"}, published=published
    )
    grid = load_study(path)
    train_runs(make_plan(grid, grid.runs, root=folder), root=folder)
    return collect_results(grid, root=folder, progress=False)


def values_of(results: Results, method: str) -> dict[str, float]:
    row = next(row for row in results.rows if row.place.levels["method"] == method)
    return {metric: value.value for metric, value in row.values.items()}


def test_teachers_are_runs_of_the_same_study(trained: Results, folder: Path) -> None:
    grid = trained.grid
    assert [run.config.distillation.teachers for run in grid.runs[:3]] == [()] * 3
    taught = grid.runs[3].config.distillation
    assert list(taught.teachers) == ["studies/fusion/one", "studies/fusion/two"]
    metadata = RunFolder("studies/fusion/mimo_kd", folder).fold(1).metadata()
    assert list(metadata["teachers"]) == list(taught.teachers)
    plans = make_plan(grid, grid.runs, root=folder)
    assert "4 run(s), 8 fold(s), 8 done" in plan_summary(grid, plans)


def test_late_fusion_is_the_mean_of_the_single_networks_probabilities(trained: Results, folder: Path) -> None:
    runs = [load_run(RunFolder(f"studies/fusion/{name}", folder)) for name in ("one", "two")]
    label = runs[0].oof.label
    assert label is not None
    mean = np.mean([softmax(run.oof.single_view.astype(float), axis=1) for run in runs], axis=0)
    by_fold: dict[str, list[float]] = {"weighted_f1": [], "weighted_auc": []}
    for fold in (0, 1):
        own = runs[0].folds == fold
        truth, predicted = label[own], mean[own].argmax(axis=1)
        by_fold["weighted_f1"].append(sk.f1_score(truth, predicted, average="weighted", zero_division=0))
        by_fold["weighted_auc"].append(sk.roc_auc_score(truth, mean[own], multi_class="ovr", average="weighted"))
    found = values_of(trained, "late")
    for metric, values in by_fold.items():
        assert found[metric] == pytest.approx(np.mean(values), abs=1e-6)
    assert [row.place.levels["method"] for row in trained.rows] == ["one", "two", "early", "mimo_kd", "late"]
    assert trained.best is not None
    assert trained.best.place.levels["method"] != "late"  # no single run


def test_the_table_has_what_networks_cost(trained: Results) -> None:
    costs = {levels[0]: cost for levels, cost in trained.costs.items()}
    assert costs["late"] == costs["one"] + costs["two"]
    assert costs["mimo_kd"].parameters - costs["early"].parameters == 96 * 5 + 5  # a second head
    assert costs["mimo_kd"].multiply_adds - costs["early"].multiply_adds == 96 * 5
    text = to_markdown(trained)
    assert "Late: mean of the probabilities over method (one, two)." in text
    assert "| M multiply-adds |" in text
    (late,) = (line for line in text.splitlines() if line.startswith("| late"))
    cells = [cell.strip() for cell in late.strip("|").split("|")]
    assert f"{costs['late'].multiply_adds / 1e6:.2f}" in cells
    assert "591.16" in cells
    table = pd.read_csv(io.StringIO(to_csv(trained)))
    assert table[table.method == "early"].parameters.unique().tolist() == [costs["early"].parameters]


def test_the_heads_confidences_are_drawn_and_told(trained: Results, folder: Path) -> None:
    files = {path.name for path in save_pictures(trained, root=folder)}
    assert "confidences.png" in files
    told = [remark for remark in trained.remarks if remark.startswith("mean confidence of the heads, fed")]
    assert [remark.split(":")[0].removeprefix("mean confidence of the heads, fed ") for remark in told] == [
        "all images",
        "Fluorescent alone",
        "Color1 alone",
    ]


def test_a_panel_for_each_input_has_a_line_for_each_head() -> None:
    rng = np.random.default_rng(0)
    panels = {name: rng.uniform(0.2, 1, (50, 2)) for name in ("all images", "A alone", "B alone")}
    panels["B alone"][:, 1] = 0.5  # higher than all others
    figure = confidence_figure(panels, ["A", "B"], 5, "title", "note")
    drawn = [axes for axes in figure.axes if axes.patches]
    assert [axes.get_title(loc="left") for axes in drawn] == list(panels)
    for axes, values in zip(drawn, panels.values(), strict=True):
        for k, line in enumerate(axes.patches):
            expected = np.histogram(values[:, k], np.linspace(0.2, 1, 21))[0] / 50
            assert line.get_data().values == pytest.approx(expected)  # type: ignore[attr-defined]
            assert line.get_edgecolor()[:3] == pytest.approx([int(COLOURS[k][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > max(line.get_data().values.max() for line in axes.patches)  # type: ignore[attr-defined]
        assert [mark.get_xdata()[0] for mark in axes.lines] == pytest.approx(values.mean(axis=0))  # type: ignore[index]


@pytest.mark.parametrize(
    ("methods", "keys", "said"),
    [
        ({**SINGLE, "kd": {"teachers": ["uno"]}}, {}, "axes.method.kd.teachers: level 'uno' is unknown"),
        (
            {"kd": {"teachers": ["one"]}, **SINGLE},
            {},
            "axes.method.kd.teachers: one is trained later; put it before kd",
        ),
        (
            METHODS,
            {"ensemble": {"axis": "method", "levels": ["three"]}},
            "level of method 'three' is unknown",
        ),
        (
            METHODS,
            {"ensemble": {"axis": "method", "name": "early"}},
            "'early' is the name of averaged runs",
        ),
        (METHODS, {"ensemble": {"axis": "method", "mean": "ranks"}}, "Input should be 'logits' or 'probabilities'"),
        (METHODS, {"ensemble": {"axes": "method"}}, "ensemble: unknown key 'axes'; did you mean 'axis'"),
        (METHODS, {"confidences": {"method": "nobody"}}, "confidences: level of method 'nobody' is unknown"),
        (
            METHODS,
            {"published": [{"method": "one", "views": "single", "parameters": 1.2}]},
            "published row 1: key 'parameters' is unknown",
        ),
        (
            METHODS,
            {"complexity": True, "published": [{"method": "one", "views": "single", "parameters": "few"}]},
            "published row 1: parameters: expected a number of millions, got 'few'",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said(
    tmp_path: Path, methods: dict[str, Any], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_study(write_study(tmp_path, tmp_path / "input", methods, **keys))


def test_a_missing_teacher_is_told_before_anything_is_trained(trained: Results, folder: Path) -> None:
    grid = trained.grid
    plans = make_plan(grid, grid.select(["method=mimo_kd"]), root=folder / "elsewhere")
    with pytest.raises(UserError, match=r"mimo_kd: its teacher studies/fusion/one has no fold 0; train it"):
        train_runs(plans, root=folder / "elsewhere")
    assert not (folder / "elsewhere").exists()


def test_other_weights_of_a_teacher_are_remarked_on(trained: Results, folder: Path) -> None:
    copy = folder / "copy"
    shutil.copytree(folder / "studies", copy / "studies")
    weights = [RunFolder(f"studies/fusion/{name}", copy).fold(0).weights for name in ("one", "two")]
    shutil.copy(weights[1], weights[0])
    remarks = collect_results(trained.grid, root=copy, progress=False).remarks
    assert remarks == ["studies/fusion/mimo_kd: taught by other networks than its teachers' now: studies/fusion/one"]


def test_a_temperature_can_be_set_for_all_runs(drawn_multimodal: MultimodalInput, tmp_path: Path) -> None:
    path = write_study(tmp_path, drawn_multimodal.root)
    grid = load_study(path, overrides=["distillation.temperature=2"])
    assert {run.config.distillation.temperature for run in grid.runs} == {2.0}


def test_time_is_planned_for_heads_and_teachers(drawn_multimodal: MultimodalInput, tmp_path: Path) -> None:
    grid = load_study(write_study(tmp_path, drawn_multimodal.root))
    plans = make_plan(grid, grid.runs, probe=True, root=tmp_path / "oof")
    assert [plan.images.modalities for plan in plans if plan.images] == [1, 1, 2, 2]
    seconds = [plan.seconds(plan.folds[0]) for plan in plans]
    assert all(each is not None and each > 0 for each in seconds)
    paces = [plan.pace.source for plan in plans if plan.pace]
    assert paces[0] == paces[1] != paces[2]


def test_a_finished_training_tells_the_time_of_another_image(trained: Results, folder: Path) -> None:
    copy = folder / "timed"
    shutil.copytree(folder / "studies" / "fusion" / "one", copy / "studies" / "fusion" / "one")
    path = copy / "studies" / "fusion" / "one" / "fold0" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["config"]["model"]["fusion"]  # of an older version
    path.write_text(json.dumps(metadata))
    shutil.rmtree(copy / "studies" / "fusion" / "one" / "fold1")
    plans = make_plan(trained.grid, trained.grid.runs, root=copy)
    assert [plan.pace is not None for plan in plans] == [True, True, False, False]


@pytest.fixture(scope="module")
def paper() -> Grid:
    """The paper's study."""
    return load_study(CONFIGS / "studies" / "paper003.yaml")


def test_paper_003_has_every_published_number(paper: Grid) -> None:
    rows = [[float(number) for number in line.split()] for line in TABLE_1.split("\n") if line]
    metrics = ("weighted_f1", "weighted_recall", "weighted_specificity", "weighted_auc")
    places = [(backbone, method) for backbone in ("shufflenetv2", "resnet34") for method in IN_ITS_ORDER]
    assert len(paper.study.published) == len(rows) == 18
    for (backbone, method), row in zip(places, rows, strict=True):
        levels = {"backbone": backbone, "method": method}
        for k, metric in enumerate(metrics):
            value = paper.published(levels, "folds", "single", metric)
            assert (value.mean, value.std) == pytest.approx((row[2 * k] / 100, row[2 * k + 1] / 100))
        assert paper.published(levels, "folds", "single", "multiply_adds").mean == row[8]
        assert paper.published(levels, "folds", "single", "parameters").mean == row[9]


def test_paper_003_is_the_published_recipe(paper: Grid) -> None:
    assert len(paper.runs) == 16
    for run in paper.runs:
        config = run.config
        (augmentation,) = config.image.augment
        assert (augmentation.name, augmentation.model_extra) == (
            "RandAugment",
            {"num_ops": 2, "magnitude": 18, "p": 1.0},
        )
        assert (config.image.crop, config.image.size, config.folds.count) == (224, 224, 5)
        assert (config.loss.kind, config.mixing.cutmix, config.mixing.mixup) == ("cross_entropy", 0, 0)
        assert config.model.backbone in ("shufflenetv2_x1_0", "resnet34.tv_in1k")
        assert config.model.fusion == ("mimo" if "mimo" in run.levels["method"] else "early")
        taught = "kd" in run.levels["method"]
        assert config.distillation.temperature == 4
        assert bool(config.distillation.teachers) == taught
        if taught:
            backbone = run.levels["backbone"]
            single = ("fluorescent", "color1", "color2", "color3")
            expected = tuple(f"studies/paper003/{backbone}-{name}" for name in single)
            assert config.distillation.teachers == expected
    late = {"backbone": "resnet34", "method": "late"}
    assert [run.levels["method"] for run in paper.members(late, 0)] == ["fluorescent", "color1", "color2", "color3"]
    assert paper.is_ensemble(late)
