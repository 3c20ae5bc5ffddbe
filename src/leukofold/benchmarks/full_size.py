"""All that comes before and after training, at the size of WBCBench with paper 001's external images: seconds each.

The images are rendered, once, and kept; logits and embeddings are synthetic. Whatever the project keeps in its cache is
measured twice: computed, and read again.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from leukofold.benchmarks.measuring import Report
from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import LoadedRun, select_runs, select_together
from leukofold.blending.methods import ALL, PLAIN
from leukofold.cells import image_files
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.deciding import by_highest_logit
from leukofold.duplicates import find_duplicates, merge_groups
from leukofold.experiment import Experiment, held_out_always, open_experiment, read_cells
from leukofold.folds import assign_folds
from leukofold.images.cellimages import open_images
from leukofold.images.preparing import Preparation
from leukofold.images.reading import survey_images
from leukofold.labels.analysis import analyse_labels
from leukofold.labels.folder import write_analysis
from leukofold.labels.outliers import find_outliers
from leukofold.runs import Predictions, RunFolder
from leukofold.submission import write_submission
from leukofold.summary import blend_summary

IMAGES, TEST_IMAGES, PATIENTS = 38_535, 16_477, 345  # WBCBench as published
ACEVEDO, CELLWIKI = 13_615, 18  # as rendered; about 13,027 of Acevedo-20's are of WBCBench's classes
FEWEST_PATIENTS, FEWEST_ACEVEDO = 20, 60  # so that folds by group, and all classes of Acevedo-20, can be made
FOLDER = Path("cache/benchmark")
RUNS = 9
WIDTH = 768  # of an embedding
CACHED = 6_000  # images of the cache at 224 pixels; all would take 10 GB
SMALL = 16  # pixels at which all images are prepared, for the start of a training

T = TypeVar("T")


def full_size(report: Report, images: int | None) -> None:
    """Seconds of every step around training, in the order of the pipeline.

    Args:
        report: Where figures go.
        images: Labelled images of the competition, the others in proportion; None: the published number.
    """
    config = full_size_config(images or IMAGES)
    table = read_cells(config)  # draws what is not there yet
    external = int(table.frame.is_external.sum())
    labelled, test = int(table.is_labelled.sum()), len(table.test)
    report.begin(
        f"{labelled - external} + {external} external labelled images and {test} test images, all RENDERED, "
        f"{len(table.class_names)} classes; logits of {RUNS} runs and embeddings are synthetic"
    )
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:  # the disk that the cache would lie on
        config = config.model_copy(update={"data": config.data.model_copy(update={"cache": Path(folder) / "cache"})})
        _measure_preparation(report, config)
        experiment = _measure_start(report, config, Path(folder) / "oof")
        rows = _write_runs(report, experiment)
        runs = _measure_blends(report, Path(folder), rows)
        _measure_labels(report, Path(folder), runs)
    _measure_outliers(report, experiment)


def full_size_config(images: int) -> Config:
    """Returns the configuration of so many labelled images of the competition, and all others in proportion."""
    root, share = FOLDER if images == IMAGES else FOLDER / str(images), images / IMAGES
    competition = {
        "images": images,
        "test_images": max(1, round(TEST_IMAGES * share)),
        "patients": max(FEWEST_PATIENTS, round(PATIENTS * share)),
    }
    external = {
        "acevedo": {"images": max(FEWEST_ACEVEDO, round(ACEVEDO * share))},
        "cellwiki": {"images": max(1, round(CELLWIKI * share))},
    }
    data = {
        "competition": "wbcbench",
        "root": root / "wbcbench",
        "render": competition,
        "external": {name: {"root": root / name, "render": spec} for name, spec in external.items()},
    }
    return Config.model_validate({"data": data})


def measured(report: Report, name: str, count: int, work: Callable[[], T]) -> T:
    """Adds the seconds that some work on so many images takes; returns its result."""
    results: list[T] = []
    report.time(name, count, lambda: results.append(work()))
    return results[0]


def _measure_preparation(report: Report, config: Config) -> None:
    """Measures what ``open_experiment`` does, part by part."""
    competition, cache = get_competition(config.data.competition), config.data.cache
    table = read_cells(config)
    count = len(table.frame)
    measured(report, "reading the tables", count, lambda: read_cells(config))
    files = image_files(table.frame)
    hashes = measured(report, "decoding and hashing every image", count, lambda: survey_images(files, cache))
    measured(report, "  again", count, lambda: survey_images(files, cache))
    pairs = measured(report, "duplicate check", count, lambda: find_duplicates(table.frame, hashes, cache))
    measured(report, "  again", count, lambda: find_duplicates(table.frame, hashes, cache))
    report.add("  pairs that are the same", f"{len(pairs):9d}", {"pairs": len(pairs)})
    external = table.frame.is_external.to_numpy()
    labelled = table.labelled

    def folds() -> np.ndarray:
        units = merge_groups(table.frame.group.tolist(), pairs, external)
        return assign_folds(labelled, units[table.is_labelled], config.folds, held_out_always(config))

    measured(report, f"{config.folds.count} folds by {config.folds.by}", len(labelled), folds)
    rows = pd.concat([labelled, table.test]).head(CACHED)
    preparation = Preparation(config.image, competition.preprocess)
    name = f"image cache at {config.image.size} pixels, {'all' if len(rows) == count else f'the first {len(rows)}'}"
    for title in (name, "  again"):
        measured(report, title, len(rows), lambda: open_images(rows, preparation, competition.name, config.data))


def _measure_start(report: Report, config: Config, runs: Path) -> Experiment:
    """Measures how long a training's start takes where everything is kept; returns the experiment."""
    small = config.model_copy(update={"image": config.image.model_copy(update={"size": SMALL})})
    run = RunFolder("start", runs)
    experiment = open_experiment(small, run)
    count = len(experiment.labelled) + len(experiment.test)
    measured(report, "all until a training's first step, kept", count, lambda: open_experiment(small, run))
    return experiment


