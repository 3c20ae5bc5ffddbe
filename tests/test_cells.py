"""The table of cells: its contract, its parts, its counts and its fingerprint."""

from typing import Any

import numpy as np
import pytest

from leukofold.cells import COLUMNS, UNLABELLED, CellTable
from leukofold.errors import UserError, name_some

CLASSES = ("a", "b", "c")


def table(**changes: Any) -> CellTable:
    columns: dict[str, Any] = {
        "image_id": ["007.jpg", "9.jpg", "5.jpg", "1.jpg"],
        "path": ["/x/007.jpg", "/x/9.jpg", "/x/5.jpg", "/x/1.jpg"],
        "bytes": [10, 20, 30, 40],
        "label": [2, UNLABELLED, 0, UNLABELLED],
        "group": ["p", "", "q", ""],
        "source": ["wbc"] * 4,
        "is_external": [False] * 4,
        "split": ["train", "test", "eval", "test"],
    }
    return CellTable.from_columns(CLASSES, **{**columns, **changes})


def test_labelled_and_unlabelled_rows_come_apart_in_the_order_of_the_list() -> None:
    cells = table()
    assert cells.labelled.image_id.tolist() == ["007.jpg", "5.jpg"]
    assert cells.test.image_id.tolist() == ["9.jpg", "1.jpg"]
    assert cells.labelled.index.tolist() == cells.test.index.tolist() == [0, 1]


def test_columns_have_their_types() -> None:
    frame = table().frame
    assert list(frame.columns) == list(COLUMNS)
    assert frame.label.dtype == np.int64
    assert frame.is_external.dtype == np.bool_
    assert all(isinstance(image_id, str) for image_id in frame.image_id)


def test_an_id_that_stands_twice_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"1 image ids stand twice.*9\.jpg"):
        table(image_id=["007.jpg", "9.jpg", "5.jpg", "9.jpg"])


@pytest.mark.parametrize("labels", [[3, -1, 0, -1], [0, -2, 0, -1]])
def test_labels_outside_the_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels outside 0\.\.2"):
        table(label=labels)


def test_a_labelled_image_needs_a_group() -> None:
    with pytest.raises(ValueError, match="without a group"):
        table(group=["p", "", "", ""])


def test_columns_must_be_those_of_the_contract() -> None:
    with pytest.raises(ValueError, match="columns"):
        CellTable(table().frame.drop(columns="source"), CLASSES)


def test_counts_are_per_split_and_class_with_absent_classes_as_zero() -> None:
    counts = table().counts()
    assert counts.index.tolist() == ["train", "test", "eval"]
    assert counts.columns.tolist() == ["a", "b", "c", "unlabelled"]
    assert counts.to_numpy().tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [1, 0, 0, 0]]


def test_an_empty_table_is_possible() -> None:
    cells = table(**{name: [] for name in COLUMNS})
    assert cells.labelled.empty
    assert cells.test.empty
    assert cells.counts().empty


def test_the_fingerprint_does_not_depend_on_the_folder() -> None:
    assert table(path=["/y/a", "/y/b", "/y/c", "/y/d"]).fingerprint() == table().fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": ["008.jpg", "9.jpg", "5.jpg", "1.jpg"]},
        {"image_id": ["9.jpg", "007.jpg", "5.jpg", "1.jpg"]},
        {"bytes": [11, 20, 30, 40]},
        {"label": [1, UNLABELLED, 0, UNLABELLED]},
        {"group": ["r", "", "q", ""]},
        {"source": ["wbc", "wbc", "pbc", "wbc"]},
        {"is_external": [False, False, True, False]},
        {"split": ["train", "test", "train", "test"]},
    ],
)
def test_the_fingerprint_changes_with_what_the_files_hold(change: dict[str, Any]) -> None:
    assert table(**change).fingerprint() != table().fingerprint()


def test_the_fingerprint_changes_with_the_class_order() -> None:
    assert CellTable(table().frame, ("b", "a", "c")).fingerprint() != table().fingerprint()


def test_long_lists_are_cut_for_messages() -> None:
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert name_some([]) == ""
