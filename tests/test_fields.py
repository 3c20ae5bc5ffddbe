"""Cells cut out of fields: squares around drawn discs, LISC's folders and masks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.images.fields import Box, cut_cells, cut_fields, find_fields
from leukofold.images.reading import read_image

if TYPE_CHECKING:
    from tests.conftest import Commands

HEIGHT, WIDTH = 180, 240
FIELDS, MASKS = "Main Dataset", "Ground Truth Segmentation"


def coordinates() -> np.ndarray:
    """A field whose pixels tell where they are: row, column, 0."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def drawn_mask(*discs: tuple[int, int, int], height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask of cells, each x, y and radius: grey cytoplasm, a white nucleus half as wide."""
    mask = np.zeros((height, width), np.uint8)
    for x, y, radius in discs:
        cv2.circle(mask, (x, y), radius, 128, cv2.FILLED)
        cv2.circle(mask, (x, y), radius // 2, 255, cv2.FILLED)
    return mask


class LiscFolder:
    """LISC's folders, to which fields and masks are added one by one."""

    def __init__(self, root: Path) -> None:
        """Sets the folder."""
        self.root = root

    def write(self, path: str, image: np.ndarray) -> Path:
        """Writes an image of any kind below the folder."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), image)
        return file

    def add(self, folder: str, name: str, *discs: tuple[int, int, int]) -> None:
        """Adds a field of coordinates and its mask."""
        self.write(f"{FIELDS}/{folder}/{name}.bmp", coordinates()[:, :, ::-1])
        self.write(f"{MASKS}/{folder}/areaforexpert1/{name}_expert.bmp", drawn_mask(*discs))


@pytest.fixture
def lisc(tmp_path: Path) -> LiscFolder:
    """An empty LISC folder, below the command lines' working folder."""
    return LiscFolder(tmp_path / "work" / "LISC Database")


# --- cutting ------------------------------------------------------------------------------------

SLOTS = [(x, y) for y in range(30, HEIGHT, 60) for x in range(30, WIDTH, 60)]  # centres 60 pixels apart


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(SLOTS), st.integers(8, 27), min_size=1, max_size=8),
    st.floats(0, 0.6),
    st.booleans(),
)
def test_every_disc_becomes_a_square_with_the_disc_in_its_middle(
    radii: dict[tuple[int, int], int], margin: float, binary: bool
) -> None:
    discs = [(x, y, radius) for (x, y), radius in radii.items()]
    mask = drawn_mask(*discs)
    cells = cut_cells(coordinates(), np.where(mask > 0, 255, 0).astype(np.uint8) if binary else mask, margin)
    assert sorted(cell.box for cell in cells) == sorted(
        Box(x - radius, y - radius, 2 * radius + 1, 2 * radius + 1) for x, y, radius in discs
    )
    for cell in cells:
        side = round(cell.box.width * (1 + 2 * margin))
        around = (side - cell.box.width) // 2
        assert cell.image.shape == (side, side, 3)
        inner = cell.image[around : around + cell.box.height, around : around + cell.box.width]
        rows, columns = slice(cell.box.y, cell.box.y + cell.box.height), slice(cell.box.x, cell.box.x + cell.box.width)
        assert np.array_equal(inner, coordinates()[rows, columns])


def test_a_cell_at_the_border_is_filled_by_reflection() -> None:
    (cell,) = cut_cells(coordinates(), drawn_mask((5, 100, 20)), margin=0.5)
    assert cell.box == Box(0, 80, 26, 41)
    padded = np.pad(coordinates(), [(50, 50), (50, 50), (0, 0)], mode="reflect")
    left, top = 0 - (82 - 26) // 2, 80 - (82 - 41) // 2
    assert np.array_equal(cell.image, padded[50 + top : 50 + top + 82, 50 + left : 50 + left + 82])


def test_a_cell_as_large_as_its_field_is_cut_with_its_margin() -> None:
    field = coordinates()[:40, :60]
    (cell,) = cut_cells(field, np.full((40, 60), 255, np.uint8), margin=1.0)
    assert cell.box == Box(0, 0, 60, 40)
    padded = np.pad(field, [(100, 100), (100, 100), (0, 0)], mode="reflect")
    assert np.array_equal(cell.image, padded[100 - 70 : 100 + 110, 100 - 60 : 100 + 120])


