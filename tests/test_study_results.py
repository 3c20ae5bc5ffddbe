"""What a study finds: every number against scikit-learn, SciPy or a calculation by hand, from runs made by hand."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn import metrics as sk

from leukofold.config import OptimizerConfig
from leukofold.metrics import interval
from leukofold.runs import Predictions, RunFolder
from leukofold.studies.grid import Grid, StudyRun, load_study
from leukofold.studies.results import Comparison, Results, Row, collect_results

AXES = {
    "model": {"resnet": {}, "vit": {"set": {"model.backbone": "test_vit"}}},
    "split": {"group": {}, "image": {"set": {"folds.by": "image"}}},
}
MANY = ("BA", "BL", "EO")
TWO = ("hem", "all")


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs lie below the working folder."""
    monkeypatch.chdir(tmp_path)


def study(competition: str = "wbcbench", count: int = 2, settings: dict[str, Any] | None = None, **keys: Any) -> Grid:
    """Loads a study of two axes."""
    fixed = {"data.competition": competition, "folds.count": count, **(settings or {})}
    Path("small.yaml").write_text(json.dumps({"axes": AXES, "set": fixed, **keys}), encoding="utf-8")
    return load_study(Path("small.yaml"))


@dataclass(frozen=True)
class Made:
    """The competition's images of a run: out of each fold, and the hold-out by each fold's network."""

    folds: list[Predictions]
    holdouts: list[Predictions]

    @property
    def pooled(self) -> Predictions:
        """All images out of fold."""
        return _joined(self.folds)


def make_run(
    run: StudyRun,
    folds: Sequence[int] | None = None,
    images: int = 40,
    held: int = 0,
    changed: bool = False,
    split_seed: int = 5,
    classes: tuple[str, ...] = MANY,
) -> Made:
    """Writes a run as training leaves it, a third of its images external, ``held`` images in its hold-out."""
    rng = np.random.default_rng([len(run.name), *run.name.encode()])
    count = run.config.folds.count
    split = np.random.default_rng(split_seed).permutation(images) % count
    everything = _draw(rng, "i", images, classes)
    external = np.arange(images) % 3 == 2
    everything = replace(everything, is_external=external)
    frame = pd.DataFrame({"image_id": everything.image_id, "group": everything.group, "fold": split})
    made = Made([], [])
    for k in range(count) if folds is None else folds:
        RunFolder(run.name).begin_fold(k, _metadata(run, changed, classes), frame)
        held_out = np.random.default_rng(k).permutation(np.flatnonzero(split == k))
        test = replace(everything.rows(np.arange(3)), label=None)
        holdout = replace(_draw(rng, "h", held, classes), is_external=np.zeros(held, bool)) if held else None
        RunFolder(run.name).finish_fold(k, everything.rows(held_out), test, {"macro_f1": 0.5}, holdout)
        made.folds.append(everything.rows(np.flatnonzero((split == k) & ~external)))
        made.holdouts.extend([holdout] if holdout else [])
    return made


def _draw(rng: np.random.Generator, letter: str, images: int, classes: tuple[str, ...]) -> Predictions:
    """Draws logits of images whose labels and groups are always the same."""
    label = np.arange(images) // 3 % len(classes)
    logits = rng.normal(size=(images, 2, len(classes))).astype(np.float32)
    logits[np.arange(images), :, label] += 1
    ids = np.array([f"{letter}{number:05d}.jpg" for number in range(images)])
    group = np.array([f"{letter}{number // 4}" for number in range(images)])
    return Predictions(ids, logits[:, 0], logits[:, 1], classes, group, np.zeros(images, bool), label)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    arrays = ("image_id", "logits", "single_view", "group", "is_external", "label", "split")
    joined: dict[str, Any] = {key: np.concatenate([getattr(part, key) for part in parts]) for key in arrays}
    return replace(parts[0], **joined)


