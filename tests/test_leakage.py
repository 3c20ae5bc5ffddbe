"""No group crosses and no copy of a scored image is trained on, whatever the folds and chains of copies are."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from leukofold.cells import UNLABELLED, CellTable
from leukofold.config import Config
from leukofold.duplicates import PAIR_COLUMNS
from leukofold.errors import UserError
from leukofold.experiment import Experiment, experiment_summary, open_experiment
from leukofold.folds import HOLDOUT, IN_EVERY_TRAINING_SET, NOWHERE
from leukofold.leakage import check_leakage
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

CLASSES = ("LY", "MO", "SNE")
SPLITS = ("train", "a", "b")  # of the competition


def pair_table(ids: Sequence[str], edges: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """What ``find_duplicates`` returns, of given rows."""
    rows = [(ids[a], ids[b], a, b, 0, 1.0, True) for a, b in sorted(tuple(sorted(edge)) for edge in edges)]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS)).astype(PAIR_COLUMNS)


@contextmanager
def synthetic(table: CellTable, pairs: pd.DataFrame) -> Iterator[None]:
    """Lets an experiment open a table that has no files, with copies that are known."""
    where = "leukofold.experiment"
    with (
        mock.patch(f"{where}.read_cells", return_value=table),
        mock.patch(f"{where}.survey_images", lambda files, cache, progress: np.zeros((len(files), 32), np.uint8)),
        mock.patch(f"{where}.find_duplicates", return_value=pairs),
        mock.patch(f"{where}.open_images", return_value=mock.Mock(modalities=())),
        mock.patch(f"{where}._any_rendered", return_value=False),
    ):
        yield


def opened(table: CellTable, pairs: pd.DataFrame, folds: Mapping[str, Any], debug: bool = False) -> Experiment:
    config = Config.model_validate({"data": {"competition": "wbcbench"}, "folds": dict(folds)})
    with synthetic(table, pairs):
        return open_experiment(config, RunFolder("none", Path("nowhere")), debug=debug, progress=False)


def cells(groups: Sequence[str], labels: Sequence[int], external: Sequence[bool], splits: Sequence[str]) -> CellTable:
    n = len(groups)
    return CellTable.from_columns(
        CLASSES,
        image_id=[f"{k}.jpg" for k in range(n)],
        path=[f"{k}.jpg" for k in range(n)],
        bytes=[1] * n,
        label=labels,
        group=groups,
        source=["x" if outside else "own" for outside in external],
        is_external=external,
        split=splits,
    )


@st.composite
def tables(draw: DrawFn) -> tuple[CellTable, list[tuple[int, int]]]:
    """Draws own images of several splits, external and test images, in any order, and chains of copies over all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    own, external, test = draw(st.integers(12, 60)), draw(st.integers(0, 20)), draw(st.integers(0, 12))
    patients = rng.integers(0, draw(st.integers(6, 40)), own)
    sources = rng.integers(0, max(1, external // 2), external)
    groups = [f"p{k}" for k in patients] + [f"x{k}" for k in sources] + [""] * test
    labels = [*rng.integers(0, 3, own + external).tolist(), *[UNLABELLED] * test]
    splits = [*rng.choice(SPLITS, own).tolist(), *["x"] * external, *["test"] * test]
    outside = [False] * own + [True] * external + [False] * test
    if draw(st.booleans()):  # each patient in one split, as it should be
        splits[:own] = [SPLITS[k % 3] for k in patients]
    n = own + external + test
    order = np.concatenate([rng.permutation(own + test), []]).astype(int)  # own and test rows are mixed, external last
    order = np.concatenate([np.where(order < own, order, order + external), np.arange(own, own + external)])
    table = cells(*([column[k] for k in order] for column in (groups, labels, outside, splits)))
    edges: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 6))):  # sets of equal images, each told by a chain or a star
        members = rng.permutation(n)[: rng.integers(2, 6)].tolist()
        star = rng.random() < 0.5
        edges += [(members[0] if star else members[k], members[k + 1]) for k in range(len(members) - 1)]
    return table, edges


@st.composite
def fold_settings(draw: DrawFn) -> dict[str, Any]:
    """Draws every kind of split, with and without a hold-out, external images in folds or in all training sets."""
    by = draw(st.sampled_from(["group", "image", "split", "image of splits"]))
    chosen: dict[str, Any] = {
        "by": by.split()[0],
        "seed": draw(st.integers(0, 99)),
        "external": draw(st.sampled_from(["split", "train"])),
    }
    if "split" in by:
        chosen["splits"] = draw(st.sampled_from([["a"], ["b", "a"]]))
    else:
        chosen["count"] = draw(st.integers(2, 4))
    holdout = draw(st.sampled_from([None, None, 0.2, "b"]))
    if holdout not in chosen.get("splits", []):
        chosen["holdout"] = holdout
    if draw(st.booleans()) and chosen.get("count", len(chosen.get("splits", []))) > 1:
        chosen["left_out"] = 0
    return chosen


