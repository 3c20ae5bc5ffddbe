"""The command line of label analysis, end to end on runs made by hand over rendered images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import pytest

from leukofold.cells import CellTable
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.rendering import RenderSpec, render
from leukofold.runs import Predictions, RunFolder

if TYPE_CHECKING:
    from tests.conftest import Commands

FOLDS = 2


@dataclass(frozen=True)
class Data:
    """A rendered input with its truth.

    Attributes:
        competition: Its name.
        root: Its folder.
        table: Its cells.
        true: True class indices of the labelled cells.
    """

    competition: str
    root: Path
    table: CellTable
    true: np.ndarray


def rendered(competition: str, root: Path) -> Data:
    """Reads a rendered folder and its truth."""
    table = get_competition(competition).read(root)
    truth = pd.read_csv(root / "rendered_truth.csv", keep_default_na=False).set_index("path").true_label
    names = [truth[Path(path).relative_to(root).as_posix()] for path in table.labelled.path]
    return Data(competition, root, table, np.array([table.class_names.index(name) for name in names]))


@pytest.fixture(scope="module")
def cnmc(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """C-NMC with 10 % wrong labels; read only."""
    root = tmp_path_factory.mktemp("dirty") / "cnmc"
    spec = RenderSpec(images=80, test_images=2, patients=14, wrong_labels=0.1)
    render("cnmc", root, spec, workers=1, progress=False)
    return rendered("cnmc", root)


@pytest.fixture(scope="module")
def wbcbench(rendered_wbcbench: Path) -> Data:
    """WBCBench without wrong labels; read only."""
    return rendered("wbcbench", rendered_wbcbench)


def make_run(
    commands: Commands,
    data: Data,
    name: str = "run",
    seed: int = 0,
    trained: Sequence[int] = range(FOLDS),
    shift: int = 0,
    one_logit: bool = False,
    class_names: Sequence[str] = (),
) -> RunFolder:
    """Writes a run whose networks mostly know the truth, with embeddings, as training and an analysis leave it."""
    labelled, rng = data.table.labelled, np.random.default_rng(seed)
    names = tuple(class_names or data.table.class_names)
    split = labelled.assign(fold=(np.arange(len(labelled)) + shift) % FOLDS)
    logits = 5 * np.eye(len(names))[data.true] + rng.normal(size=(len(labelled), len(names)))
    if one_logit:
        logits = np.stack([np.zeros(len(logits)), logits[:, 1] - logits[:, 0]], axis=1)
    config = Config.model_validate(
        {"data": {"competition": data.competition, "root": data.root}, "folds": {"count": FOLDS}}
    )
    metadata: dict[str, Any] = {
        "run": name, "competition": data.competition, "metric": "macro_f1", "class_names": list(names),
        "rendered": True, "debug": False, "split_by": "group", "input": str(data.root), "data_fingerprint": "0" * 16,
        "config_digest": config.digest(), "config": config.resolved(), "commit": "unknown", "versions": {},
        "precision": "no", "device": "cpu", "processes": 1,
    }  # fmt: skip
    run = RunFolder(name, commands.cwd / "oof")
    for k in trained:
        rows = np.flatnonzero(split.fold == k)
        both = np.repeat(logits[rows][:, None], 2, axis=1)
        test = data.table.test.head(1)
        run.begin_fold(k, {**metadata, "fold": k}, split)
        oof = Predictions.of(split.iloc[rows], both, names, labelled=True)
        run.finish_fold(k, oof, Predictions.of(test, both[:1], names, labelled=False), {"macro_f1": 0.9})
        vectors = rng.normal(size=(len(rows), 8)).astype(np.float32) + 3
        np.savez(run.fold(k).embeddings, image_id=oof.image_id, embeddings=vectors)
    return run


def listed(path: Path) -> pd.DataFrame:
    """Reads a CSV."""
    return pd.read_csv(path, keep_default_na=False)


@pytest.mark.parametrize("one_logit", [False, True])
def test_a_run_of_two_classes_ends_in_lists_and_pages(commands: Commands, cnmc: Data, one_logit: bool) -> None:
    make_run(commands, cnmc, one_logit=one_logit)
    said = commands.succeed("label_issues.py", "--run", "run")
    folder = commands.cwd / "oof" / "run" / "labels"
    issues, images = listed(folder / "label_issues.csv"), listed(folder / "all_images.csv")
    wrong = cnmc.table.labelled.image_id[cnmc.true != cnmc.table.labelled.label]
    found = issues.image_id.isin(wrong)
    assert len(wrong) == 8
    assert found.sum() >= 7
    assert issues.label_quality.is_monotonic_increasing
    assert (issues.given_label != issues.suggested_label).all()
    assert set(issues.given_label) <= {"all", "hem"}
    assert (issues.agreement == 1).all()
    assert all(Path(path).is_file() for path in issues.path)
    assert images.image_id.tolist() == cnmc.table.labelled.image_id.tolist()
    assert images.is_issue.sum() == len(issues)
    assert "RENDERED" in said
    assert f"of 8 wrong labels planted in the rendered images {found.sum()} are listed" in said
    assert f"precision {found.sum() / len(issues):.3f}, recall {found.sum() / 8:.3f}" in said
    assert "true class suggested for 100.0% of those found" in said
    assert f"cnmc: {len(issues)} of 80 images" in said
    assert listed(folder / "sources.csv").to_dict("records") == [
        {"source": "cnmc", "images": 80, "issues": len(issues), "share": pytest.approx(len(issues) / 80)}
    ]
    outliers = listed(folder / "outliers.csv")
    assert sorted(outliers.image_id) == sorted(images.image_id)
    assert outliers.outlier_score.is_monotonic_increasing
    assert f"{outliers.is_outlier.sum()} outliers, {outliers.is_near_duplicate.sum()} near duplicates" in said
    for picture in ("label_issues_confusion.png", "sheets/overview.png", "sheets/given_all_suggested_hem.png"):
        assert cv2.imread(str(folder / picture)) is not None
    assert "written to oof/run/labels: label_issues.csv, all_images.csv, sources.csv, outliers.csv" in said


def test_several_runs_are_judged_together_in_a_folder_of_their_own(commands: Commands, wbcbench: Data) -> None:
    for seed, name in enumerate(("one", "two", "deep/three")):
        make_run(commands, wbcbench, name, seed)
    runs = ["--run", "one", "--run", "two", "--run", "deep/three"]
    said = commands.succeed("label_issues.py", *runs, "--without-embeddings")
    (folder,) = (commands.cwd / "oof").glob("blend-of-3-*/labels")
    images = listed(folder / "all_images.csv")
    votes = images[["predicted_by_one", "predicted_by_two", "predicted_by_deep/three"]]
    agreement = votes.eq(images.suggested_label, axis=0).mean(axis=1)
    known = agreement[votes.isin(set(images.given_label)).all(axis=1)]  # a class without labels is never suggested
    assert images.agreement[known.index].tolist() == pytest.approx(known.tolist(), abs=1e-5)
    assert "judged out of fold by one, two, deep/three" in said
    assert "no wrong labels are planted in the rendered images" in said
    assert not (folder / "outliers.csv").exists()
    assert "outliers" not in said


def test_an_earlier_analysis_is_replaced_whole(commands: Commands, cnmc: Data) -> None:
    make_run(commands, cnmc)
    out = commands.cwd / "found"
    (out / "sheets").mkdir(parents=True)
    for name in ("outliers.csv", "sheets/given_A_suggested_B.png", "sheets/mine.png"):
        (out / name).write_text("old")
    commands.succeed("label_issues.py", "--run", "run", "--without-embeddings", "--out", "found")
    assert not (out / "outliers.csv").exists()
    assert not (out / "sheets" / "given_A_suggested_B.png").exists()
    assert (out / "sheets" / "mine.png").read_text() == "old"
    assert len(listed(out / "label_issues.csv"))


def test_missing_folds_are_named_and_left_out(commands: Commands, cnmc: Data) -> None:
    make_run(commands, cnmc, trained=[1])
    said = commands.succeed("label_issues.py", "--run", "run", "--without-embeddings")
    assert "not trained yet, so not judged: run fold 0 (40 images)" in said
    assert "labels of 40 images" in said
    make_run(commands, cnmc, "whole")
    error = commands.refused("label_issues.py", "--run", "run", "--run", "whole", "--without-embeddings")
    assert "run lacks fold 0" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["all", "hem"]}, "other and run: different class order"),
        ({"shift": 1}, "other and run: different split into folds"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    commands: Commands, cnmc: Data, changes: dict[str, Any], message: str
) -> None:
    make_run(commands, cnmc)
    make_run(commands, cnmc, "other", **changes)
    assert message in commands.refused("label_issues.py", "--run", "run", "--run", "other")


def test_runs_of_two_competitions_are_refused(commands: Commands, cnmc: Data, wbcbench: Data) -> None:
    make_run(commands, cnmc)
    make_run(commands, wbcbench, "other")
    error = commands.refused("label_issues.py", "--run", "run", "--run", "other")
    assert "runs of cnmc and wbcbench; name runs of one competition at a time" in error
    assert "no run with a complete fold; runs there: other, run" in commands.refused("label_issues.py", "--run", "none")


def test_logits_that_are_not_finite_are_refused(commands: Commands, cnmc: Data) -> None:
    path = make_run(commands, cnmc).fold(1).path / "oof.npz"
    with np.load(path) as arrays:
        kept = dict(arrays)
    kept["logits"][3, 0] = np.nan
    np.savez(path, **kept)
    error = commands.refused("label_issues.py", "--run", "run")
    assert f"logits of 1 images are not finite, {kept['image_id'][3]} first" in error


def test_an_input_that_is_gone_is_refused(commands: Commands, cnmc: Data, tmp_path: Path) -> None:
    moved = tmp_path / "cnmc"
    shutil.copytree(cnmc.root, moved)
    make_run(commands, rendered("cnmc", moved))
    shutil.rmtree(moved)
    assert str(moved) in commands.refused("label_issues.py", "--run", "run")