def _metadata(run: StudyRun, changed: bool, classes: tuple[str, ...]) -> dict[str, Any]:
    """What a training notes when it begins; of other settings where they have changed since."""
    config = run.config.model_copy(update={"optimizer": OptimizerConfig(lr=0.5)}) if changed else run.config
    return {
        "competition": run.config.data.competition,
        "metric": "macro_f1",
        "class_names": list(classes),
        "rendered": False,
        "split_by": run.config.folds.by,
        "data_fingerprint": "0123456789abcdef",
        "debug": False,
        "input": "input",
        "config_digest": config.digest(),
        "config": config.resolved(),
        "commit": "unknown",
        "versions": {},
        "precision": "no",
        "device": "cpu",
        "processes": 1,
    }


def labels_of(scored: Predictions) -> np.ndarray:
    assert scored.label is not None
    return scored.label


def macro_f1(scored: Predictions, logits: np.ndarray) -> float:
    """Scikit-learn's."""
    classes = range(logits.shape[1])
    return float(sk.f1_score(labels_of(scored), logits.argmax(1), labels=classes, average="macro", zero_division=0))


def row_of(results: Results, *levels: str, on: str = "folds", view: str = "tta") -> Row:
    wanted = (on, view, list(levels))
    return next(
        row for row in results.rows if (row.place.on, row.place.view, list(row.place.levels.values())) == wanted
    )


def comparison_of(results: Results, axis: str, *levels: str, on: str = "folds", view: str = "tta") -> Comparison:
    wanted = (axis, on, view, list(levels))
    return next(
        found
        for found in results.comparisons
        if (found.axis, found.place.on, found.place.view, list(found.place.levels.values())) == wanted
    )


# --- one seed, all images together -----------------------------------------------------------------------------


def test_rows_hold_the_scores_of_the_competitions_images() -> None:
    grid = study(ensemble="model", metrics=["macro_f1", "balanced_accuracy", "macro_auc"])
    made = {tuple(run.levels.values()): make_run(run).pooled for run in grid.runs}
    results = collect_results(grid, progress=False)
    assert [row.place.view for row in results.rows] == ["single"] * 6 + ["tta"] * 6
    for row in results.rows:
        model, split = row.place.levels.values()
        oofs = [made[name, split] for name in (["resnet", "vit"] if model == "ensemble" else [model])]
        logits = np.mean([oof.logits if row.place.view == "tta" else oof.single_view for oof in oofs], axis=0)
        label = labels_of(oofs[0])
        assert row.values["macro_f1"].value == pytest.approx(macro_f1(oofs[0], logits))
        expected = sk.balanced_accuracy_score(label, logits.argmax(1))
        assert row.values["balanced_accuracy"].value == pytest.approx(expected)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = sk.roc_auc_score(label, shares, multi_class="ovr", average="macro")
        assert row.values["macro_auc"].value == pytest.approx(expected, abs=1e-6)
        assert row.values["macro_auc"].low is None
        order = np.argsort(oofs[0].image_id)
        bootstrap = interval("macro_f1", label[order], logits[order].astype(np.float32), oofs[0].group[order])
        assert (row.values["macro_f1"].low, row.values["macro_f1"].high) == (bootstrap.low, bootstrap.high)
        assert (row.folds, row.folds_wanted, row.images, row.split_by) == (2, 2, 27, split)
        assert row.complete
        assert row.rendered is False
    assert results.remarks == []


def test_a_headline_of_two_classes_has_an_interval_too() -> None:
    grid = study("cnmc", metrics=["macro_auc", "sensitivity", "specificity", "precision", "f1"])
    oof = make_run(grid.runs[0], classes=TWO).pooled
    row = row_of(collect_results(grid, progress=False), "resnet", "group")
    label, predicted = labels_of(oof), oof.logits.argmax(axis=1)
    found = {metric: value.value for metric, value in row.values.items()}
    assert found == pytest.approx(
        {
            "macro_auc": sk.roc_auc_score(label, oof.logits[:, 1] - oof.logits[:, 0]),
            "sensitivity": sk.recall_score(label, predicted),
            "specificity": sk.recall_score(label, predicted, pos_label=0),
            "precision": sk.precision_score(label, predicted),
            "f1": sk.f1_score(label, predicted),
        },
        abs=1e-6,
    )
    area = row.values["macro_auc"]
    assert area.low is not None
    assert area.high is not None
    assert area.low < area.value < area.high