def sets_of(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The set of equal images of each row, by joining until nothing changes."""
    sets = list(range(n))
    for _ in edges:
        for a, b in edges:
            sets[a] = sets[b] = min(sets[a], sets[b])
    return sets


MADE_IMPOSSIBLE = (
    "too few groups",
    "folds need as many",
    "no class has",
    "nothing is left to train on",
    "no labelled image is of a split",
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(tables(), fold_settings())
def test_whatever_the_data_nothing_of_a_scored_image_is_trained_on(
    drawn: tuple[CellTable, list[tuple[int, int]]], folds: dict[str, Any]
) -> None:
    table, edges = drawn
    frame = table.frame
    try:
        experiment = opened(table, pair_table(frame.image_id.tolist(), edges), folds)
        rows = {fold: experiment.fold_rows(fold) for fold in experiment.config.folds.numbers}
    except UserError as error:
        assert any(part in str(error) for part in MADE_IMPOSSIBLE), error  # noqa: PT017 - both ends are right
        event("no such folds")
        assume(False)
    equal = dict(zip(frame.image_id, sets_of(len(frame), edges), strict=True))
    group = dict(zip(frame.image_id, frame.group, strict=True))  # as it was given, before any merging
    of_test = {equal[name] for name in frame.image_id[~table.is_labelled]}
    held: list[str] = []
    left_out, splits = experiment.config.folds.left_out, experiment.config.folds.splits
    for fold, (train, held_out) in rows.items():
        never = experiment.labelled[np.isin(experiment.folds, [HOLDOUT, -9 if left_out is None else left_out])]
        scored = [*held_out.image_id, *never.image_id]
        copied = {equal[name] for name in scored} | of_test
        assert not [name for name in train.image_id if equal[name] in copied]
        if experiment.config.folds.by != "image":
            assert not {group[name] for name in train.image_id} & {group[name] for name in scored}
        assert train.label.min() >= 0
        assert "leakage check: " in check_leakage(experiment, fold, train, held_out)
        held += held_out.image_id.tolist()
    own = experiment.labelled[~experiment.labelled.is_external]
    assert len(held) == len(set(held))
    away = dict(zip(experiment.labelled.image_id, experiment.folds, strict=True))
    apart = {HOLDOUT, NOWHERE, left_out, *([IN_EVERY_TRAINING_SET] if splits else [])}
    assert all(away[name] in apart for name in set(own.image_id) - set(held))
    if experiment.config.folds.holdout is None and left_out is None:
        expected = own.image_id[own.split.isin(splits)] if splits else own.image_id
        assert set(expected) == set(held) & set(own.image_id)
    event(f"{folds['by']}, copies of test images: {bool(experiment.test_copies)}")


def two_patients(edges: Sequence[tuple[int, int]], **folds: Any) -> Experiment:
    """Sixteen own images of eight patients, four external ones (16 to 19) and three test images (20 to 22)."""
    table = cells(
        [*(f"p{k // 2}" for k in range(16)), *(f"x{k}" for k in range(4)), *[""] * 3],
        [*([0, 1] * 10), *[UNLABELLED] * 3],
        [False] * 16 + [True] * 4 + [False] * 3,
        ["train"] * 16 + ["x"] * 4 + ["test"] * 3,
    )
    return opened(table, pair_table(table.frame.image_id.tolist(), edges), {"count": 2, **folds})


def verdict(experiment: Experiment, fold: int = 0) -> str:
    return check_leakage(experiment, fold, *experiment.fold_rows(fold))


def test_the_verdict_counts_what_was_compared() -> None:
    assert verdict(two_patients([(0, 2)])) == (
        "leakage check: passed - 10 images trained on against 10 held out and 3 test: no group and no copy on both "
        "sides (1 pair of equal images known)"
    )
    held = two_patients([], holdout=0.25, external="train")
    assert verdict(held).startswith("leakage check: passed - 10 images trained on against 6 held out, 4 hold-out and ")


def test_copies_of_test_images_are_held_out_and_scored_but_in_no_training_set() -> None:
    experiment = two_patients([(0, 20), (17, 20), (5, 18), (18, 22)])
    assert experiment.test_copies == 4
    names = {"0.jpg", "5.jpg", "17.jpg", "18.jpg"}
    held: set[str] = set()
    for fold in (0, 1):
        train, held_out = experiment.fold_rows(fold)
        assert not names & set(train.image_id)
        assert len(train) == len(experiment.labelled) - len(held_out) - len(names - set(held_out.image_id))
        held |= set(held_out.image_id)
    assert names <= held
    assert verdict(experiment).endswith("\n  not trained on, as they equal a test image: 4 labelled images")
    assert "  4 labelled images equal a test image: no fold trains on them" in experiment_summary(experiment)
    assert experiment.metadata(0)["test_copies"] == 4


def test_a_run_is_refused_where_its_training_images_would_differ_and_only_there() -> None:
    with_copies, without = two_patients([(0, 20)]).metadata(0), two_patients([(0, 1)]).metadata(0)
    assert without["corrections_sha256"] is None  # as in runs that were made before copies were left out
    assert with_copies["corrections_sha256"] is not None
    assert two_patients([(2, 20)]).metadata(0)["corrections_sha256"] != with_copies["corrections_sha256"]


def test_copies_in_two_splits_that_are_folds_are_not_trained_on_for_each_other() -> None:
    splits = ["train"] * 6 + ["a"] * 4 + ["b"] * 4
    table = cells([f"p{k}" for k in range(14)], [0, 1] * 7, [False] * 14, splits)
    pairs = pair_table(table.frame.image_id.tolist(), [(6, 10), (7, 0), (0, 11)])
    experiment = opened(table, pairs, {"by": "image", "splits": ["a", "b"]})
    for fold in (0, 1):
        train, held_out = experiment.fold_rows(fold)
        assert len(held_out) == 4
        assert train.image_id.tolist() == [f"{k}.jpg" for k in (*range(1, 6), *((12, 13), (8, 9))[fold])]


def test_an_image_level_split_is_told_from_a_clean_one() -> None:
    said = verdict(two_patients([], by="image"))
    assert said.startswith("leakage check: NOT passed - 10 images trained on against 10 held out and 3 test: no copy ")
    assert "\n  groups on both sides, as folds.by: image has it: " in said
    assert said.endswith(" (held out); the scores are too high")


def test_patients_that_are_not_known_are_told() -> None:
    experiment = replace(two_patients([]), patients=False)
    assert "no copy on both sides, patients are not known (0 pairs" in verdict(experiment)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("copy", r"1 images that are trained on equal images of 'held out' \(0 of the competition, 1 external\)"),
        ("test", r"1 images that are trained on equal images of 'test' \(1 of the competition, 0 external\), 0.jpg fi"),
        ("hold-out", r"1 images that are trained on equal images of 'hold-out' \(1 of the competition, 0 external\)"),
        ("group", r"1 groups are trained on and among images of 'held out', p\d first; split the images again"),
    ],
)
def test_a_leak_ends_the_training_before_it_begins(part: str, said: str) -> None:
    experiment = two_patients([(0, 20), (3, 19)], external="train", holdout=0.25 if part == "hold-out" else None)
    train, held_out = experiment.fold_rows(0)
    labelled = experiment.labelled.set_index("image_id", drop=False)
    if part == "copy":  # where the folds would have parted them
        fold = int(experiment.folds[experiment.labelled.image_id == "3.jpg"][0])
        train, held_out = experiment.fold_rows(fold)
        added = labelled.loc[["19.jpg"]]
    elif part == "test":
        added = labelled.loc[["0.jpg"]].assign(group="other")
        held_out = held_out[held_out.image_id != "0.jpg"]
    elif part == "hold-out":
        added = experiment.holdout.head(1).assign(group="other")
    else:
        moved = held_out.image_id.iloc[0]
        added, held_out = held_out.head(1), held_out[held_out.image_id != moved]
    with pytest.raises(UserError, match=rf"fold 0: leakage: {said}"):
        check_leakage(experiment, 0, pd.concat([train, added]), held_out)


def test_a_teacher_that_was_trained_on_copies_of_test_images_is_refused(tmp_path: Path) -> None:
    experiment = replace(two_patients([(0, 20)]), run=RunFolder("student", tmp_path))
    folder = RunFolder("teacher", tmp_path).fold(0).path
    folder.mkdir(parents=True)
    rows = experiment.fold_rows(0)
    for metadata in ({}, {"test_copies": 0}):  # of a version that did not look, or that found none
        (folder / "metadata.json").write_text(json.dumps(metadata))
        with pytest.raises(UserError, match=r"distillation\.teachers: teacher: was trained on images that equal test"):
            check_leakage(experiment, 0, *rows, ["teacher"])
    (folder / "metadata.json").write_text(json.dumps({"test_copies": 1}))
    assert check_leakage(experiment, 0, *rows, ["teacher"]).startswith("leakage check: passed")
    (folder / "metadata.json").unlink()
    clean = replace(two_patients([]), run=RunFolder("student", tmp_path))
    assert check_leakage(clean, 0, *clean.fold_rows(0), ["teacher"]).startswith("leakage check: passed")


def test_a_check_of_many_images_takes_no_comparison_of_each_with_each() -> None:
    n = 20_000
    groups = [f"p{k // 20}" for k in range(n)] + [""] * 5_000
    table = cells(groups, [*np.arange(n) % 3, *[UNLABELLED] * 5_000], [False] * 25_000, ["train"] * 25_000)
    experiment = opened(table, pair_table(table.frame.image_id.tolist(), [(0, 30), (40, n)]), {"count": 5})
    train, held_out = experiment.fold_rows(0)
    assert verdict(experiment).startswith(
        f"leakage check: passed - {len(train):,} images trained on against {len(held_out):,} held out and 5,000 test"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered images, one of the test set also among the labelled ones."""
    folder = tmp_path_factory.mktemp("copied") / "wbcbench"
    render("wbcbench", folder, RenderSpec(images=70, test_images=8, patients=16), workers=1, progress=False)
    labelled = pd.read_csv(folder / "phase2_train.csv", dtype=str).ID[0]
    test = pd.read_csv(folder / "phase2_test.csv", dtype=str).ID[0]
    shutil.copy(folder / "phase2" / "test" / test, folder / "phase2" / "train" / labelled)
    return folder


def trained_config(root: Path, tmp_path: Path, **sections: dict[str, Any]) -> Config:
    base: dict[str, Any] = {
        "data": {"root": root, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0.5},
    }
    return Config.model_validate({**base, **{name: {**base.get(name, {}), **own} for name, own in sections.items()}})


@pytest.mark.parametrize("kind", ["network", "debug", "cached views", "machine", "resumed"])
def test_every_training_prints_its_verdict_first(
    root: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, dict[str, Any]] = {}
    if kind == "cached views":
        sections = {"model": {"frozen": ["backbone"]}, "training": {"cached_views": 1}}
    elif kind == "machine":
        sections = {"svm": {}, "inference": {"tta": "none"}, "image": {"size": 64}}
    config, run = trained_config(root, tmp_path, **sections), RunFolder("run", tmp_path / "oof")
    train_folds(config, run, [1], resume=False, debug=kind == "debug")
    if kind == "resumed":
        capsys.readouterr()
        (run.fold(1).path / "metrics.json").unlink()
        train_folds(config, run, [1], resume=True, debug=False)
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    (found,) = (number for number, line in enumerate(said) if line.startswith("leakage check: passed - "))
    assert said[found + 1] == "  not trained on, as they equal a test image: 1 labelled images"
    results = [k for k, line in enumerate(said) if line.startswith(("  fold 1  epoch", "fold 1: out-of-fold"))]
    assert min(results) > found
    assert run.fold(1).metadata()["test_copies"] == 1


def test_a_resume_is_refused_where_a_run_was_trained_on_copies_of_test_images(root: Path, tmp_path: Path) -> None:
    config, run = trained_config(root, tmp_path), RunFolder("run", tmp_path / "oof")
    train_folds(config, run, [0], resume=False, debug=False)
    path = run.fold(0).path / "metadata.json"
    older = {**json.loads(path.read_text()), "corrections_sha256": None}
    del older["test_copies"]
    path.write_text(json.dumps(older))
    with pytest.raises(UserError, match="the run was trained with another choice of images to train on"):
        train_folds(config, run, [1], resume=True, debug=False)


def test_a_leak_leaves_an_earlier_training_as_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = trained_config(root, tmp_path), RunFolder("run", tmp_path / "oof")
    train_folds(config, run, [0], resume=False, debug=False)
    before = {path: path.read_bytes() for path in sorted(run.fold(0).path.rglob("*")) if path.is_file()}
    honest = Experiment.fold_rows

    def leaking(experiment: Experiment, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        train, held_out = honest(experiment, fold)
        return pd.concat([train, held_out.head(1)], ignore_index=True), held_out

    monkeypatch.setattr(Experiment, "fold_rows", leaking)
    with pytest.raises(UserError, match=r"fold 0: leakage: 1 images that are trained on equal images of 'held out'"):
        train_folds(config, run, [0], resume=False, debug=False)
    assert {path: path.read_bytes() for path in sorted(run.fold(0).path.rglob("*")) if path.is_file()} == before
