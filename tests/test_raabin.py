"""RaabinWBC with LISC and BCCD: folders in any packaging, fixed classes, groups, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from leukofold.cells import COLUMNS
from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.metrics import METRICS
from leukofold.preparation import inspect_input

if TYPE_CHECKING:
    from tests.conftest import Commands

COMPETITION = get_competition("raabin")
FIVE = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")
JPEG = bytes(cv2.imencode(".jpg", np.full((12, 10, 3), 127, np.uint8))[1])
TRAIN = ("Train/Basophil/20190526_163446_1.jpg", "Train/Neutrophil/95-5-11-1_22_1.jpg")


def write(root: Path, *paths: str) -> Path:
    """Writes an image to each path below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(JPEG)
    return root


def all_parts(root: Path, source: str = "RaabinWBC/", lisc: str = "LISCCropped", bccd: str = "BCCDCropped") -> Path:
    """Writes a few images of every part, with a name that several parts share."""
    return write(
        root,
        f"{source}Train/Neutrophil/95-5-11-1_22_1.jpg",
        f"{source}Train/Neutrophil/95-5-11-1_101_1.jpg",
        f"{source}Train/Basophil/20190526_163446_1.jpg",
        f"{source}TestA/Neutrophil/95-5-11-1_22_1.jpg",
        f"{source}TestA/Eosinophil/95-8-27-1_3_0.jpg",
        f"{source}TestB/Neutrophil/cell.jpg",
        f"{source}TestB/Lymphocyte/20190601_101010_0.jpg",
        f"{lisc}/Monocyte/12_1.png",
        f"{lisc}/Monocyte/12_2.png",
        f"{lisc}/Neutrophil/12_1.png",
        f"{lisc}/Neutrophil/neut_7.jpg",
        f"{bccd}/Lymphocyte/BloodImage_00171_1.jpg",
    )


def test_the_five_classes_and_what_was_published() -> None:
    assert COMPETITION.class_names == FIVE
    assert COMPETITION.metric == "accuracy"
    assert COMPETITION.metric in METRICS
    assert COMPETITION.has_patients
    assert (COMPETITION.submission_suffix, COMPETITION.kaggle_download) == ("", ())
    totals = {split: sum(counts.values()) for split, counts in COMPETITION.published_counts.items()}
    assert totals == {"Train": 10175, "TestA": 4339, "TestB": 2119, "LISC": 257, "BCCD": 351}


def test_every_part_becomes_rows_by_split_class_and_name(tmp_path: Path) -> None:
    frame = COMPETITION.read(all_parts(tmp_path)).frame
    assert frame[["image_id", "label", "group", "source", "split"]].to_numpy().tolist() == [
        ["Train/Basophil/20190526_163446_1.jpg", 0, "20190526", "raabin", "Train"],
        ["Train/Neutrophil/95-5-11-1_101_1.jpg", 4, "95-5-11-1", "raabin", "Train"],
        ["Train/Neutrophil/95-5-11-1_22_1.jpg", 4, "95-5-11-1", "raabin", "Train"],
        ["TestA/Eosinophil/95-8-27-1_3_0.jpg", 1, "95-8-27-1", "raabin", "TestA"],
        ["TestA/Neutrophil/95-5-11-1_22_1.jpg", 4, "95-5-11-1", "raabin", "TestA"],
        ["TestB/Lymphocyte/20190601_101010_0.jpg", 2, "20190601", "raabin", "TestB"],
        ["TestB/Neutrophil/cell.jpg", 4, "cell", "raabin", "TestB"],
        ["LISC/Monocyte/12_1.png", 3, "LISC/Monocyte/12", "lisc", "LISC"],
        ["LISC/Monocyte/12_2.png", 3, "LISC/Monocyte/12", "lisc", "LISC"],
        ["LISC/Neutrophil/12_1.png", 4, "LISC/Neutrophil/12", "lisc", "LISC"],
        ["LISC/Neutrophil/neut_7.jpg", 4, "LISC/Neutrophil/neut_7", "lisc", "LISC"],
        ["BCCD/Lymphocyte/BloodImage_00171_1.jpg", 2, "BCCD/BloodImage_00171", "bccd", "BCCD"],
    ]
    assert list(frame.columns) == list(COLUMNS)
    assert not frame.is_external.any()
    assert set(frame.bytes) == {len(JPEG)}
    assert frame.path[0] == (tmp_path / "RaabinWBC/Train/Basophil/20190526_163446_1.jpg").as_posix()


