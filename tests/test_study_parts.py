"""Studies of several laboratories: parts scored by name, intervals over seeds, the run nearest to the mean, maps."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure
from scipy import stats
from sklearn import metrics as sk
from torch import nn

from leukofold.config import CONFIG_FOLDER, load_config
from leukofold.errors import UserError
from leukofold.experiment import open_experiment
from leukofold.figures.boxes import box_figure
from leukofold.figures.embedding import domain_figure
from leukofold.figures.style import png_bytes
from leukofold.models.adaptation import adapt_batch_statistics
from leukofold.models.classifier import Classifier
from leukofold.models.trained import load_network
from leukofold.runs import Predictions, RunFolder
from leukofold.studies import maps as study_maps
from leukofold.studies import pictures
from leukofold.studies.grid import Grid, StudyRun, load_study
from leukofold.studies.plan import Images
from leukofold.studies.results import Results, Row, collect_results
from leukofold.studies.table import to_csv, to_markdown
from leukofold.training.fold import train_folds

CLASSES = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")
PARTS = {"TestA": 20, "LISC": 15, "BCCD": 10}
AXES = {"model": {"bn": {"note": "as it is"}, "gn": {"set": {"model.normalisation": "group"}}}}
BASE = {"data.competition": "raabin", "folds.by": "image", "folds.splits": ["TestA"], "training.keep": "last"}


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs lie below the working folder."""
    monkeypatch.chdir(tmp_path)


def study(settings: dict[str, Any] | None = None, **keys: Any) -> Grid:
    """Loads a study of two networks, three seeds and three laboratories."""
    wanted: dict[str, Any] = {
        "axes": AXES,
        "set": {**BASE, **(settings or {})},
        "seeds": [0, 1, 2],
        "on": list(PARTS),
        "spread": "interval",
        "views": ["single"],
        "metrics": ["accuracy", "macro_f1"],
        **keys,
    }
    Path("small.yaml").write_text(json.dumps(wanted), encoding="utf-8")
    return load_study(Path("small.yaml"))


def make_run(run: StudyRun, without: tuple[str, ...] = (), **metadata: Any) -> Predictions:
    """Writes a run as training leaves it; returns all that it scored."""
    rng = np.random.default_rng([run.seed, *run.name.encode()])
    split = np.repeat(
        [name for name in PARTS if name not in without], [n for name, n in PARTS.items() if name not in without]
    )
    n = len(split)
    label = np.arange(n) % 5
    logits = rng.normal(size=(n, 5)).astype(np.float32)
    logits[np.arange(n), label] += 1
    ids = np.array([f"{part}/{k}.png" for k, part in enumerate(split)])
    scored = Predictions(ids, logits, logits, CLASSES, ids, np.zeros(n, bool), label, split)
    folder = RunFolder(run.name)
    fold = np.where(split == "TestA", 0, -2)
    known = {
        "run": run.name, "competition": "raabin", "metric": "accuracy", "class_names": list(CLASSES), "rendered": False,
        "split_by": "image", "data_fingerprint": "0123456789abcdef", "debug": False, "input": "input",
        "config_digest": run.config.digest(), "config": run.config.resolved(), "commit": "unknown", "versions": {},
        "precision": "no", "device": "cpu", "processes": 1, "holdout": {"LISC": 15}, "shared_groups": {"TestA": 4},
        **metadata,
    }  # fmt: skip
    folder.begin_fold(0, known, pd.DataFrame({"image_id": ids, "group": ids, "fold": fold}))
    test = replace(scored.rows(np.arange(0)), label=None)
    folder.finish_fold(0, scored.rows(fold == 0), test, {"accuracy": 0.5}, scored.rows(fold == -2))
    return scored


def accuracy(scored: Predictions, part: str) -> float:
    own = scored.rows(scored.split == part)
    assert own.label is not None
    return float(sk.accuracy_score(own.label, own.logits.argmax(axis=1)))


def row_of(results: Results, model: str, on: str) -> Row:
    return next(row for row in results.rows if (row.place.levels["model"], row.place.on) == (model, on))


def table_of(text: str, number: int = 0) -> list[list[str]]:
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for i, line in enumerate(tables[number]) if i != 1]


# --- rows ------------------------------------------------------------------------------------------------------