def test_levels_are_compared_in_pairs() -> None:
    grid = study(ensemble="model", compare=["split", "model"])
    made = {tuple(run.levels.values()): make_run(run).pooled for run in grid.runs}
    results = collect_results(grid, progress=False)
    # per view: split image against group for two models and the ensemble; vit and the ensemble against resnet, twice
    assert [(each.axis, each.place.view) for each in results.comparisons] == [
        *[("split", "single")] * 3,
        *[("split", "tta")] * 3,
        *[("model", "single")] * 4,
        *[("model", "tta")] * 4,
    ]
    found = comparison_of(results, "model", "vit", "image")
    one, other = made["vit", "image"], made["resnet", "image"]
    assert (found.reference, found.p) == ("resnet", None)
    assert found.value == pytest.approx(macro_f1(one, one.logits))
    assert found.reference_value == pytest.approx(macro_f1(other, other.logits))
    assert found.difference.value == pytest.approx(found.value - found.reference_value)
    order = np.argsort(one.image_id)
    expected = interval("macro_f1", labels_of(one)[order], one.logits[order], one.group[order], other.logits[order])
    assert (found.difference.low, found.difference.high) == (expected.low, expected.high)
    assert expected.low < found.difference.value < expected.high


def test_views_are_compared_with_the_first_one() -> None:
    grid = study(compare=["views"], views=["tta", "single"])
    made = {tuple(run.levels.values()): make_run(run).pooled for run in grid.runs}
    results = collect_results(grid, progress=False)
    assert [(each.place.view, each.reference) for each in results.comparisons] == [("single", "tta")] * 4
    found, oof = comparison_of(results, "views", "vit", "group", view="single"), made["vit", "group"]
    assert found.value == pytest.approx(macro_f1(oof, oof.single_view))
    assert found.reference_value == pytest.approx(macro_f1(oof, oof.logits))
    order = np.argsort(oof.image_id)
    expected = interval("macro_f1", labels_of(oof)[order], oof.single_view[order], oof.group[order], oof.logits[order])
    assert (found.difference.low, found.difference.high) == (expected.low, expected.high)


def test_runs_of_different_images_are_not_compared() -> None:
    grid = study(compare=["split", "model"])
    make_run(grid.runs[0])
    make_run(grid.runs[1], folds=[0])
    make_run(grid.runs[2], images=34)
    assert collect_results(grid, progress=False).comparisons == []


def test_folds_of_another_kind_are_compared_though_the_hold_out_takes_other_images() -> None:
    grid = study(compare=["split"])
    group, image = grid.runs[:2]
    one, other = make_run(group), make_run(image, images=37)
    results = collect_results(grid, progress=False)
    found = comparison_of(results, "split", "resnet", "image")
    scores = [macro_f1(made.pooled, made.pooled.logits) for made in (other, one)]
    assert (found.value, found.reference_value) == pytest.approx(scores)
    assert found.difference.value == pytest.approx(scores[0] - scores[1])
    assert (found.difference.low, found.difference.std, found.paired) == (None, None, False)


def test_runs_that_do_not_belong_are_remarked_on() -> None:
    grid = study(ensemble="model")
    make_run(grid.runs[0], changed=True)
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


# --- folds, hold-out, seeds ------------------------------------------------------------------------------------


def test_each_fold_may_be_scored_alone() -> None:
    grid = study(count=4, over="folds", metrics=["macro_f1", "accuracy"], compare=["model"], ensemble="model")
    made = {tuple(run.levels.values()): make_run(run, images=120) for run in grid.runs}
    results = collect_results(grid, progress=False)
    values = {key: [macro_f1(fold, fold.logits) for fold in run.folds] for key, run in made.items()}
    row = row_of(results, "vit", "group")
    found = row.values["macro_f1"]
    expected = values["vit", "group"]
    assert (found.value, found.std) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert (found.lowest, found.highest) == pytest.approx((min(expected), max(expected)))
    assert (found.low, found.high) == (None, None)
    right = [np.mean(fold.logits.argmax(axis=1) == fold.label) for fold in made["vit", "group"].folds]
    assert row.values["accuracy"].value == pytest.approx(np.mean(right))
    assert row.values["accuracy"].std == pytest.approx(np.std(right, ddof=1))
    pairs = zip(made["resnet", "group"].folds, made["vit", "group"].folds, strict=True)
    together = [macro_f1(one, (one.logits + other.logits) / 2) for one, other in pairs]
    assert row_of(results, "ensemble", "group").values["macro_f1"].value == pytest.approx(np.mean(together))
    difference = np.subtract(expected, values["resnet", "group"])
    compared = comparison_of(results, "model", "vit", "group").difference
    assert (compared.value, compared.std) == pytest.approx((difference.mean(), difference.std(ddof=1)))


