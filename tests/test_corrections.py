"""Lists of label issues change what is trained on, and nothing of what is scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import caveats, load_run
from leukofold.cells import UNLABELLED
from leukofold.config import Config, DataConfig, FoldsConfig
from leukofold.corrections import made_with, read_corrections
from leukofold.errors import UserError
from leukofold.experiment import experiment_summary, open_experiment
from leukofold.folds import HOLDOUT
from leukofold.labels.issues import find_label_issues
from leukofold.runs import RunFolder
from leukofold.summary import blend_summary
from leukofold.training.fold import train_folds

CLASSES = ("LY", "MO", "SNE")
LABELS = [0, 0, 1, 1, 2, 2]


def labelled(labels: list[int] | None = None) -> pd.DataFrame:
    """Six cells, the last of another source."""
    labels = LABELS if labels is None else labels
    ids = [f"cell{i}" for i in range(len(labels))]
    return pd.DataFrame({"image_id": ids, "label": labels, "source": ["own"] * (len(labels) - 1) + ["other"]})


def write(path: Path, rows: list[str], header: str = "image_id,given_label,suggested_label") -> Path:
    """A list of issues."""
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


FOLDS = np.array([0, 1, 0, 1, 0, 1])


def corrected(**lists: Path) -> list[int]:
    """The labels to train on, whichever fold is held out."""
    first, second = read_corrections(DataConfig.model_validate(lists), labelled(), CLASSES, FOLDS, [0, 1]).values()
    assert first.tolist() == second.tolist()
    found: list[int] = first.tolist()
    return found


def test_without_lists_the_given_labels_are_trained_on() -> None:
    assert corrected() == LABELS


def test_dropped_images_are_left_out_and_relabelled_ones_learnt_as_suggested(tmp_path: Path) -> None:
    drop = write(tmp_path / "drop.csv", ["cell1,LY,MO", "cell5,SNE,LY"])
    relabel = write(tmp_path / "relabel.csv", ["cell2,MO,SNE"])
    assert corrected(drop_issues=drop, relabel_issues=relabel) == [0, UNLABELLED, 2, 1, 2, UNLABELLED]


def test_a_list_to_drop_needs_no_suggestions_and_may_be_empty(tmp_path: Path) -> None:
    assert corrected(drop_issues=write(tmp_path / "a.csv", ["cell0,LY"], "image_id,given_label"))[0] == UNLABELLED
    assert corrected(drop_issues=write(tmp_path / "b.csv", [])) == LABELS


def test_rows_of_a_source_that_this_configuration_does_not_read_are_passed_over(tmp_path: Path) -> None:
    header = "image_id,given_label,suggested_label,source"
    path = write(tmp_path / "more.csv", ["acevedo/x.jpg,LY,MO,acevedo", "cell0,LY,MO,own"], header)
    assert corrected(relabel_issues=path) == [1, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["cell9,LY,MO"], None, r"1 images are not among the labelled ones: cell9; write the list for this data"),
        (["cell0,MO,LY"], None, r"1 images are labelled otherwise in the data: cell0; write the list"),
        (["cell0,LY,XX"], None, r"suggested_label XX is no class; known ones are LY MO SNE"),
        (["cell0,LY,MO", "cell0,LY,SNE"], None, r"1 images stand twice: cell0; keep one row"),
        (["cell0,LY"], "image_id,given_label", r"no column 'suggested_label', only image_id, given_label"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, rows: list[str], header: str | None, message: str) -> None:
    path = write(tmp_path / "list.csv", rows, header or "image_id,given_label,suggested_label")
    with pytest.raises(UserError, match=message):
        corrected(relabel_issues=path)


def test_a_list_of_all_images_stands_for_its_issues(tmp_path: Path) -> None:
    header = "image_id,given_label,suggested_label,is_issue"
    path = write(tmp_path / "all_images.csv", ["cell0,LY,MO,False", "cell1,LY,MO,True"], header)
    assert corrected(relabel_issues=path) == [0, 1, 1, 1, 2, 2]


def test_a_list_of_another_data_set_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "more.csv", ["UID_1,ALL,HEM,cnmc"], "image_id,given_label,suggested_label,source")
    with pytest.raises(UserError, match=r"lists images of cnmc, none of which is trained on here"):
        corrected(drop_issues=path)


def test_each_held_out_fold_has_a_list_of_its_own_that_does_not_name_it(tmp_path: Path) -> None:
    write(tmp_path / "0.csv", ["cell1,LY,MO"])
    write(tmp_path / "1.csv", ["cell0,LY,MO", "cell2,MO,SNE"])
    lists = DataConfig(relabel_issues=tmp_path / "{fold}.csv")
    assert (made_with(lists), made_with(DataConfig()), made_with(DataConfig(drop_issues=tmp_path / "0.csv"))) == (
        "other folds",
        None,
        "all folds",
    )
    found = read_corrections(lists, labelled(), CLASSES, FOLDS, [0, 1])
    assert {fold: label.tolist() for fold, label in found.items()} == {0: [0, 1, 1, 1, 2, 2], 1: [1, 0, 2, 1, 2, 2]}
    write(tmp_path / "1.csv", ["cell0,LY,MO", "cell3,MO,SNE"])
    with pytest.raises(UserError, match=r"1.csv: 1 images are of fold 1 itself, or of the hold-out: cell3; make the"):
        read_corrections(lists, labelled(), CLASSES, FOLDS, [0, 1])
    held = np.where(np.arange(len(FOLDS)) == 2, HOLDOUT, FOLDS)
    write(tmp_path / "1.csv", ["cell0,LY,MO", "cell2,MO,SNE"])
    with pytest.raises(UserError, match=r"1.csv: 1 images are of fold 1 itself, or of the hold-out: cell2"):
        read_corrections(lists, labelled(), CLASSES, held, [0, 1])
    with pytest.raises(UserError, match=r"2.csv: no such file"):
        read_corrections(lists, labelled(), CLASSES, FOLDS, [0, 2])


def noise(lists: str) -> float:
    """Accuracy on labels of pure noise, with the list of all folds or with one per held-out fold."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(12):
        x, y, folds = rng.normal(size=(300, 40)), rng.integers(0, 3, 300), rng.integers(0, 3, 300)

        def issues(rows: np.ndarray, x: np.ndarray = x, y: np.ndarray = y, folds: np.ndarray = folds) -> np.ndarray:
            """The labels that the rest of these rows suggest."""
            logits = np.zeros((len(rows), 3))
            for k in np.unique(folds[rows]):
                out = folds[rows] == k
                fitted = LogisticRegression().fit(x[rows][~out], y[rows][~out])
                logits[out] = fitted.predict_log_proba(x[rows][out])
            listed = find_label_issues(y[rows], logits[None])
            return np.where(listed.is_issue, listed.suggested, y[rows])

        for k in range(3):
            rows = np.flatnonzero(folds != k)
            labels = issues(rows) if lists == "other folds" else issues(np.arange(300))[rows]
            found.append(LogisticRegression().fit(x[rows], labels).score(x[folds == k], y[folds == k]))
    return float(np.mean(found))