def test_every_part_has_its_rows_with_the_interval_of_the_mean_over_seeds() -> None:
    grid = study()
    made = {(run.levels["model"], run.seed): make_run(run) for run in grid.runs}
    results = collect_results(grid, progress=False)
    assert [row.place.on for row in results.rows] == ["TestA"] * 2 + ["LISC"] * 2 + ["BCCD"] * 2
    for row in results.rows:
        values = [accuracy(made[row.place.levels["model"], seed], row.place.on) for seed in (0, 1, 2)]
        assert row.by_seed == pytest.approx(values)
        value = row.values["accuracy"]
        low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (value.value, value.low, value.high) == pytest.approx((np.mean(values), low, high))
        assert (value.std, value.lowest, value.highest) == pytest.approx(
            (np.std(values, ddof=1), min(values), max(values))
        )
        assert (row.images, row.folds, row.folds_wanted) == (PARTS[row.place.on], 3, 3)
        assert row.split_by == ("image" if row.place.on == "TestA" else "group")  # by the groups that are shared
        assert not row.optimistic
    text = to_markdown(results)
    header, first, *_ = table_of(text)
    assert header[:4] == ["model", "scored on", "views", "accuracy"]
    value = row_of(results, "bn", "TestA").values["accuracy"]
    assert value.high is not None
    assert value.lowest is not None
    assert value.highest is not None
    expected = f"{value.value:.4f} ± {value.high - value.value:.4f} ({value.lowest:.4f} to {value.highest:.4f})"
    assert first[:4] == ["bn*", "TestA", "no TTA", expected]
    assert "Mean ± half the 95 % interval (Student's t) over 3 seeds (lowest to highest)." in text
    assert "TestA: scored out of fold. LISC, BCCD: images that no fold trains on or selects by, scored by" in text
    assert "\n\n* bn: as it is\n" in text
    assert "OPTIMISTIC" not in text
    assert "Image-level folds" in text


def test_differences_have_the_interval_of_their_mean() -> None:
    grid = study(compare=["model"])
    made = {(run.levels["model"], run.seed): make_run(run) for run in grid.runs}
    found = next(c for c in collect_results(grid, progress=False).comparisons if c.place.on == "LISC")
    gains = [accuracy(made["gn", seed], "LISC") - accuracy(made["bn", seed], "LISC") for seed in (0, 1, 2)]
    low, high = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx(
        (np.mean(gains), low, high)
    )
    assert found.p is None


def test_a_part_that_is_not_there_has_not_run() -> None:
    grid = study()
    for run in grid.runs:
        make_run(run, without=("BCCD",))
    results = collect_results(grid, progress=False)
    assert row_of(results, "bn", "BCCD").values == {}
    assert row_of(results, "bn", "LISC").values
    assert ["bn*", "BCCD", "no TTA", "not run"] in [cells[:4] for cells in table_of(to_markdown(results))]


def test_chosen_epochs_are_called_optimistic_on_the_part_that_chose_them() -> None:
    grid = study({"training.keep": "best"})
    for run in grid.runs:
        make_run(run)
    results = collect_results(grid, progress=False)
    assert {row.place.on: row.optimistic for row in results.rows} == {"TestA": True, "LISC": False, "BCCD": False}
    assert "OPTIMISTIC: the epochs were chosen on the images that are scored" in to_markdown(results)