@pytest.mark.parametrize(
    ("source", "lisc", "bccd"),
    [
        ("", "LISCCropped", "BCCD/BCCD_cropped"),
        ("data/RaabinWBC/Train/", "lisc/LISC_cropped", "bccdcropped"),
        ("a/b/", "LISCCropped/LISCCropped", "c/BCCD-Cropped"),
    ],
)
def test_packagings_of_any_depth_give_the_same_table(tmp_path: Path, source: str, lisc: str, bccd: str) -> None:
    usual = COMPETITION.read(all_parts(tmp_path / "usual"))
    assert COMPETITION.read(all_parts(tmp_path / "other", source, lisc, bccd)).fingerprint() == usual.fingerprint()


def test_the_case_of_folders_does_not_count(tmp_path: Path) -> None:
    usual = COMPETITION.read(write(tmp_path / "usual", *TRAIN, "TestB/Lymphocyte/a_1.jpg"))
    spelt = write(tmp_path / "spelt", *(path.lower() for path in TRAIN), "Test-B/LYMPHOCYTE/a_1.jpg")
    assert COMPETITION.read(spelt).fingerprint() == usual.fingerprint()


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path, *TRAIN)
    before = COMPETITION.read(root).fingerprint()
    write(root, "Train/.DS_Store", "Train/Basophil/Thumbs.db", "Train/Basophil/._a_1.jpg", "Train/sheet.png")
    write(root, "__MACOSX/Train/Basophil/a.jpg", "Train/.cache/a.jpg", "LISC/Train/1.bmp", "rendered_truth.csv")
    assert COMPETITION.read(root).fingerprint() == before


def test_class_indices_are_those_of_the_five_even_where_classes_are_missing(tmp_path: Path) -> None:
    table = COMPETITION.read(write(tmp_path, *TRAIN, "TestB/Neutrophil/a_1.jpg", "TestB/Lymphocyte/b_1.jpg"))
    rows = table.frame[table.frame.split == "TestB"]
    assert [(FIVE[label], Path(path).parent.name) for label, path in zip(rows.label, rows.path, strict=True)] == [
        ("Lymphocyte", "Lymphocyte"),
        ("Neutrophil", "Neutrophil"),
    ]


def test_absent_parts_are_told_as_absent(commands: Commands) -> None:
    write(commands.cwd / "input/raabin/RaabinWBC", *TRAIN, "TestA/Monocyte/95-5-4-1_1_1.jpg")
    said = commands.succeed("prepare_input.py", "--competition", "raabin")
    assert said.startswith("RaabinWBC in input/raabin\n  Train: 2 of 10175 images of 2 groups\n")
    assert "\n  LISC: 0 of 257 images\n    Basophil 0 (published 55)  Eosinophil 0 (published 39)  " in said
    assert "\n  TestB: 0 of 2119 images\n    Lymphocyte 0 (published 148)  Neutrophil 0 (published 1971)\n" in said
    assert said.endswith("every image decodes; 22 counts differ from the published ones\n")


def test_counts_stand_beside_the_published_ones(tmp_path: Path) -> None:
    counts = inspect_input(COMPETITION, all_parts(tmp_path), progress=False).counts
    found = counts.set_index(["split", "class"]).found
    assert found["LISC", "Neutrophil"] == 2
    assert found["TestA", "Eosinophil"] == 1
    assert (found.sum(), counts.published.sum()) == (12, 17241)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [(), ("Train.rar",), ("TestA/Basophil/a_1.jpg",), ("Train/a_1.jpg",)])
def test_no_training_images_are_refused_with_the_way_to_get_them(tmp_path: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"no folder Train .*https://raabindata\.com/free-data/.*input/README\.md"):
        COMPETITION.scan(write(tmp_path / "raabin", *paths))


def test_empty_training_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Train/Basophil").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Train: no images in its folders; download Train\.rar"):
        COMPETITION.scan(write(tmp_path, "LISCCropped/Basophil/1_1.png"))


@pytest.mark.parametrize("part", ["Train", "LISCCropped"])
def test_a_folder_that_is_no_class_is_refused_by_name(tmp_path: Path, part: str) -> None:
    root = write(tmp_path, *TRAIN, f"{part}/Basophil/1_1.jpg", f"{part}/mixt/1.jpg")
    with pytest.raises(UserError) as refused:
        COMPETITION.scan(root)
    assert str(refused.value) == (
        f"{root}/{part}/mixt: no class; known ones are {', '.join(FIVE)}; take it out of {part}, or rename it"
    )


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds TestA twice, in .*a/TestA and in .*b/Test-A; keep one of them"):
        COMPETITION.scan(write(tmp_path, *TRAIN, "a/TestA/Basophil/1_1.jpg", "b/Test-A/Basophil/1_1.jpg"))