def test_folds_of_another_split_are_no_pairs() -> None:
    grid = study(over="folds", compare=["split"])
    one, other = make_run(grid.runs[0]), make_run(grid.runs[1], split_seed=6)
    found = comparison_of(collect_results(grid, progress=False), "split", "resnet", "image").difference
    means = [np.mean([macro_f1(fold, fold.logits) for fold in run.folds]) for run in (one, other)]
    assert found.value == pytest.approx(means[1] - means[0])
    assert found.std is None


def test_the_hold_out_is_scored_by_the_mean_of_the_folds_networks() -> None:
    grid = study(
        settings={"folds.holdout": 0.1}, on=["folds", "holdout"], views=["tta"], ensemble="model", compare=["model"]
    )
    made = {tuple(run.levels.values()): make_run(run, held=24) for run in grid.runs}
    results = collect_results(grid, progress=False)
    assert [row.place.on for row in results.rows] == ["folds"] * 6 + ["holdout"] * 6
    for model, names in (("resnet", ["resnet"]), ("vit", ["vit"]), ("ensemble", ["resnet", "vit"])):
        networks = [network for name in names for network in made[name, "group"].holdouts]
        logits = np.mean([network.logits for network in networks], axis=0)
        row = row_of(results, model, "group", on="holdout")
        assert row.values["macro_f1"].value == pytest.approx(macro_f1(networks[0], logits))
        bootstrap = interval("macro_f1", labels_of(networks[0]), logits.astype(np.float32), networks[0].group)
        assert (row.values["macro_f1"].low, row.values["macro_f1"].high) == (bootstrap.low, bootstrap.high)
        assert (row.images, row.folds, row.folds_wanted) == (24, 2, 2)
    assert row_of(results, "resnet", "group").images == 27
    assert [found.place.on for found in results.comparisons] == ["folds"] * 4 + ["holdout"] * 4


def test_the_hold_out_may_be_scored_by_each_folds_network() -> None:
    grid = study(settings={"folds.holdout": 0.1}, on=["holdout"], over="folds", views=["single"])
    made = make_run(grid.runs[0], held=24)
    found = row_of(collect_results(grid, progress=False), "resnet", "group", on="holdout", view="single")
    expected = [macro_f1(network, network.single_view) for network in made.holdouts]
    assert found.values["macro_f1"].value == pytest.approx(np.mean(expected))
    assert found.values["macro_f1"].std == pytest.approx(np.std(expected, ddof=1))


def test_rows_of_runs_without_a_hold_out_are_empty() -> None:
    axes = {"share": {"none": {}, "tenth": {"set": {"folds.holdout": 0.1}}}}
    grid = study(on=["folds", "holdout"], axes=axes)
    make_run(grid.runs[0])
    results = collect_results(grid, progress=False)
    without, open_one = row_of(results, "none", on="holdout"), row_of(results, "tenth", on="holdout")
    assert (without.values, without.folds, without.folds_wanted) == ({}, 0, 0)
    assert (open_one.values, open_one.folds, open_one.folds_wanted) == ({}, 0, 2)
    assert row_of(results, "none").complete