def test_published_intervals_stand_beside_ours() -> None:
    published = [{"model": "bn", "on": "LISC", "views": "single", "accuracy": {"mean": 0.2311, "ci": 0.0304}}]
    grid = study(published=published)
    make_run(grid.runs[0])
    results = collect_results(grid, progress=False)
    assert [cells[4] for cells in table_of(to_markdown(results))[1:]] == ["-", "-", "0.2311 ± 0.0304", "-", "-", "-"]
    table = pd.read_csv(io.StringIO(to_csv(results)))
    row = table[(table.model == "bn") & (table.on == "LISC") & (table.metric == "accuracy")]
    assert (row.published.item(), row.published_ci.item()) == (0.2311, 0.0304)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"on": ["TestA", "LIS"]}, "on: 'LIS' is unknown; did you mean 'LISC'"),
        ({"look_at": {"levels": {"model": "bm"}, "on": "LISC"}}, "look_at: level of model 'bm' is unknown"),
        ({"look_at": {"levels": {}, "on": "LISC"}}, "look_at: levels: no 'model'"),
        ({"look_at": {"levels": {"model": "bn"}, "on": "TestB"}}, "look_at: on: 'TestB' is unknown"),
        (
            {"look_at": {"levels": {"model": "bn"}, "on": "LISC", "published": {"Basofil": {"recall": 0.5}}}},
            "look_at: published: class 'Basofil' is unknown; did you mean 'Basophil'",
        ),
        (
            {"look_at": {"levels": {"model": "bn"}, "on": "LISC", "published": {"Basophil": {"recal": 0.5}}}},
            "look_at: published: Basophil: 'recal' is unknown; did you mean 'recall'",
        ),
        ({"maps": {"levels": [{"model": "bn"}], "on": ["TestC"]}}, "maps: on: part 'TestC' is unknown"),
        ({"maps": {"levels": [{"modl": "bn"}], "on": ["LISC"]}}, "maps: levels: no 'model'"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(**keys)


def test_what_is_trained_on_is_counted_without_targets() -> None:
    config = study().runs[0].config
    images = Images(100, 0, 0, 5, splits={"Train": 60, "TestA": 15, "LISC": 20, "BCCD": 5})
    assert images.per_fold(config) == (60, 15, 40)
    unknown = Images(100, 0, 0, 5)  # still to be rendered: a tenth for each of the targets and the fold
    assert unknown.per_fold(config) == pytest.approx((60, 10, 40))


# --- the run nearest to the mean ------------------------------------------------------------------------------------


def test_the_run_nearest_to_the_mean_is_looked_at_class_by_class() -> None:
    published = {"Basophil": {"precision": 0.9444, "recall": 0.3091}}
    grid = study(look_at={"levels": {"model": "gn"}, "on": "LISC", "published": published})
    made = {run.seed: make_run(run) for run in grid.runs if run.levels["model"] == "gn"}
    values = {seed: accuracy(scored, "LISC") for seed, scored in made.items()}
    mean = np.mean(list(values.values()))
    nearest = min(values, key=lambda seed: abs(values[seed] - mean))
    results = collect_results(grid, progress=False)
    best = results.best
    assert best is not None
    expected = f"gn-seed{nearest}: accuracy {best.value:.4f}, nearest to the mean {mean:.4f} of 3 runs; LISC; no TTA"
    assert pictures._best_title(results, best) == expected
    assert (best.run, best.value, best.among) == (f"studies/small/gn-seed{nearest}", values[nearest], 3)
    assert best.mean == pytest.approx(mean)
    text = to_markdown(results)
    title = (
        f"## Classes: gn-seed{nearest}, LISC, accuracy {best.value:.4f}, of 3 runs the nearest to their mean {mean:.4f}"
    )
    assert title in text
    header, *body = table_of(text, 1)
    assert header == ["class", "images", "precision", "paper", "recall", "paper", "F1", "paper"]
    own = made[nearest].rows(made[nearest].split == "LISC")
    assert own.label is not None
    report = sk.classification_report(
        own.label, own.logits.argmax(axis=1), labels=range(5), target_names=CLASSES, output_dict=True, zero_division=0
    )
    for name, cells in zip(CLASSES, body, strict=True):
        found = report[name]
        assert cells[:3] == [name, "3", f"{found['precision']:.4f}"]
        assert (cells[4], cells[6]) == (f"{found['recall']:.4f}", f"{found['f1-score']:.4f}")
    assert [cells[3] for cells in body] == ["0.9444", "-", "-", "-", "-"]
    assert [cells[5] for cells in body] == ["0.3091", "-", "-", "-", "-"]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_boxes_are_of_the_seeds_of_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def spy(*arguments: Any) -> Figure:
        drawn.extend(arguments)
        return box_figure(*arguments)

    monkeypatch.setattr(pictures, "box_figure", spy)
    published = [{"model": "bn", "on": "LISC", "views": "single", "accuracy": 0.25}]
    grid = study(published=published, title="Laboratories")
    made = {(run.levels["model"], run.seed): make_run(run) for run in grid.runs}
    files = pictures.save_pictures(collect_results(grid, progress=False))
    assert [file.name for file in files] == ["seeds.png", "confusion.png"]  # cells of targets have no patients to draw
    panels, paper, title, quantity, note = drawn
    assert list(panels) == list(PARTS)
    assert panels["LISC"]["gn"] == pytest.approx([accuracy(made["gn", seed], "LISC") for seed in (0, 1, 2)])
    assert paper == {"TestA": {}, "LISC": {"bn": 0.25}, "BCCD": {}}
    assert (title, quantity) == ("Laboratories", "accuracy")
    assert note == "Box: quartiles and median; whiskers: lowest and highest."


def test_a_box_reaches_from_quartile_to_quartile() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.9]
    figure = box_figure({"LISC": {"bn": values, "gn": ()}}, {"LISC": {"bn": 0.25}}, "title", "accuracy")
    (axes,) = figure.axes
    (box,) = axes.patches
    assert sorted({round(float(x), 6) for x in np.asarray(box.get_path().vertices)[:4, 0]}) == [0.2, 0.4]
    ends = {round(float(x), 6) for line in axes.lines for x in np.atleast_1d(line.get_xdata())}
    assert {0.1, 0.3, 0.9, 0.25} <= ends
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bn", "gn"]
    assert png_bytes(figure) == png_bytes(figure)


