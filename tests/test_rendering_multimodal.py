"""Rendered multimodal cells: layout and list, registration, plants of whole cells, and what each modality shows."""

from __future__ import annotations

import filecmp
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest

from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.rendering import LABELLED, LAYOUT_NAMES, RenderSpec, multimodal, render
from leukofold.rendering.contact_sheet import modality_sheet

if TYPE_CHECKING:
    from tests.conftest import Commands

CLASSES = ["Neutrophil", "Lymphocyte", "Eosinophil", "Monocyte", "Basophil"]
BANDS = ["Color1", "Color2", "Color3"]
MODALITIES = ["Fluorescent", *BANDS]
PLANTED = RenderSpec(
    images=40, patients=7, seed=4, wrong_labels=0.15, exact_duplicates=2, near_duplicates=3, corrupt_files=3
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "multimodal"
    render("multimodal", root, PLANTED, workers=1, progress=False)
    return root


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def decoded(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    content = path.read_bytes()
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None


def planned(spec: RenderSpec) -> pd.DataFrame:
    """The plan's first row of each cell."""
    return pd.DataFrame([vars(image) for image in multimodal.plan_images(spec)]).drop_duplicates("image_id")


@cache
def cells(label: str) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Scenes of a class, each of another patient, and their pictures (RGB)."""
    found = []
    for index in range(6):
        look = multimodal.patient_look(1, index)
        scene = multimodal.draw_scene(label, look, np.random.default_rng([index, 1]))
        rng = np.random.default_rng([index, 2])
        found.append((scene, {name: multimodal.take_picture(name, scene, look, rng) for name in MODALITIES}))
    return found


def test_classes_have_the_mean_of_their_published_share_and_a_fifth() -> None:
    plan = planned(RenderSpec(images=1000, patients=30))
    shares = plan.true_label.value_counts(normalize=True)
    real = np.array([9616, 4448, 677, 124, 47]) / 14912
    assert shares[CLASSES].to_numpy() == pytest.approx((real + 0.2) / 2, abs=0.002)
    assert plan.patient.nunique() == 30
    smallest = planned(RenderSpec(images=5, patients=2))
    assert sorted(smallest.true_label) == sorted(CLASSES)


def test_cells_numbers_are_unique_and_tell_no_class() -> None:
    plan = planned(RenderSpec(images=2000, patients=40, seed=9))
    assert plan.image_id.is_unique
    assert plan.image_id.str.fullmatch(r"\d{6}").all()
    assert plan.image_id.is_monotonic_increasing
    in_order = plan.true_label.to_numpy()
    chance = (plan.true_label.value_counts(normalize=True) ** 2).sum()
    assert (in_order[1:] == in_order[:-1]).mean() == pytest.approx(chance, abs=0.04)
    of_patient = plan.patient.to_numpy()
    assert (of_patient[1:] == of_patient[:-1]).mean() < 0.08


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for spec, message in (
        (
            RenderSpec(images=4, patients=1),
            "render.images = 4: multimodal needs at least 5 cells, one per class; raise",
        ),
        (RenderSpec(images=30), "render.patients = 40: there are only 30 cells; lower patients or raise images"),
        (RenderSpec(images=40, patients=5, exact_duplicates=39), "render.exact_duplicates = 39: only"),
        (RenderSpec(images=40, patients=5, corrupt_files=161), "render.corrupt_files = 161: only 160 images are left"),
    ):
        with pytest.raises(UserError) as refusal:
            render("multimodal", tmp_path / "x", spec, progress=False)
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_every_file_and_agrees_with_the_truth(planted: Path) -> None:
    assert (planted / "cells.csv").read_text().splitlines()[0] == (
        "cell_id,label,patient,Fluorescent,Color1,Color2,Color3"
    )
    listed, truth = table_of(planted / "cells.csv"), table_of(planted / "rendered_truth.csv")
    assert len(listed) == PLANTED.images
    assert len(truth) == 4 * PLANTED.images
    assert listed.patient.nunique() == PLANTED.patients
    assert set(truth.path) == {path.relative_to(planted).as_posix() for path in planted.rglob("*.png")}
    for name in MODALITIES:
        assert listed[name].tolist() == (name + "/" + listed.label + "/" + listed.cell_id + ".png").tolist()
    of_cell = truth.set_index("path")
    for name in MODALITIES:
        rows = of_cell.loc[listed[name]]
        assert rows.image_id.tolist() == listed.cell_id.tolist()
        assert rows.given_label.tolist() == listed.label.tolist()
        assert rows.patient.tolist() == listed.patient.tolist()
    assert set(truth.split) == {"train"}
    assert set(truth.true_label) == set(CLASSES)


def test_the_reader_finds_the_cells_their_patients_and_files(tmp_path: Path) -> None:
    render("multimodal", tmp_path / "m", RenderSpec(images=20, patients=4), workers=1, progress=False)
    listed = table_of(tmp_path / "m" / "cells.csv").set_index("cell_id")
    rows = get_competition("multimodal").read(tmp_path / "m").frame
    assert sorted(rows.image_id) == sorted(listed.index)
    listed = listed.loc[rows.image_id]
    assert [CLASSES[label] for label in rows.label] == listed.label.tolist()
    assert rows.group.tolist() == listed.patient.tolist()


def test_plants_are_of_whole_cells_and_damage_of_single_files(planted: Path) -> None:
    truth = table_of(planted / "rendered_truth.csv").set_index("path", drop=False)
    assert truth.planted.value_counts().drop("").to_dict() == {
        "wrong_label": 24, "exact_duplicate": 8, "near_duplicate": 12, "corrupt": 3
    }  # fmt: skip
    assert ((truth.true_label != truth.given_label) == (truth.planted == "wrong_label")).all()
    whole = truth[truth.planted != "corrupt"]
    of_cell = whole[whole.planted != ""].groupby("image_id").planted
    assert (of_cell.nunique() == 1).all()
    assert (of_cell.size() == 4).all()
    for row in truth.to_dict("records"):
        assert (decoded(planted / row["path"]) is None) == (row["planted"] == "corrupt")
        if row["duplicate_of"]:
            original = truth.loc[row["duplicate_of"]]
            assert original["true_label"] == row["true_label"]
            assert original["patient"] != row["patient"]
            assert row["path"].split("/")[0] == row["duplicate_of"].split("/")[0], "the same modality"
            same = (planted / row["path"]).read_bytes() == (planted / row["duplicate_of"]).read_bytes()
            assert same == (row["planted"] == "exact_duplicate")
    copies = truth[truth.duplicate_of != ""]
    assert (copies.groupby("image_id").duplicate_of.agg(lambda paths: len({Path(p).name for p in paths})) == 1).all()


def shift_of(copy: np.ndarray, original: np.ndarray) -> tuple[int, int]:
    """The move by up to a pixel that brings the original to its copy."""
    moves = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    moved = [np.roll(original.astype(float), move, axis=(0, 1)) for move in moves]
    return moves[int(np.argmax([np.corrcoef(each.ravel(), copy.ravel())[0, 1] for each in moved]))]


def test_the_four_files_of_a_near_duplicate_move_alike(planted: Path) -> None:
    truth = table_of(planted / "rendered_truth.csv")
    near = truth[truth.planted == "near_duplicate"]
    shifts: dict[str, set[tuple[int, int]]] = {}
    for row in near.to_dict("records"):
        copy, original = decoded(planted / row["path"]), decoded(planted / row["duplicate_of"])
        assert copy is not None
        assert original is not None
        shifts.setdefault(row["image_id"], set()).add(shift_of(copy, original))
    assert [len(found) for found in shifts.values()] == [1, 1, 1]
    assert shifts.keys() == set(near.image_id)


def test_same_spec_gives_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    spec = RenderSpec(images=12, patients=3, seed=3, exact_duplicates=1, near_duplicates=1, corrupt_files=1)
    for workers in (1, 2):
        render("multimodal", tmp_path / str(workers), spec, workers=workers, progress=False)
    names = sorted(path.relative_to(tmp_path / "1").as_posix() for path in (tmp_path / "1").rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path / "2").as_posix() for path in (tmp_path / "2").rglob("*.*"))
    assert len(names) == 4 * 12 + 3
    _, different, failed = filecmp.cmpfiles(tmp_path / "1", tmp_path / "2", names, shallow=False)
    assert (different, failed) == ([], [])


def test_a_file_depends_on_seed_and_number_but_not_on_what_was_drawn_before() -> None:
    images = multimodal.plan_images(RenderSpec(images=10, patients=2, seed=5))
    alone = multimodal.draw(images[6], 6, 5)
    for index in (0, 1, 4):
        multimodal.draw(images[index], index, 5)
    assert multimodal.draw(images[6], 6, 5) == alone
    assert multimodal.draw(images[6], 6, 6) != alone
    assert multimodal.draw(images[6], 2, 5) != alone


def test_bands_are_grey_files_and_fluorescence_is_colour(planted: Path) -> None:
    for path in planted.rglob("*.png"):
        image = decoded(path, cv2.IMREAD_UNCHANGED)
        if image is not None:
            assert image.shape == ((160, 160, 3) if path.parts[-3] == "Fluorescent" else (160, 160)), path
            assert path.stat().st_size < 60_000
    for _, pictures in cells("Monocyte"):
        assert all((pictures[band] == pictures[band][:, :, :1]).all() for band in BANDS)


@pytest.mark.parametrize("label", CLASSES)
def test_fluorescence_shows_a_green_nucleus_in_a_dim_red_cell_on_black(label: str) -> None:
    for scene, pictures in cells(label):
        image = cv2.GaussianBlur(pictures["Fluorescent"], (0, 0), 1.5).astype(float)
        nucleus = scene[:, :, 1] > 0.6
        rim = (scene[:, :, 0] > 0.06) & (cv2.dilate(nucleus.astype(np.uint8), np.ones((9, 9))) == 0)
        assert 100 < nucleus.sum() < 7000
        assert image[nucleus, 1].mean() > 75
        assert image[nucleus, 1].mean() > 1.2 * image[nucleus, 0].mean()
        assert np.median(pictures["Fluorescent"][:25]) <= 3, "nothing shines, red cells included"
        if rim.sum() > 60:
            assert image[rim, 0].mean() > image[rim, 1].mean() - 3
            assert 5 < image[rim, 0].mean() < 0.7 * image[nucleus, 1].mean()


def test_the_bands_show_the_red_cells_in_the_same_places() -> None:
    shifts = []
    for _, pictures in (cell for label in CLASSES for cell in cells(label)):
        violet, green, red = (cv2.GaussianBlur(pictures[band][:, :, 0], (0, 0), 1.5).astype(float) for band in BANDS)
        shifts += [np.linalg.norm(cv2.phaseCorrelate(violet, other)[0]) for other in (green, red)]
    assert max(shifts) < 0.5


@pytest.mark.parametrize("label", CLASSES)
def test_the_nucleus_that_shines_is_the_one_that_absorbs(label: str) -> None:
    steps = [(y, x) for y in (-8, 0, 8) for x in (-8, 0, 8)]
    dark = np.zeros(len(steps))
    for _, pictures in cells(label):
        nucleus = cv2.GaussianBlur(pictures["Fluorescent"][:, :, 1], (0, 0), 1.5) > 50
        dark -= [pictures["Color3"][np.roll(nucleus, step, axis=(0, 1)), 0].mean() for step in steps]
    assert steps[int(np.argmax(dark))] == (0, 0)


def absorbed(band: str, label: str) -> float:
    """Light that the middle of a class's cells lacks, over that of the empty field (median of cells)."""
    inside = np.hypot(*(np.indices((160, 160)) - 80)) < 22
    images = [pictures[band][:, :, 0] for _, pictures in cells(label)]
    return float(np.median([1 - image[inside].mean() / np.percentile(image, 90) for image in images]))


def test_each_band_has_its_own_granules() -> None:
    violet = {label: absorbed("Color1", label) for label in CLASSES}
    green = {label: absorbed("Color2", label) for label in CLASSES}
    assert max(violet, key=lambda label: violet[label]) == "Eosinophil"
    assert violet["Eosinophil"] - violet["Neutrophil"] > 2 * abs(green["Eosinophil"] - green["Neutrophil"])
    assert max(green, key=lambda label: green[label]) == "Basophil"
    assert green["Basophil"] - green["Neutrophil"] > 2 * abs(violet["Basophil"] - violet["Neutrophil"])


def test_red_cells_absorb_violet_light_most() -> None:
    images = [pictures for _, pictures in cells("Neutrophil")]
    darkest = {
        band: np.median([np.percentile(image[band], 2) / np.percentile(image[band], 90) for image in images])
        for band in BANDS
    }
    assert darkest["Color1"] < 0.75 < 0.8 < darkest["Color2"] < darkest["Color3"]


def test_the_script_counts_cells_and_draws_a_row_for_each_modality(commands: Commands, tmp_path: Path) -> None:
    assert "multimodal" in LAYOUT_NAMES
    assert "multimodal" in LABELLED
    assert modality_sheet(columns=1).shape == (32 + 4 * 152, 180 + 5 * 152, 3)
    folder = ("--competition", "multimodal", "--images", "8", "--patients", "3", "--out", tmp_path / "m")
    printed = commands.succeed("render_cells.py", *folder, "--modalities", tmp_path / "sheet.jpg")
    assert "rendered 8 cells in multimodal's layout" in printed
    written = decoded(tmp_path / "sheet.jpg")
    assert written is not None
    assert written.shape == (32 + 4 * 152, 180 + 10 * 152, 3)
