"""Lists of label issues change what is trained on, and nothing of what is scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukofold.blending.loading import load_run
from leukofold.cells import UNLABELLED
from leukofold.config import Config, DataConfig
from leukofold.corrections import read_corrections
from leukofold.errors import UserError
from leukofold.experiment import experiment_summary, open_experiment
from leukofold.runs import RunFolder
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


def corrected(**lists: Path) -> list[int]:
    """The labels to train on."""
    found: list[int] = read_corrections(DataConfig.model_validate(lists), labelled(), CLASSES).tolist()
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
        (["cell0,LY"], "image_id,given_label", r"no column suggested_label, only image_id, given_label"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, rows: list[str], header: str | None, message: str) -> None:
    path = write(tmp_path / "list.csv", rows, header or "image_id,given_label,suggested_label")
    with pytest.raises(UserError, match=message):
        corrected(relabel_issues=path)


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
    found = read_corrections(DataConfig(drop_issues=drop, relabel_issues=relabel), frame, CLASSES)
    for label, what, new in zip(labels, fate, found, strict=True):
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
    assert "1 images are not trained on, 1 under another label; all are scored as given" in experiment_summary(changed)
    assert np.array_equal(changed.folds, plain.folds)
    trained = pd.concat([changed.training_rows(fold) for fold in (0, 1)]).set_index("image_id").label
    assert first.image_id not in trained.index
    assert trained[second.image_id] == names.index(other)
    train_folds(config, run, [0, 1], resume=False, debug=False)
    oof = load_run(run).oof
    assert oof.image_id.tolist() == rows.image_id.tolist()
    assert oof.label is not None
    assert oof.label.tolist() == rows.label.tolist()


def test_a_run_does_not_go_on_after_its_list_has_changed(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("run", tmp_path / "oof")
    plain = open_experiment(config_of(rendered_wbcbench, tmp_path), run, progress=False)
    names, rows = plain.table.class_names, plain.labelled.head(2)
    lines = [f"{row.image_id},{names[row.label]}," for _, row in rows.iterrows()]
    path = write(tmp_path / "drop.csv", lines[:1])
    config = config_of(rendered_wbcbench, tmp_path, drop_issues=path)
    train_folds(config, run, [0], resume=False, debug=False)
    write(path, lines)
    with pytest.raises(UserError, match=r"trained with another corrections_sha256; name another run"):
        train_folds(config, run, [1], resume=False, debug=False)