def small(laboratories: Path) -> dict[str, Any]:
    """One epoch of a tiny network on drawn cells."""
    return {
        "data.root": str(laboratories / "input"), "data.workers": 0, "image.size": 32, "model.backbone": "test_resnet",
        "model.pretrained": False, "training.epochs": 1, "training.batch_size": 8, "training.ema_decay": 0,
        "inference.tta": "none",
    }  # fmt: skip


def test_maps_show_the_same_cells_by_every_network(laboratories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def spy(*arguments: Any) -> Figure:
        drawn.extend(arguments)
        return domain_figure(*arguments)

    monkeypatch.setattr(study_maps, "domain_figure", spy)
    settings = small(laboratories)
    levels = [{"model": "bn"}, {"model": "gn"}]
    grid = study(
        settings, on=["TestA", "LISC"], seeds=[0], maps={"levels": levels, "on": ["TestA", "LISC"], "per_class": 2}
    )
    assert study_maps.maps_figure(collect_results(grid, progress=False)) is None  # nothing has run
    for run in grid.runs:
        train_folds(run.config, RunFolder(run.name), [0], resume=False, debug=False)
    results = collect_results(grid, progress=False)
    figure = study_maps.maps_figure(results)
    assert figure is not None
    panels, classes, domains, order, title, note = drawn
    assert list(panels) == ["bn", "gn"]
    assert {points.shape for points in panels.values()} == {(20, 2)}
    assert classes == [name for _ in range(2) for name in CLASSES for _ in range(2)]
    assert domains == ["TestA"] * 10 + ["LISC"] * 10
    assert tuple(order) == CLASSES
    assert title == "studies/small: TestA, LISC as the networks see them"
    assert note == "t-SNE of pooled features, each network alone; 20 images, seed 0."
    kept = RunFolder(grid.runs[0].name).fold(0).map
    before = kept.stat().st_mtime_ns
    again = study_maps.maps_figure(results)
    assert again is not None
    assert kept.stat().st_mtime_ns == before  # features are computed once
    assert png_bytes(again) == png_bytes(figure)


def test_maps_of_adapted_networks_are_of_adapted_features(laboratories: Path) -> None:
    axes = {"model": {"plain": {}, "adapted": {"set": {"inference.batch_statistics": "domain"}}}}
    wanted = {"levels": [{"model": "plain"}, {"model": "adapted"}], "on": ["TestA", "LISC", "BCCD"], "per_class": 1}
    look = {"levels": {"model": "plain"}, "on": "BCCD"}
    grid = study(small(laboratories), axes=axes, seeds=[0], maps=wanted, look_at=look)
    for run in grid.runs:
        train_folds(run.config, RunFolder(run.name), [0], resume=False, debug=False)
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")  # as a training leaves it: maps must not care
    results = collect_results(grid, progress=False)
    assert results.best is None  # BCCD is not there; maps are drawn all the same
    try:
        assert "maps.png" in [file.name for file in pictures.save_pictures(results)]
    finally:
        AcceleratorState._reset_state()  # or every later training of this process would be in bf16
    assert results.remarks == ["maps: no image of BCCD in the input"]
    plain, adapted = (np.load(RunFolder(run.name).fold(0).map) for run in grid.runs)
    assert plain["image_id"].tolist() == adapted["image_id"].tolist()
    folder = RunFolder(grid.runs[1].name)
    experiment = open_experiment(grid.runs[1].config, folder, progress=False)
    network = load_network(grid.runs[1].config, folder.fold(0), 5, torch.device("cpu"))
    lisc = experiment.labelled.image_id[experiment.labelled.split == "LISC"].tolist()
    pixels = experiment.images.channels(experiment.images.rows(lisc))
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    adapt_batch_statistics(network, [images], prior=0)  # all of the laboratory, not only the cells on the map
    with torch.inference_mode():
        expected = network.embed(images[[lisc.index(name) for name in adapted["image_id"][5:]]]).numpy()
    assert adapted["embeddings"][5:] == pytest.approx(expected, abs=1e-4)
    assert np.abs(plain["embeddings"][5:] - expected).max() > 1e-2


def test_a_map_has_a_mark_for_each_laboratory_and_a_colour_for_each_class() -> None:
    rng = np.random.default_rng(0)
    points = {"bn": rng.normal(size=(12, 2)), "gn": rng.normal(size=(12, 2))}
    classes, domains = ["a", "b", "a"] * 4, ["x"] * 6 + ["y"] * 6
    figure = domain_figure(points, classes, domains, ["a", "b", "c"], "title", "note")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "x", "y"]
    first = figure.axes[0].collections
    assert [len(np.asarray(part.get_offsets())) for part in first] == [4, 2, 0, 4, 2, 0]
    assert np.asarray(first[0].get_facecolor()).size == 0  # the laboratory of the training: hollow
    assert np.asarray(first[3].get_facecolor()).shape == (1, 4)