def test_seeds_give_mean_deviation_range_and_a_test() -> None:
    grid = study(seeds=[0, 1, 2, 3], metrics=["macro_f1", "accuracy"], compare=["split"])
    values: dict[tuple[str, ...], list[float]] = {}
    for run in grid.runs:
        oof = make_run(run).pooled
        values.setdefault(tuple(run.levels.values()), []).append(macro_f1(oof, oof.logits))
    results = collect_results(grid, progress=False)
    row, group, image = row_of(results, "vit", "group"), values["vit", "group"], values["vit", "image"]
    value = row.values["macro_f1"]
    assert (value.value, value.std) == pytest.approx((np.mean(group), np.std(group, ddof=1)))
    assert (value.lowest, value.highest) == pytest.approx((min(group), max(group)))
    assert (value.low, value.high) == (None, None)
    assert row.values["accuracy"].lowest is not None
    assert (row.folds, row.folds_wanted, len(row.runs)) == (8, 8, 4)
    found = comparison_of(results, "split", "vit", "image")
    differences = np.subtract(image, group)
    assert found.difference.value == pytest.approx(differences.mean())
    assert found.difference.std == pytest.approx(differences.std(ddof=1))
    assert found.p == pytest.approx(mannwhitneyu(group, image, alternative="greater").pvalue)
    everything, ahead = np.array([*group, *image]), 0
    for chosen in itertools.combinations(range(8), 4):  # every way to call four of the eight values the first level's
        ahead += _wins(everything[list(chosen)], np.delete(everything, chosen)) >= _wins(
            np.array(group), np.array(image)
        )
    assert found.p == pytest.approx(ahead / math.comb(8, 4))


def _wins(one: np.ndarray, other: np.ndarray) -> int:
    """Counts the pairs in which the first value is higher: Mann and Whitney's U."""
    return int((one[:, None] > other).sum())


def test_each_seeds_folds_are_averaged_before_seeds_are() -> None:
    grid = study(seeds=[0, 1, 2], over="folds", axes={"only": {"one": {}}})
    made = [make_run(run) for run in grid.runs]
    means = [np.mean([macro_f1(fold, fold.logits) for fold in run.folds]) for run in made]
    found = row_of(collect_results(grid, progress=False), "one").values["macro_f1"]
    assert (found.value, found.std) == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert (found.lowest, found.highest) == pytest.approx((min(means), max(means)))


def test_one_seed_of_several_that_has_run_has_no_deviation() -> None:
    grid = study(seeds=[0, 1])
    oof = make_run(grid.runs[0]).pooled
    results = collect_results(grid, progress=False)
    found = row_of(results, "resnet", "group").values["macro_f1"]
    assert found.value == pytest.approx(macro_f1(oof, oof.logits))
    assert (found.std, found.lowest, found.highest) == (None, None, None)
    assert results.comparisons == []


# --- the best run ----------------------------------------------------------------------------------------------


def test_the_best_run_is_the_one_with_the_best_headline_whose_patients_do_not_cross() -> None:
    grid = study(seeds=[0, 1], ensemble="model")
    made = {run.name: (run, make_run(run).pooled) for run in grid.runs}
    best = collect_results(grid, progress=False).best
    assert best is not None
    honest = {name: macro_f1(oof, oof.logits) for name, (run, oof) in made.items() if run.config.folds.by == "group"}
    assert best.run == max(honest, key=lambda name: honest[name])
    assert best.value == pytest.approx(max(honest.values()))
    assert (best.among, best.place.on, best.place.view) == (4, "folds", "tta")
    assert best.scored.pooled.image_id.tolist() == sorted(made[best.run][1].image_id)


def test_the_best_run_is_complete_and_of_the_hold_out_where_there_is_one() -> None:
    grid = study(settings={"folds.holdout": 0.1}, on=["folds", "holdout"], axes={"model": AXES["model"]})
    make_run(grid.runs[0], folds=[0], held=12)
    make_run(grid.runs[1], held=12)
    best = collect_results(grid, progress=False).best
    assert best is not None
    assert (best.run, best.place.on, best.among) == ("studies/small/vit", "holdout", 1)
    assert len(best.scored.pooled.image_id) == 12


def test_where_nothing_has_run_there_is_no_best_run() -> None:
    results = collect_results(study(on=["folds"]), progress=False)
    assert results.best is None
    assert [row.values for row in results.rows] == [{}] * 8