def test_specks_holes_and_a_dim_background_make_no_cells() -> None:
    mask = np.maximum(drawn_mask((60, 60, 25), (150, 60, 3)), 20)
    cv2.circle(mask, (60, 60), 10, 20, cv2.FILLED)
    assert [cell.box for cell in cut_cells(coordinates(), mask, 0)] == [Box(35, 35, 51, 51)]
    assert cut_cells(coordinates(), np.zeros((HEIGHT, WIDTH), np.uint8), 0) == []


def test_cells_come_from_top_to_bottom_at_the_fields_resolution() -> None:
    cells = cut_cells(coordinates(), drawn_mask((50, 120, 10), (200, 60, 20), (120, 60, 20)), margin=0)
    assert [(cell.box.x, cell.box.y) for cell in cells] == [(100, 40), (180, 40), (40, 110)]
    assert [cell.image.shape for cell in cells] == [(41, 41, 3), (41, 41, 3), (21, 21, 3)]


# --- LISC's folders -----------------------------------------------------------------------------


def test_crops_and_their_list(lisc: LiscFolder, tmp_path: Path) -> None:
    lisc.add("Baso", "7", (60, 60, 20), (160, 100, 30))
    lisc.add("neut", "10", (100, 90, 20))
    lisc.add("neut", "9", (100, 90, 25))
    report = cut_fields(lisc.root, tmp_path / "out", 0.0, progress=False)
    assert report.counts == {"Basophil": 2, "Eosinophil": 0, "Lymphocyte": 0, "Monocyte": 0, "Neutrophil": 2}
    assert (report.fields, report.without_mask, report.without_cell, report.mixed) == (3, [], [], 0)
    listed = pd.read_csv(tmp_path / "out" / "cells.csv")
    mask = f"{MASKS}/Baso/areaforexpert1/7_expert.bmp"
    assert listed.iloc[:2].to_numpy().tolist() == [
        ["Basophil/7_1.png", f"{FIELDS}/Baso/7.bmp", mask, 40, 40, 41, 41],
        ["Basophil/7_2.png", f"{FIELDS}/Baso/7.bmp", mask, 130, 70, 61, 61],
    ]
    assert listed.columns.tolist() == ["crop", "field", "mask", "x", "y", "width", "height"]
    assert listed.crop.tolist()[2:] == ["Neutrophil/9_1.png", "Neutrophil/10_1.png"]
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")) == [
        "Basophil/7_1.png", "Basophil/7_2.png", "Neutrophil/10_1.png", "Neutrophil/9_1.png",
    ]  # fmt: skip
    for crop, x, y, side in zip(listed.crop, listed.x, listed.y, listed.width, strict=True):
        assert np.array_equal(read_image(tmp_path / "out" / crop), coordinates()[y : y + side, x : x + side])


def test_masks_slightly_smaller_than_their_fields_belong_into_the_middle(lisc: LiscFolder, tmp_path: Path) -> None:
    lisc.write(f"{FIELDS}/mono/1.bmp", coordinates()[:, :, ::-1])
    small = drawn_mask((96, 86, 20), height=HEIGHT - 8, width=WIDTH - 8)
    lisc.write(f"{MASKS}/mono/areaforexpert1/1_expert.bmp", small)
    cut_fields(lisc.root, tmp_path / "out", 0.0, progress=False)
    assert read_image(tmp_path / "out/Monocyte/1_1.png")[20, 20].tolist() == [90, 100, 0]  # row, column of the middle


def test_the_first_experts_mask_is_preferred_wherever_it_lies(lisc: LiscFolder) -> None:
    lisc.write("fields/LYMP/3.jpg", coordinates())
    lisc.write("a/lymp/areaforexpert2/3_expert.bmp", drawn_mask((60, 60, 20)))
    lisc.write("b/Lymp/AreaForExpert1/3_expert.png", drawn_mask((60, 60, 20)))
    lisc.write("b/neut/areaforexpert1/3_expert.png", drawn_mask((60, 60, 20)))
    ((field,), mixed) = find_fields(lisc.root)
    assert (field.class_name, field.path.name, mixed) == ("Lymphocyte", "3.jpg", 0)
    assert field.mask == lisc.root / "b/Lymp/AreaForExpert1/3_expert.png"


