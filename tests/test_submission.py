"""Predictions on disk, blending against hand calculation, submissions with their origin, and their commands."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from leukofold.blending.combining import Blend, blend_runs
from leukofold.blending.loading import load_run, select_runs
from leukofold.competitions.wbcbench import CLASS_NAMES
from leukofold.errors import UserError
from leukofold.runs import Predictions, RunFolder, find_runs
from leukofold.submission import sidecar, write_submission

if TYPE_CHECKING:
    from tests.conftest import CnmcInput, Commands, MadeRun, RunMaker


def blended(maker: RunMaker, *made: MadeRun) -> Blend:
    return blend_runs([load_run(run.folder) for run in made])


def refusal(maker: RunMaker, *made: MadeRun) -> str:
    with pytest.raises(UserError) as caught:
        blended(maker, *made)
    return str(caught.value)


# --- predictions on disk ------------------------------------------------------------------------


def predictions(logits: object = ((0.5, 1.5), (2.5, 3.5)), ids: object = ("007.jpg", "8.jpg")) -> Predictions:
    return Predictions(
        image_id=np.array(ids),
        logits=np.array(logits, np.float32),
        single_view=np.array(logits, np.float32) - 1,
        class_names=("hem", "all"),
        group=np.array(["p", "q"]),
        is_external=np.zeros(2, bool),
        label=np.array([0, 1]),
    )


def test_predictions_come_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = predictions()
    saved.save(tmp_path / "run" / "oof.npz")
    loaded = Predictions.load(tmp_path / "run" / "oof.npz")
    assert loaded.class_names == ("hem", "all")
    for name in ("image_id", "logits", "single_view", "group", "is_external", "label", "split"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
    assert loaded.logits.dtype == np.float32
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["oof.npz"]
    with np.load(tmp_path / "run" / "oof.npz", allow_pickle=False) as arrays:
        names = {"image_id", "logits", "single_view", "label", "group", "is_external", "class_names", "split"}
        assert names == set(arrays)


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        (predictions(logits=[[0, 1], [np.nan, 3]]), "not finite"),
        (predictions(logits=[[0, np.inf], [2, 3]]), "not finite"),
        (predictions(logits=[[0, 1]]), "2 ids and logits"),
        (predictions(logits=[[0, 1, 2], [0, 1, 2]]), "for 2 classes"),
        (predictions(ids=["1.jpg", "1.jpg"]), "2 ids"),
    ],
    ids=["nan", "infinite", "one row less", "one class more", "repeated id"],
)
def test_faulty_predictions_are_never_written(tmp_path: Path, faulty: Predictions, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        faulty.save(tmp_path / "oof.npz")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10**6), flipped=st.integers(1, 255), cut=st.booleans())
def test_damaged_predictions_are_refused_by_name(tmp_path: Path, where: int, flipped: int, cut: bool) -> None:
    path = tmp_path / "oof.npz"
    predictions().save(path)
    content = bytearray(path.read_bytes())
    where %= len(content)
    content[where] ^= flipped
    path.write_bytes(content[:where] if cut else content)
    try:
        loaded = Predictions.load(path)
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017 - or nothing that matters was hit
    else:
        assert not cut
        assert np.array_equal(loaded.logits, predictions().logits)
        assert np.array_equal(loaded.image_id, predictions().image_id)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(6, 99), (8, 1), (8, 32), (10, 99)],
    ids=["zip version", "encrypted", "patched", "compression"],
)
def test_an_archive_that_python_cannot_open_is_refused_by_name(tmp_path: Path, offset: int, value: int) -> None:
    predictions().save(tmp_path / "oof.npz")
    content = bytearray((tmp_path / "oof.npz").read_bytes())
    content[content.find(b"PK\x01\x02") + offset] = value  # in the first entry of the zip's directory
    (tmp_path / "oof.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"oof\.npz: not a file of predictions"):
        Predictions.load(tmp_path / "oof.npz")


def test_a_single_array_in_the_place_of_predictions_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "oof.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"oof\.npz: not a file of predictions"):
        Predictions.load(tmp_path / "oof.npz")


def test_missing_predictions_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"oof\.npz: no such file"):
        Predictions.load(tmp_path / "oof.npz")
    np.savez(tmp_path / "oof.npz", image_id=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"oof\.npz: not a file of predictions"):
        Predictions.load(tmp_path / "oof.npz")


# --- loading a run ------------------------------------------------------------------------------


def test_a_run_is_loaded_whole_in_the_order_of_its_split(wbc_runs: RunMaker) -> None:
    made = wbc_runs.make("deep/er/run", shuffled=True)
    run = load_run(made.folder)
    assert run.oof.image_id.tolist() == sorted(made.labels)
    assert run.folds.tolist() == [made.folds[name] for name in sorted(made.labels)]
    assert run.oof.label is not None
    assert run.oof.label.tolist() == [made.labels[name] for name in sorted(made.labels)]
    assert np.array_equal(run.oof.logits, np.array([made.logits[name] for name in sorted(made.labels)]))
    for name, logits in zip(run.test.image_id, run.test.logits, strict=True):
        assert logits == pytest.approx(made.mean_test(name))
    assert run.missing_folds == []
    assert [found.name for found in find_runs(wbc_runs.root)] == ["deep/er/run"]


def test_an_unfinished_fold_is_left_out_and_named(wbc_runs: RunMaker) -> None:
    made = wbc_runs.make("run")
    (made.folder.fold(1).path / "metrics.json").unlink()
    run = load_run(made.folder)
    assert run.missing_folds == [1]
    assert set(run.folds.tolist()) == {0, 2}
    assert run.oof.image_id.tolist() == [name for name in sorted(made.folds) if made.folds[name] != 1]
    expected = (made.test[0]["04000002.jpg"] + made.test[2]["04000002.jpg"]) / 2
    assert run.test.logits[run.test.image_id.tolist().index("04000002.jpg")] == pytest.approx(expected)


def test_folds_of_different_making_are_refused_naming_the_key(wbc_runs: RunMaker) -> None:
    made = wbc_runs.make("run")
    path = made.folder.fold(2).path / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["config_digest"] = "other"
    metadata["config"]["optimizer"]["lr"] = 0.125
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"run/fold\d.*another optimizer\.lr \(.*0\.125"):
        load_run(made.folder)


def damage_rows(run: MadeRun) -> None:
    fold = run.folder.fold(0)
    part = fold.predictions("oof")
    names = ("image_id", "logits", "single_view", "group", "is_external", "label")
    cut: dict[str, Any] = {name: getattr(part, name)[1:] for name in names}
    Predictions(class_names=part.class_names, **cut).save(fold.path / "oof.npz")


def truncate(run: MadeRun) -> None:
    path = run.folder.fold(1).path / "oof.npz"
    path.write_bytes(path.read_bytes()[:500])


DAMAGES = {
    "a row lost": (damage_rows, "29 rows"),
    "oof.npz cut short": (truncate, r"fold1/oof\.npz: not a file of predictions"),
    "test.npz gone": (lambda run: (run.folder.fold(2).path / "test.npz").unlink(), r"fold2/test\.npz: no such file"),
    "metadata.json gone": (lambda run: (run.folder.fold(0).path / "metadata.json").unlink(), r"fold0/metadata\.json"),
    "metadata.json cut short": (
        lambda run: (run.folder.fold(0).path / "metadata.json").write_text("{"), r"fold0/metadata\.json: not readable",
    ),
    "folds.csv gone": (lambda run: run.folder.folds_csv.unlink(), r"folds\.csv: not readable"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_naming_the_file(wbc_runs: RunMaker, damage: str) -> None:
    made = wbc_runs.make("run")
    harm, said = DAMAGES[damage]
    harm(made)
    with pytest.raises(UserError, match=said):
        load_run(made.folder)


SPLITS = {
    "empty": b"",
    "binary": b"image_id,group,fold\n\xff",
    "no fold column": b"image_id,group\n0000.jpg,000\n",
    "other columns": b"a,b\n1,2\n",
    "blank fold": b"image_id,group,fold\n0000.jpg,000,\n",
    "word for a fold": b"image_id,group,fold\n0000.jpg,000,x\n",
}


@pytest.mark.parametrize("content", SPLITS.values(), ids=SPLITS.keys())
def test_a_damaged_file_of_folds_is_refused_by_name(wbc_runs: RunMaker, content: bytes) -> None:
    made = wbc_runs.make("run")
    made.folder.folds_csv.write_bytes(content)
    with pytest.raises(UserError, match=r"folds\.csv"):
        made.folder.split()


# --- blending -----------------------------------------------------------------------------------


def test_logits_are_averaged_by_image_whatever_the_order_of_rows(wbc_runs: RunMaker) -> None:
    made = [wbc_runs.make("a", seed=1), wbc_runs.make("b", seed=2, shuffled=True), wbc_runs.make("c", seed=3)]
    blend = blended(wbc_runs, *made)
    assert blend.oof.image_id.tolist() == sorted(made[0].labels)
    for name, logits in zip(blend.oof.image_id, blend.oof.logits, strict=True):
        assert logits == pytest.approx(sum(run.logits[name] for run in made) / 3, abs=1e-6)
    assert blend.test.image_id.tolist() == list(wbc_runs.test_ids)
    for name, logits in zip(blend.test.image_id, blend.test.logits, strict=True):
        assert logits == pytest.approx(sum(run.mean_test(name) for run in made) / 3, abs=1e-6)


def test_the_scores_of_a_blend_are_scikit_learns(wbc_runs: RunMaker) -> None:
    made = [wbc_runs.make("a", seed=1), wbc_runs.make("b", seed=2)]
    names = sorted(made[0].labels)
    predicted = [int(np.argmax(made[0].logits[name] + made[1].logits[name])) for name in names]
    truth = [made[0].labels[name] for name in names]
    scores = blended(wbc_runs, *made).scores()
    assert scores["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert 0 < scores["macro_f1"] < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_names": list(reversed(CLASS_NAMES))}, "class order"),
        ({"data_fingerprint": "f" * 16}, "data"),
        ({"shift": 1}, "split into folds"),
        ({"rendered": True}, "rendering"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused_by_both_names(
    wbc_runs: RunMaker, change: dict[str, Any], said: str
) -> None:
    message = refusal(wbc_runs, wbc_runs.make("first/one"), wbc_runs.make("other/one", **change))
    assert message.startswith(f"other/one and first/one: different {said};")


def test_runs_that_lack_folds_are_named_with_what_they_lack(wbc_runs: RunMaker) -> None:
    made = [wbc_runs.make("whole"), wbc_runs.make("part", trained=(0, 2)), wbc_runs.make("bit", trained=(1,))]
    message = refusal(wbc_runs, *made)
    assert message.startswith("different trained folds: part lacks fold 1; bit lacks fold 0, 2; train what is missing")


def test_runs_of_different_test_images_are_refused(wbc_runs: RunMaker) -> None:
    first = wbc_runs.make("first")
    other = wbc_runs.make("other")
    for k in range(3):
        part = other.folder.fold(k).predictions("test")
        renamed = np.array(["04000009.jpg", "04000002.jpg", "04000006.jpg"])
        replace(part, image_id=renamed).save(other.folder.fold(k).path / "test.npz")
    assert "other and first: different images, 04000005.jpg first of 2" in refusal(wbc_runs, first, other)


def test_runs_on_rendered_images_are_left_out_where_there_are_real_ones(
    wbc_runs: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    wbc_runs.make("demo", rendered=True)
    wbc_runs.make("try-debug", debug=True)
    assert [run.name for run in select_runs([], None, wbc_runs.root)["wbcbench"]] == ["demo"]
    wbc_runs.make("real")
    assert [run.name for run in select_runs([], None, wbc_runs.root)["wbcbench"]] == ["real"]
    assert "left out, of rendered images: demo" in capsys.readouterr().out
    assert [run.name for run in select_runs(["demo"], None, wbc_runs.root)["wbcbench"]] == ["demo"]


def test_runs_are_chosen_by_competition(wbc_runs: RunMaker, cnmc_runs: RunMaker) -> None:
    wbc_runs.make("wbc")
    cnmc_runs.make("cnmc")
    assert set(select_runs([], None, wbc_runs.root)) == {"wbcbench", "cnmc"}
    assert set(select_runs([], "cnmc", wbc_runs.root)) == {"cnmc"}
    with pytest.raises(UserError, match="--run wbc: it is a run of wbcbench, not of cnmc"):
        select_runs(["wbc"], "cnmc", wbc_runs.root)


# --- writing a submission -----------------------------------------------------------------------


def test_the_origin_of_a_submission_has_its_sum_and_scores(wbc_runs: RunMaker, tmp_path: Path) -> None:
    made = [wbc_runs.make("a", seed=1), wbc_runs.make("b", seed=2, shuffled=True)]
    path = write_submission(blended(wbc_runs, *made), "both", tmp_path)
    labels = [CLASS_NAMES[int(np.argmax(made[0].mean_test(n) + made[1].mean_test(n)))] for n in wbc_runs.test_ids]
    assert path == tmp_path / "wbcbench" / "both.csv"
    assert path.read_text().splitlines() == ["ID,labels", *map(",".join, zip(wbc_runs.test_ids, labels, strict=True))]

    origin = json.loads((tmp_path / "wbcbench" / "both.json").read_text())
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(origin["predicted"].values()) == 3
    assert all(origin["predicted"][label] == labels.count(label) for label in CLASS_NAMES)
    assert (origin["competition"], origin["rendered"], origin["split_by"]) == ("wbcbench", False, "group")
    assert origin["method"] == {
        "asked": "mean_logits",
        "taken": "mean_logits",
        "reason": "asked for",
        "judged": {},
        "trial": None,
    }
    assert (origin["oof"]["images"], origin["oof"]["folds"], origin["oof"]["missing_folds"]) == (30, [0, 1, 2], [])
    for run, entry in zip(made, origin["runs"], strict=True):
        names = sorted(run.labels)
        truth, predicted = [run.labels[n] for n in names], [int(run.logits[n].argmax()) for n in names]
        assert entry["oof"]["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
        for k, score in entry["oof_per_fold"].items():
            rows = [i for i, name in enumerate(names) if run.folds[name] == int(k)]
            own = [truth[i] for i in rows], [predicted[i] for i in rows]
            assert score == pytest.approx(f1_score(*own, labels=range(13), average="macro", zero_division=0))
        assert entry["config"]["folds"]["count"] == 3


def test_a_submission_is_named_after_its_run_or_its_runs(wbc_runs: RunMaker, tmp_path: Path) -> None:
    one, other = wbc_runs.make("wbcbench/v2.5"), wbc_runs.make("b")
    assert write_submission(blended(wbc_runs, one), root=tmp_path).name == "wbcbench-v2.5.csv"
    assert sidecar(tmp_path / "wbcbench" / "wbcbench-v2.5.csv").exists()
    names = {write_submission(blended(wbc_runs, *pair), root=tmp_path).name for pair in ((one, other), (other, one))}
    assert len(names) == 1
    assert names.pop().startswith("blend-of-2-")


def test_a_submission_that_would_be_refused_is_not_written(wbc_runs: RunMaker, tmp_path: Path) -> None:
    blend = blended(wbc_runs, wbc_runs.make("a"))
    with (wbc_runs.source / "phase2_test.csv").open("a") as file:
        file.write("04000001.jpg,\n")
    with pytest.raises(UserError, match=r"a\.csv: not written, it would be refused: 3 rows, the test list has 4"):
        write_submission(blend, root=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "wbcbench" in path.parent.name] == [
        path for path in wbc_runs.source.iterdir() if path.is_file()
    ]


def test_c_nmc_predictions_stand_by_number(cnmc_runs: RunMaker, tmp_path: Path) -> None:
    made = cnmc_runs.make("a", shuffled=True)
    path = write_submission(blended(cnmc_runs, made), "s", tmp_path)
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("isbi_valid.predict").decode().split()
    assert lines == [str(int(made.mean_test(f"{number}.bmp").argmax())) for number in range(1, 13)]


# --- the command lines --------------------------------------------------------------------------


def test_blend_writes_one_submission_per_competition(
    wbc_runs: RunMaker, cnmc_runs: RunMaker, commands: Commands
) -> None:
    wbc_runs.make("one", seed=1)
    wbc_runs.make("two", seed=2)
    cnmc_runs.make("three", rendered=True)
    before = set(commands.tree())
    said = commands.succeed("blend.py", "--name", "mine")
    written = {path for path, content in commands.tree().items() if content is not None} - before
    assert {path.removeprefix("submissions/") for path in written} == {
        "wbcbench/mine.csv", "wbcbench/mine.json", "cnmc/mine.zip", "cnmc/mine.json",
    }  # fmt: skip
    assert "WBCBench 2026: 2 run(s), 30 images scored out of fold" in said
    assert "RENDERED images" in said
    checked = commands.succeed("submit.py", "submissions/wbcbench/mine.csv", "--check")
    assert "a valid submission to WBCBench 2026" in checked
    error = commands.refused("submit.py", "submissions/cnmc/mine.zip")
    assert "submissions/cnmc/mine.zip: predicts rendered images" in error


def test_blend_without_a_run_or_with_one_that_is_not_there_ends_on_one_line(
    wbc_runs: RunMaker, commands: Commands
) -> None:
    assert "no complete run to blend" in commands.refused("blend.py")
    wbc_runs.make("real")
    assert "oof/none: no run with a complete fold; runs there: real" in commands.refused("blend.py", "--run", "none")


def test_blend_of_a_damaged_run_ends_on_one_line(wbc_runs: RunMaker, commands: Commands) -> None:
    truncate(wbc_runs.make("real"))
    assert "oof/real/fold1/oof.npz: not a file of predictions" in commands.refused("blend.py")


def csv_of(runs: RunMaker, commands: Commands, *, label: str = "SNE") -> Path:
    path = commands.cwd / "submissions" / "wbcbench" / "s.csv"
    path.parent.mkdir(parents=True)
    path.write_text("".join(["ID,labels\n", *(f"{name},{label}\n" for name in runs.test_ids)]))
    return path


def test_a_faulty_submission_is_refused_on_one_line(wbc_runs: RunMaker, commands: Commands) -> None:
    csv_of(wbc_runs, commands, label="NEU")
    error = commands.refused("submit.py", "submissions/wbcbench/s.csv", "--check")
    assert error.startswith("error: submissions/wbcbench/s.csv: blank or unknown labels: 04000009.jpg: 'NEU'")


@pytest.mark.parametrize("path", ["submissions/wbcbench/none.csv", "submissions/wbcbench"])
def test_a_submission_that_is_no_file_is_refused_on_one_line(wbc_runs: RunMaker, commands: Commands, path: str) -> None:
    csv_of(wbc_runs, commands)
    assert path in commands.refused("submit.py", path, "--check", "--competition", "wbcbench")


def test_a_submission_of_an_unknown_competition_is_refused(commands: Commands) -> None:
    assert "s.csv: no such file" in commands.refused("submit.py", "s.csv")
    (commands.cwd / "s.csv").write_text("ID,labels\n")
    assert "cannot tell its competition; name it with --competition" in commands.refused("submit.py", "s.csv")


def test_a_checked_submission_goes_up_through_the_kaggle_client(wbc_runs: RunMaker, commands: Commands) -> None:
    csv_of(wbc_runs, commands)
    assert "by hand: upload it at https://www.kaggle.com" in commands.refused("submit.py", "submissions/wbcbench/s.csv")
    commands.sign_in()
    commands.fake_kaggle("echo 'Successfully submitted'")
    assert "Successfully submitted" in commands.succeed("submit.py", "submissions/wbcbench/s.csv", "--message", "v1")
    assert commands.kaggle_calls() == ["competitions submit -c wbc-bench-2026 -f submissions/wbcbench/s.csv -m v1"]


def test_c_nmc_prints_the_steps_at_codalab(cnmc_input: CnmcInput, commands: Commands) -> None:
    cnmc_input.write()
    path = commands.cwd / "submissions" / "cnmc" / "s.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("isbi_valid.predict", "".join(f"{random.Random(0).randrange(2)}\n" for _ in range(12)))
    said = commands.succeed("submit.py", "submissions/cnmc/s.zip", "--message", "first try")
    assert "https://competitions.codalab.org/competitions/20395" in said
    assert "upload submissions/cnmc/s.zip and note 'first try'" in said


def test_a_run_folder_knows_what_is_complete(wbc_runs: RunMaker) -> None:
    made = wbc_runs.make("run", trained=(0, 2))
    assert made.folder.complete_folds() == [0, 2]
    assert RunFolder("none", wbc_runs.root).complete_folds() == []
    assert made.folder.fold(0).metrics() == {"macro_f1": 0.5}
    assert made.folder.fold(1).metrics() == {}
    made.folder.begin_fold(0, {"run": "run"}, made.folder.split())
    assert made.folder.complete_folds() == [2]
    assert not (made.folder.fold(0).path / "oof.npz").exists()
    history = [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.25}]
    made.folder.fold(0).write_history(history)
    assert pd.read_csv(made.folder.fold(0).history).to_dict("records") == history


def test_a_fold_is_not_finished_with_other_rows_than_its_own(wbc_runs: RunMaker) -> None:
    folder = wbc_runs.make("run").folder
    oof, test = folder.fold(1).predictions("oof"), folder.fold(1).predictions("test")
    folder.begin_fold(0, folder.fold(0).metadata(), folder.split())
    with pytest.raises(ValueError, match="the rows scored are not the fold's images"):
        folder.finish_fold(0, oof, test, {})
    assert folder.complete_folds() == [1, 2]
