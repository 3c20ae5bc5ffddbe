"""Label analysis from the command line to its files, on runs made by hand over rendered images."""

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

from leukofold.blending.loading import load_run
from leukofold.cells import CellTable
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.labels.analysis import analyse_labels
from leukofold.labels.folder import write_analysis
from leukofold.labels.summary import analysis_summary
from leukofold.rendering import RenderSpec, render
from leukofold.reopening import reopen
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
    sure: float = 5,
    class_names: Sequence[str] = (),
    embedded: bool = False,
) -> RunFolder:
    """Writes a run whose networks mostly know the truth, as training and, with embeddings, an analysis leave it."""
    labelled, rng = data.table.labelled, np.random.default_rng(seed)
    names = tuple(class_names or data.table.class_names)
    split = labelled.assign(fold=(np.arange(len(labelled)) + shift) % FOLDS)
    logits = sure * np.eye(len(names))[data.true] + rng.normal(size=(len(labelled), len(names)))
    if one_logit:
        logits = np.stack([np.zeros(len(logits)), logits[:, 1] - logits[:, 0]], axis=1)
    config = Config.model_validate(
        {
            "data": {"competition": data.competition, "root": data.root, "cache": commands.cwd / "cache"},
            "folds": {"count": FOLDS},
            "image": {"size": 32},
        }
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
    for k in trained if embedded else ():
        ids, images = split.image_id[split.fold == k], reopen(load_run(run)).images().key
        vectors = rng.normal(size=(len(ids), 8)).astype(np.float32) + 3
        np.savez(run.fold(k).embeddings, image_id=ids.to_numpy(dtype=str), images=images, embeddings=vectors)
    return run


def listed(path: Path) -> pd.DataFrame:
    """Reads a CSV."""
    return pd.read_csv(path, keep_default_na=False)


def analysed(runs: Sequence[RunFolder], out: Path, with_embeddings: bool = False) -> str:
    """Does what the command does, in this process; returns what it prints."""
    analysis = analyse_labels([load_run(run) for run in runs], with_embeddings)
    return analysis_summary(analysis, write_analysis(analysis, out))


def test_a_run_of_two_classes_ends_in_lists_and_pages(commands: Commands, cnmc: Data) -> None:
    make_run(commands, cnmc, embedded=True)
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


def test_a_network_of_one_logit_gives_the_same_lists(commands: Commands, cnmc: Data) -> None:
    for name, one_logit in (("two", False), ("one", True)):
        analysed([make_run(commands, cnmc, name, one_logit=one_logit)], commands.cwd / name)
    for name in ("label_issues.csv", "all_images.csv"):
        one, two = (listed(commands.cwd / run / name).rename(columns=lambda c: c[:12]) for run in ("one", "two"))
        pd.testing.assert_frame_equal(one, two, rtol=1e-5)


def test_several_runs_are_judged_together_in_a_folder_of_their_own(commands: Commands, wbcbench: Data) -> None:
    for seed, name in enumerate(("one", "two", "deep/three")):
        make_run(commands, wbcbench, name, seed, sure=2)
    runs = ["--run", "one", "--run", "two", "--run", "deep/three"]
    said = commands.succeed("label_issues.py", *runs, "--without-embeddings")
    (folder,) = (commands.cwd / "oof").glob("blend-of-3-*/labels")
    images = listed(folder / "all_images.csv")
    votes = images[["predicted_by_one", "predicted_by_two", "predicted_by_deep/three"]]
    known = votes.isin(set(images.given_label)).all(axis=1)  # a class without labels is predicted, but never suggested
    agreement = votes.eq(images.suggested_label, axis=0).mean(axis=1)
    assert images.agreement[known].tolist() == pytest.approx(agreement[known].tolist(), abs=1e-5)
    assert len(set(images.agreement)) > 1
    assert "judged out of fold by one, two, deep/three" in said
    assert "no wrong labels are planted in the rendered images" in said
    assert not (folder / "outliers.csv").exists()
    assert "outliers" not in said


def test_an_earlier_analysis_is_replaced_whole(commands: Commands, cnmc: Data) -> None:
    out = commands.cwd / "found"
    (out / "sheets").mkdir(parents=True)
    for name in ("outliers.csv", "sheets/given_A_suggested_B.png", "sheets/mine.png"):
        (out / name).write_text("old")
    analysed([make_run(commands, cnmc)], out)
    assert not (out / "outliers.csv").exists()
    assert not (out / "sheets" / "given_A_suggested_B.png").exists()
    assert (out / "sheets" / "mine.png").read_text() == "old"
    assert len(listed(out / "label_issues.csv"))


def test_networks_that_doubt_nothing_leave_lists_without_pages(commands: Commands, wbcbench: Data) -> None:
    out = commands.cwd / "found"
    said = analysed([make_run(commands, wbcbench, sure=50)], out)
    assert "wbcbench: 0 of 110 images (0.0%)" in said
    assert listed(out / "label_issues.csv").empty
    assert sorted(path.name for path in out.iterdir()) == ["all_images.csv", "label_issues.csv", "sources.csv"]


def test_missing_folds_are_named_and_left_out(commands: Commands, cnmc: Data) -> None:
    run = make_run(commands, cnmc, trained=[1])
    said = analysed([run], commands.cwd / "found")
    assert "not trained yet, so not judged: run fold 0 (40 images)" in said
    assert "labels of 40 images" in said
    with pytest.raises(UserError, match="run lacks fold 0"):
        analysed([run, make_run(commands, cnmc, "whole")], commands.cwd / "found")


def test_folds_too_small_for_outliers_are_named(commands: Commands, cnmc: Data) -> None:
    labelled = cnmc.table.labelled
    few = labelled.groupby("label").head(15).index
    frame = pd.concat([labelled.loc[few], cnmc.table.test])
    data = Data(cnmc.competition, cnmc.root, CellTable(frame, cnmc.table.class_names), cnmc.true[few])
    said = analysed([make_run(commands, data, embedded=True)], commands.cwd / "found", with_embeddings=True)
    assert "0 outliers, 0 near duplicates" in said
    assert "not looked for in fold 0, 1: fewer than 20 images" in said
    assert listed(commands.cwd / "found" / "outliers.csv").empty


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
    with pytest.raises(UserError, match=message):
        analysed([make_run(commands, cnmc), make_run(commands, cnmc, "other", **changes)], commands.cwd / "found")
    assert not (commands.cwd / "found").exists()


def test_runs_of_two_competitions_are_refused(commands: Commands, cnmc: Data, wbcbench: Data) -> None:
    make_run(commands, cnmc)
    make_run(commands, wbcbench, "other")
    error = commands.refused("label_issues.py", "--run", "run", "--run", "other")
    assert "runs of cnmc and wbcbench; name runs of one competition at a time" in error


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
    run = make_run(commands, rendered("cnmc", moved))
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=f"{moved}"):
        analysed([run], commands.cwd / "found")