def test_a_list_of_all_folds_lets_labels_through_and_one_per_held_out_fold_does_not() -> None:
    assert noise("all folds") > 0.5  # of three classes, nothing to learn
    assert noise("other folds") == pytest.approx(1 / 3, abs=0.04)


def test_files_that_are_no_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.drop_issues: .*gone.csv: no such file; scripts/label_issues.py writes"):
        corrected(drop_issues=tmp_path / "gone.csv")
    empty = tmp_path / "empty.csv"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a readable CSV"):
        corrected(drop_issues=empty)


def test_an_image_in_both_lists_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", ["cell0,LY,MO"])
    with pytest.raises(UserError, match=r"both name 1 images: cell0; keep each in one"):
        corrected(drop_issues=path, relabel_issues=path)


@given(st.data())
def test_only_listed_images_change(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
    frame = labelled(labels)
    fate = data.draw(st.lists(st.sampled_from(["keep", "drop", *CLASSES]), min_size=len(labels), max_size=len(labels)))
    folder = tmp_path_factory.mktemp("lists")
    rows = [f"cell{i},{CLASSES[labels[i]]},{fate[i]}" for i in range(len(labels))]
    drop = write(folder / "drop.csv", [row for row, what in zip(rows, fate, strict=True) if what == "drop"])
    relabel = write(folder / "relabel.csv", [row for row, what in zip(rows, fate, strict=True) if what in CLASSES])
    lists = DataConfig(drop_issues=drop, relabel_issues=relabel)
    if set(fate) == {"drop"}:
        with pytest.raises(UserError, match=r"drop.csv: leaves nothing to train on; shorten the list"):
            read_corrections(lists, frame, CLASSES, np.zeros(len(labels), dtype=int), [1])
        return
    found = read_corrections(lists, frame, CLASSES, np.zeros(len(labels), dtype=int), [1])
    for label, what, new in zip(labels, fate, found[1], strict=True):
        assert new == {"keep": label, "drop": UNLABELLED}.get(what, CLASSES.index(what) if what in CLASSES else None)


def config_of(root: Path, tmp_path: Path, **data: Any) -> Config:
    """The smallest configuration that trains."""
    return Config.model_validate(
        {
            "data": {"root": root, "cache": tmp_path / "cache", "workers": 0, **data},
            "folds": {"count": 2},
            "image": {"size": 32},
            "model": {"backbone": "test_resnet", "pretrained": False},
            "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0},
        }
    )


def test_training_leaves_out_and_relabels_but_scores_all_as_given(rendered_wbcbench: Path, tmp_path: Path) -> None:
    plain = open_experiment(config_of(rendered_wbcbench, tmp_path), RunFolder("a", tmp_path / "oof"), progress=False)
    names, rows = plain.table.class_names, plain.labelled
    first, second = rows.iloc[0], rows.iloc[1]
    other = names[(second.label + 1) % len(names)]
    config = config_of(
        rendered_wbcbench,
        tmp_path,
        drop_issues=write(tmp_path / "drop.csv", [f"{first.image_id},{names[first.label]},"]),
        relabel_issues=write(tmp_path / "relabel.csv", [f"{second.image_id},{names[second.label]},{other}"]),
    )
    run = RunFolder("b", tmp_path / "oof")
    changed = open_experiment(config, run, progress=False)
    assert changed.corrected == (1, 1)
    said = experiment_summary(changed)
    assert "1 images are not trained on, 1 under another label; all are scored as given" in said
    assert "lists of label issues that know the labels held out: the scores are too high" in said
    assert np.array_equal(changed.folds, plain.folds)
    trained = pd.concat([changed.training_rows(fold) for fold in (0, 1)]).set_index("image_id").label
    assert first.image_id not in trained.index
    assert trained[second.image_id] == names.index(other)
    train_folds(config, run, [0, 1], resume=False, debug=False)
    loaded = load_run(run)
    leaks = "b: lists of label issues that know the labels held out: the scores are too high"
    assert caveats([loaded]) == [
        "RENDERED images, drawn by this project: these scores say nothing about patients",
        leaks,
    ]
    assert f"  {leaks}" in blend_summary(blend_runs([loaded]), None).splitlines()
    oof = loaded.oof
    assert oof.image_id.tolist() == rows.image_id.tolist()
    assert oof.label is not None
    assert oof.label.tolist() == rows.label.tolist()


def test_a_fold_left_out_is_seen_by_no_network(rendered_wbcbench: Path, tmp_path: Path) -> None:
    config = config_of(rendered_wbcbench, tmp_path)
    three = config.model_copy(update={"folds": FoldsConfig(count=3, left_out=1)})
    run = RunFolder("inner", tmp_path / "oof")
    experiment = open_experiment(three, run, progress=False)
    assert three.folds.numbers == [0, 2]
    for fold in (0, 2):
        trained = set(experiment.training_rows(fold).image_id)
        assert trained == set(experiment.labelled.image_id[experiment.folds == 2 - fold])
    assert "fold 1 is left out: no network of this run sees it" in experiment_summary(experiment)
    train_folds(three, run, three.folds.numbers, resume=False, debug=False)
    loaded = load_run(run)
    assert sorted(set(loaded.folds.tolist())) == [0, 2]
    assert loaded.missing_folds == []
    assert loaded.metadata["label_lists"] is None
    with pytest.raises(ValueError, match=r"left_out: 3 is no fold; there are 0 to 2"):
        FoldsConfig(count=3, left_out=3)


def test_a_run_does_not_go_on_after_its_list_has_changed(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("run", tmp_path / "oof")
    plain = open_experiment(config_of(rendered_wbcbench, tmp_path), run, progress=False)
    names, rows = plain.table.class_names, plain.labelled.head(2)
    lines = [f"{row.image_id},{names[row.label]}," for _, row in rows.iterrows()]
    path = write(tmp_path / "drop.csv", lines[:1])
    config = config_of(rendered_wbcbench, tmp_path, drop_issues=path)
    train_folds(config, run, [0], resume=False, debug=False)
    write(path, lines)
    with pytest.raises(UserError, match=r"trained with another choice of images to train on .*; name another run"):
        train_folds(config, run, [1], resume=False, debug=False)