def test_fields_without_a_mask_or_cell_or_of_several_classes_are_left_out_and_told(
    lisc: LiscFolder, commands: Commands
) -> None:
    lisc.add("eosi", "1", (60, 60, 20))
    lisc.add("eosi", "2")
    lisc.add("mixt", "1", (60, 60, 20))
    lisc.write(f"{FIELDS}/eosi/3.bmp", coordinates())
    lisc.write("More Dataset without Ground Truth/alll/4.bmp", coordinates())
    said = commands.succeed("cut_fields.py", "LISC Database", "--out", "cells")
    assert said == (
        "cells: 1 cells of 1 fields (Basophil 0, Eosinophil 1, Lymphocyte 0, Monocyte 0, Neutrophil 0)\n"
        "left out 1 fields without a mask: Main Dataset/eosi/3.bmp\n"
        "left out 1 fields whose mask shows no cell: Main Dataset/eosi/2.bmp\n"
        "left out 1 fields of several classes (mixt)\n"
    )
    assert read_image(commands.cwd / "cells/Eosinophil/1_1.png").shape == (53, 53, 3)  # 41 * 1.3


def test_cut_cells_are_the_raabin_readers_split_lisc(lisc: LiscFolder, commands: Commands) -> None:
    lisc.add("Baso", "12", (60, 60, 20), (160, 100, 30))
    lisc.add("neut", "12", (60, 60, 20))
    commands.succeed("cut_fields.py", lisc.root, "--out", "input/raabin/LISCCropped", "--margin", "0.3")
    train = commands.cwd / "input/raabin/RaabinWBC/Train/Basophil"
    train.mkdir(parents=True)
    cv2.imwrite(str(train / "95-5-11-1_22_1.jpg"), coordinates())
    frame = get_competition("raabin").read(commands.cwd / "input/raabin").frame
    assert frame[frame.split == "LISC"][["image_id", "label", "group", "source"]].to_numpy().tolist() == [
        ["LISC/Basophil/12_1.png", 0, "LISC/Basophil/12", "lisc"],
        ["LISC/Basophil/12_2.png", 0, "LISC/Basophil/12", "lisc"],
        ["LISC/Neutrophil/12_1.png", 4, "LISC/Neutrophil/12", "lisc"],
    ]
    assert "LISC: 3 of 257 images of 2 groups" in commands.succeed("prepare_input.py", "--competition", "raabin")


# --- refusals -----------------------------------------------------------------------------------


def test_what_cannot_be_cut_is_refused_before_anything_is_written(lisc: LiscFolder, commands: Commands) -> None:
    refused = commands.refused
    assert "LISC Database: no fields (" in refused("cut_fields.py", lisc.root, "--out", "cells")
    lisc.write(f"{FIELDS}/neut/1.bmp", coordinates())
    assert "1 fields, but none has a mask N_expert" in refused("cut_fields.py", lisc.root, "--out", "cells")
    lisc.add("neut", "2", (60, 60, 20))
    assert "--margin -0.1: give a share" in refused("cut_fields.py", lisc.root, "--out", "cells", "--margin", "-0.1")
    said = refused("cut_fields.py", lisc.root, "--out", "LISC Database")
    assert said == "error: LISC Database: exists; name another folder, or delete it first"


@pytest.mark.parametrize(("height", "width"), [(HEIGHT + 1, WIDTH), (HEIGHT, WIDTH - 9), (WIDTH, HEIGHT)])
def test_a_mask_of_another_size_is_refused_and_nothing_is_left(
    lisc: LiscFolder, tmp_path: Path, height: int, width: int
) -> None:
    lisc.add("neut", "1", (60, 60, 20))
    lisc.write(f"{FIELDS}/neut/2.bmp", coordinates())
    lisc.write(f"{MASKS}/neut/areaforexpert1/2_expert.bmp", drawn_mask((60, 60, 20), height=height, width=width))
    with pytest.raises(UserError, match=rf"2_expert\.bmp: the mask has {width} x {height} pixels, its field 240 x 180"):
        cut_fields(lisc.root, tmp_path / "out" / "cells", 0.1, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_masks_without_any_cell_and_fields_that_are_there_twice_are_refused(lisc: LiscFolder, tmp_path: Path) -> None:
    lisc.add("neut", "1")
    with pytest.raises(UserError, match="no mask shows a cell"):
        cut_fields(lisc.root, tmp_path / "out", 0.1, progress=False)
    assert not (tmp_path / "out").exists()
    lisc.write("copy/Neut/1.bmp", coordinates())
    with pytest.raises(UserError, match=r"1\.bmp and .*1\.bmp are the same field; keep one of them"):
        find_fields(lisc.root)