def _write_runs(report: Report, experiment: Experiment) -> int:
    """Writes runs as training leaves them, with logits that are drawn; returns the number of rows of each."""
    labels, names = experiment.labelled.label.to_numpy(), experiment.table.class_names
    classes, rng = len(names), np.random.default_rng(0)
    # The same in all runs, more certain for some images than for others
    signal = rng.gamma(2, 2, (len(labels), 1)) * np.eye(classes)[labels] + rng.normal(size=(len(labels), classes))
    split = experiment.labelled.assign(fold=experiment.folds)

    def drawn(mean: np.ndarray, noise: float) -> np.ndarray:
        return np.asarray(mean[:, None] + rng.normal(0, noise, (len(mean), 2, classes)))

    def write() -> None:
        for number in range(RUNS):
            run, noise = RunFolder(f"run{number}", experiment.run.root), 0.5 + 0.1 * number
            for fold in experiment.config.folds.numbers:
                made = {**experiment.metadata(fold), "run": run.name}
                run.begin_fold(fold, {**made, "precision": "no", "processes": 1, "device": "cpu"}, split)
                held_out, own = experiment.folds == fold, experiment.labelled
                oof = Predictions.of(own[held_out], drawn(signal[held_out], noise), names, labelled=True)
                logits = drawn(np.zeros((len(experiment.test), classes)), 2.0)
                run.finish_fold(fold, oof, Predictions.of(experiment.test, logits, names, labelled=False), {})

    rows = len(labels) + len(experiment.test)
    measured(report, f"writing {RUNS} runs", rows, write)
    return rows


def _measure_blends(report: Report, folder: Path, rows: int) -> list[LoadedRun]:
    """Measures what ``scripts/blend.py`` does, by the plain mean and with every method; returns the runs."""
    chosen = measured(report, f"blend: loading {RUNS} runs", rows, lambda: select_runs([], None, folder / "oof"))
    (runs,) = chosen.values()

    def blend(method: str) -> str:
        blended = blend_runs(runs, method)
        decision = by_highest_logit(blended)
        submission = write_submission(blended, method, folder / "submissions", decision)
        return blend_summary(blended, submission, decision)

    measured(report, "blend: mean of logits, submission", rows, lambda: blend(PLAIN))
    measured(report, "blend: all methods judged, submission", rows, lambda: blend(ALL))
    return runs


def _measure_labels(report: Report, folder: Path, chosen: list[LoadedRun]) -> None:
    """Measures what ``scripts/label_issues.py --without-embeddings`` does."""
    names, count = [run.name for run in chosen], len(chosen[0].oof.image_id)
    runs = measured(report, "label analysis: loading", count, lambda: select_together(names, folder / "oof"))
    analysis = measured(report, "label analysis", count, lambda: analyse_labels(runs, with_embeddings=False))
    files = measured(
        report, "label analysis: lists and sheets", count, lambda: write_analysis(analysis, folder / "labels")
    )
    pages = sum(file.suffix == ".png" for file in files)
    report.add(
        "  label issues, pictures",
        f"{len(analysis.issues):9d} issues, {pages} pictures",
        {"issues": len(analysis.issues), "pictures": pages},
    )


def _measure_outliers(report: Report, experiment: Experiment) -> None:
    """Measures the search for outliers among the competition's images, by embeddings of one run that are drawn."""
    own = ~experiment.labelled.is_external.to_numpy()
    labels, rng = experiment.labelled.label.to_numpy()[own], np.random.default_rng(0)
    centres = rng.normal(size=(len(experiment.table.class_names), WIDTH)).astype(np.float32)
    vectors = centres[labels] + rng.normal(size=(len(labels), WIDTH)).astype(np.float32)
    ids = experiment.labelled.image_id.to_numpy(dtype=str)[own]
    found = measured(
        report,
        f"outliers among embeddings of {WIDTH} numbers",
        len(labels),
        lambda: find_outliers([vectors], experiment.folds[own], ids),
    )
    count = int(found.is_outlier.sum())
    report.add("  outliers", f"{count:9d}", {"outliers": count})
