"""The C-NMC systems of papers 002 and 004: their recipes are the papers', and their studies run at a reduced size."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import mannwhitneyu
from torch import nn

from leukofold.competitions import get_competition
from leukofold.config import CONFIG_FOLDER, load_config
from leukofold.experiment import read_competition
from leukofold.folds import assign_folds
from leukofold.gallery import augmentation_sheet
from leukofold.inference import tta_views
from leukofold.metrics import score
from leukofold.models.classifier import Classifier
from leukofold.plainyaml import read_yaml
from leukofold.runs import RunFolder
from leukofold.studies.grid import Grid, load_study
from leukofold.studies.pictures import save_pictures
from leukofold.studies.plan import make_plan
from leukofold.studies.results import collect_results
from leukofold.studies.running import train_runs
from leukofold.studies.schema import View
from leukofold.studies.table import to_markdown

CNMC, STUDIES = CONFIG_FOLDER / "cnmc", CONFIG_FOLDER / "studies"


def test_paper_002_recipe_is_the_papers() -> None:
    config = load_config([CNMC / "paper002/preliminary.yaml"])
    assert (config.image.crop, config.image.size) == (300, 300)
    assert (config.image.mean, config.image.std) == ((0, 0, 0), (1, 1, 1))
    steps = {step.name: step.model_dump() for step in config.image.augment}
    assert list(steps) == ["HorizontalFlip", "VerticalFlip", "Affine"]
    assert [step["p"] for step in steps.values()] == [0.5, 0.5, 1.0]
    assert steps["Affine"]["rotate"] == [0, 360]
    assert steps["Affine"]["translate_percent"] == [-0.2, 0.2]
    assert "scale" not in steps["Affine"]
    assert (config.model.backbone, config.model.one_logit) == ("legacy_seresnext50_32x4d.in1k", True)
    assert (config.loss.kind, config.loss.weights, config.sampler.kind) == (
        "cross_entropy", "inverse_frequency", "uniform",
    )  # fmt: skip
    optimizer, training = config.optimizer, config.training
    assert (optimizer.name, optimizer.weight_decay, optimizer.schedule) == ("adam", 0, "step")
    assert (training.epochs, training.batch_size, training.patience, training.ema_decay) == (6, 16, 6, 0)
    inference = config.inference
    assert len(tta_views(inference)) == 8
    assert (inference.tta, inference.mirrored, inference.border, inference.interpolation) == (
        "rotations", False, "black", "nearest",
    )  # fmt: skip
    assert training.validate_with_tta
    assert (config.folds.by, config.folds.splits) == ("split", ("prelim",))
    honest = load_config([CNMC / "paper002/honest.yaml"])
    assert (honest.folds.by, honest.folds.holdout) == ("group", ("prelim",))
    assert honest.model_copy(update={"folds": config.folds}) == config


def test_paper_004_recipe_is_the_papers() -> None:
    config = load_config([CNMC / "paper004/resnet50_frozen.yaml"])
    assert (config.folds.by, config.folds.count, config.folds.holdout) == ("group", 5, 0.1)
    assert config.data.splits == ("fold_0", "fold_1", "fold_2")
    published = get_competition("cnmc").published_counts
    assert sum(sum(published[split].values()) for split in config.data.splits) == 10661
    steps = {step.name: step.model_dump() for step in config.image.augment}
    assert list(steps) == ["HorizontalFlip", "VerticalFlip", "Affine", "ColorJitter", "Erasing"]
    assert (steps["Affine"]["rotate"], steps["Affine"]["scale"]) == ([-15, 15], [0.9, 1.1])
    assert steps["Affine"]["keep_ratio"]
    jitter = steps["ColorJitter"]
    assert [jitter[key] for key in ("brightness", "contrast")] == [[0.8, 1.2], [0.8, 1.2]]
    assert [jitter[key] for key in ("saturation", "hue")] == [[1, 1], [0, 0]]
    assert steps["Erasing"]["p"] == 0.1
    assert config.image.mean is None  # ImageNet's, with the weights
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.schedule) == ("adam", 1e-4, "plateau")
    training = config.training
    assert (training.epochs, training.batch_size, training.precision) == (5, 32, "auto")
    network = Classifier(config.model.model_copy(update={"pretrained": False}), config.image, 2)
    assert isinstance(network.head, nn.Sequential)
    assert [type(layer).__name__ for layer in network.head] == ["Linear", "ReLU", "Dropout", "Linear"]
    trained = {name: tuple(p.shape) for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {
        "head.0.weight": (512, 2048), "head.0.bias": (512,), "head.3.weight": (2, 512), "head.3.bias": (2,),
    }  # fmt: skip
    assert config.model.dropout == 0.5
    cached = load_config([CNMC / "paper004/resnet50_cached.yaml"])
    assert cached.training.cached_views == config.training.epochs
    unchanged = cached.training.model_copy(update={"cached_views": 0})
    assert cached.model_copy(update={"training": unchanged}) == config


@pytest.mark.parametrize("name", ["paper002/base", "paper004/base"])
def test_every_augmentation_does_something(name: str) -> None:
    config = load_config([CNMC / f"{name}.yaml"])
    picture = augmentation_sheet(config)
    cells = picture.reshape(-1, 147, *picture.shape[1:])[:, :145, 180:]
    assert len(cells) == 1 + len(config.image.augment) + 1
    assert all((row != cells[0]).mean() > 0.02 for row in cells[1:])


def reduced(name: str, root: Path, folder: Path, seeds: int = 1, *changes: str) -> Grid:
    """A published study on rendered images, with fewer seeds and a tiny network."""
    keys = read_yaml((STUDIES / f"{name}.yaml").read_text())
    keys["seeds"] = list(range(seeds))
    keys["axes"].get("recipe", {}).pop("one_rate_1e3", None)  # to save time
    keys["axes"].get("recipe", {}).pop("one_rate_1e5", None)
    copy = STUDIES / f".{name}_reduced.yaml"  # beside the original: it names files from there
    overrides = [
        f"data.root={root}",
        f"data.cache={folder / 'cache'}",
        "data.workers=0",
        "image.size=32",
        "training.epochs=1",
        *changes,
    ]
    try:
        copy.write_text(yaml.safe_dump(keys, sort_keys=False))
        return load_study(copy, name, (), overrides)
    finally:
        copy.unlink()


def test_paper_002_study_runs_and_stands_beside_the_papers_tables(rendered_cnmc: Path, tmp_path: Path) -> None:
    small = ("model.backbone=test_resnet", "model.pretrained=false")
    grid = reduced("paper002", rendered_cnmc, tmp_path, 2, *small)
    assert len(grid.runs) == 4
    root = tmp_path / "oof"
    train_runs(make_plan(grid, grid.runs, root=root), root)
    results = collect_results(grid, root, progress=False)
    values: dict[tuple[str, View], list[float]] = {}
    for run in grid.runs:
        (fold,) = RunFolder(run.name, root).complete_folds()
        part = RunFolder(run.name, root).fold(fold).predictions("oof")
        assert part.label is not None
        views: dict[View, np.ndarray] = {"tta": part.logits, "single": part.single_view}
        for view, logits in views.items():
            values.setdefault((run.levels["recipe"], view), []).append(score(part.label, logits)["weighted_f1"])
    rows = {(row.place.levels["recipe"], row.place.view): row.values["weighted_f1"] for row in results.rows}
    assert set(rows) == set(values)
    for key, found in values.items():
        assert rows[key].value == pytest.approx(np.mean(found))
        assert rows[key].std == pytest.approx(np.std(found, ddof=1))
        assert (rows[key].lowest, rows[key].highest) == (min(found), max(found))
    for comparison in results.comparisons:
        own = values[comparison.place.levels["recipe"], comparison.place.view]
        reference: tuple[str, View] = ("proposal", comparison.place.view)
        if comparison.axis == "views":
            reference = (comparison.place.levels["recipe"], "tta")
        assert comparison.p == pytest.approx(mannwhitneyu(values[reference], own, alternative="greater").pvalue)
    text = to_markdown(results)
    assert "0.8789 ± 0.0090 (0.8628 to 0.8981)" in text
    assert "OPTIMISTIC" in text
    labelled = get_competition("cnmc").read(rendered_cnmc).labelled
    prelim = labelled[labelled.split == "prelim"]
    subjects = prelim.groupby("label").group.nunique()
    for row in (
        ["Prelim. test", "hem", subjects[0], "15", (prelim.label == 0).sum(), "648"],
        ["Prelim. test", "all", subjects[1], "13", (prelim.label == 1).sum(), "1,219"],
    ):
        wanted = [str(cell) for cell in row]
        assert any(wanted == [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
    names = {path.name for path in save_pictures(results, root)}
    assert names == {"learning_curves.png", "subjects.png", "confusion.png"}


def test_paper_004_study_has_networks_and_handcrafted_features_under_both_splits(
    rendered_cnmc: Path, tmp_path: Path
) -> None:
    changes = ("folds.count=2", "folds.holdout=0.2", "model.pretrained=false")
    keys = yaml.safe_load((STUDIES / "paper004.yaml").read_text())
    assert keys["axes"]["model"]["resnet50_frozen"] == {"config": "../cnmc/paper004/resnet50_frozen.yaml"}
    grid = reduced("paper004", rendered_cnmc, tmp_path, 1, *changes, "model.backbone=test_resnet")
    root = tmp_path / "oof"
    train_runs(make_plan(grid, grid.runs, root=root), root)
    results = collect_results(grid, root, progress=False)
    assert all(row.complete for row in results.rows)
    assert len(results.rows) == 2 * 4 * 2  # scored on, models and their ensemble, splits
    for row in results.rows:
        runs = [RunFolder(name, root) for name in row.runs]
        kind = "oof" if row.place.on == "folds" else "holdout"
        each = []
        for k in (0, 1):
            parts = [run.fold(k).predictions(kind) for run in runs]
            assert parts[0].label is not None
            each.append(score(parts[0].label, np.mean([part.single_view for part in parts], axis=0))["accuracy"])
        assert row.values["accuracy"].value == pytest.approx(np.mean(each))
        assert row.values["accuracy"].std == pytest.approx(np.std(each, ddof=1))
    text = to_markdown(results)
    assert "0.9663 ± 0.0080 (to 0.9739)" in text
    assert "Image-level folds: patients cross, scores too high" in text
    labelled = read_competition(grid.runs[0].config).labelled
    assert "prelim" not in set(labelled.split)
    svm = next(run for run in grid.runs if run.levels == {"model": "svm", "split": "group"})
    folds = assign_folds(labelled, labelled.group.to_numpy(), svm.config.folds)
    assert pd.Series(folds).groupby(labelled.group.to_numpy()).nunique().max() == 1