# --- the paper's ----------------------------------------------------------------------------------------------------


def test_paper_000_is_the_published_recipe() -> None:
    grid = load_study(CONFIG_FOLDER / "studies/paper000.yaml")
    assert len(grid.runs) == 16 * 10
    for run in grid.runs:
        config = run.config
        assert (config.training.epochs, config.training.batch_size, config.training.keep) == (100, 128, "last")
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 1e-4, 0.005)
        assert (config.optimizer.schedule, config.optimizer.warmup_epochs) == ("cosine", 10)
        assert (config.loss.kind, config.sampler.kind, config.training.ema_decay) == ("cross_entropy", "uniform", 0)
        assert (config.image.size, config.inference.tta, config.model.pretrained) == (224, "none", True)
        assert (config.image.mean, config.image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert {t.name for t in config.image.augment} <= {"RandomCrop", "HorizontalFlip", "VerticalFlip", "HEDJitter"}
    as_code = load_study(
        CONFIG_FOLDER / "studies/paper000.yaml", configs=[CONFIG_FOLDER / "raabin/paper000/as_code.yaml"]
    )
    assert {(run.config.image.size, run.config.image.side) for run in as_code.runs} == {(256, 224)}
    assert all("RandomCrop" in {t.name for t in run.config.image.augment} for run in as_code.runs)
    by_name = {run.levels["model"]: run.config.model for run in grid.runs}
    assert by_name["resnet50_fc"].hidden == (2048, 2048)
    assert (by_name["vgg16"].backbone, by_name["vgg16"].backbone_dropout) == ("vgg16.tv_in1k", 0.5)
    assert by_name["resnet50_gn_pre"].backbone == "resnetv2_50d_gn.ah_in1k"
    assert by_name["resnet50_gn"].backbone == "resnet50_gn.a1h_in1k"
    lisc = {name: grid.published({"model": name}, "LISC", "single", "accuracy") for name in by_name}
    assert (lisc["resnet50"].mean, lisc["resnet50"].ci) == (0.2311, 0.0304)
    assert (lisc["vgg16"].mean, lisc["vgg16"].ci) == (0.7444, 0.0272)
    assert lisc["dinobloom_small"].mean is None
    assert "pre-trained on images of RaabinWBC and LISC" in grid.study.axes["model"]["dinobloom_small"].note


def test_the_last_sixteen_convolutions_train_in_the_paper_s_network() -> None:
    config = load_config([CONFIG_FOLDER / "raabin/paper000/resnet50_frozen_last16.yaml"], ["model.pretrained=false"])
    with torch.device("meta"):
        network = Classifier(config.model, config.image, 5)
    trained = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad
    ]
    blocks = ["layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2"]
    expected = [f"backbone.{block}.conv{k}" for block in blocks for k in (1, 2, 3)]
    assert sorted(trained) == sorted([*expected, "backbone.layer4.0.downsample.0"])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.train()
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
