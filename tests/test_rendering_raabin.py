"""Rendered RaabinWBC and LISC: the layout, the smears that parts share, the plants, and how laboratories differ."""

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
from leukofold.rendering import LABELLED, LAYOUT_NAMES, RenderSpec, raabin, render
from leukofold.rendering.contact_sheet import laboratory_sheet
from leukofold.rendering.plan import PlannedImage

if TYPE_CHECKING:
    from tests.conftest import Commands

CLASSES = ["Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"]
PLANTED = RenderSpec(
    images=120, patients=9, seed=4, wrong_labels=0.1, exact_duplicates=3, near_duplicates=2, corrupt_files=3
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "raabin"
    render("raabin", root, PLANTED, workers=1, progress=False)
    return root


def truth_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "rendered_truth.csv", dtype=str, keep_default_na=False)


def decoded(path: Path) -> np.ndarray | None:
    content = path.read_bytes()
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None


def planned(images: int, patients: int = 40) -> pd.DataFrame:
    return pd.DataFrame([vars(image) for image in raabin.plan_images(RenderSpec(images=images, patients=patients))])


def counts_of(plan: pd.DataFrame) -> pd.DataFrame:
    return pd.crosstab(plan["split"], plan["true_label"])


def test_every_part_has_its_share_and_its_classes() -> None:
    plan = planned(1200)
    assert plan["split"].value_counts().to_dict() == {"Train": 660, "TestA": 216, "LISC": 216, "TestB": 108}
    counts = counts_of(plan)
    assert counts.columns.to_list() == CLASSES
    assert counts.T["TestB"].tolist() == [0, 0, 8, 0, 100]  # 148 : 1971
    assert counts.T["LISC"].tolist() == [46, 33, 50, 40, 47]  # 55 : 39 : 59 : 48 : 56
    real = np.array([212, 744, 2427, 561, 6231]) / 10175
    for part in ("Train", "TestA"):
        shares = counts.loc[part] / counts.loc[part].sum()
        assert shares.to_numpy() == pytest.approx((real + 0.2) / 2, abs=0.006)
        assert shares.min() > 0.08


def test_the_smallest_folder_has_every_class_and_a_smaller_one_is_refused(tmp_path: Path) -> None:
    counts = counts_of(planned(30, patients=4))
    assert (counts.drop("TestB") > 0).all(axis=None)
    assert (counts.T["TestB"] > 0).tolist() == [False, False, True, False, True]
    assert counts.to_numpy().sum() == 30
    for spec, message in (
        (RenderSpec(images=29), "render.images = 29: RaabinWBC and LISC need at least 30; raise it"),
        (
            RenderSpec(images=30, patients=40),
            "render.patients = 40: Train and TestA have only 22 images; lower patients or raise images",
        ),
        (RenderSpec(images=100, patients=5, near_duplicates=90), "render.near_duplicates = 90: only"),
        (RenderSpec(images=100, patients=5, corrupt_files=101), "render.corrupt_files = 101: only"),
    ):
        with pytest.raises(UserError) as refusal:
            render("raabin", tmp_path / "x", spec, progress=False)
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_train_and_testa_share_smears_and_testb_has_its_own() -> None:
    plan = planned(600, patients=12)
    smears = {split: set(rows.patient) for split, rows in plan.groupby("split")}
    assert len(smears["Train"] | smears["TestA"]) == 12
    assert len(smears["Train"] & smears["TestA"]) >= 10
    assert len(smears["TestB"]) == 6
    assert smears["TestB"].isdisjoint(smears["Train"] | smears["TestA"])
    assert smears["LISC"] == {""}
    assert all(raabin.smear_appearance("Train", 3, k) is raabin.smear_appearance("Train", 3, k) for k in range(4))
    looks = [raabin.smear_appearance(part, 3, 0) for part in ("Train", "TestA", "TestB", "LISC")]
    assert looks[0].light.tolist() == looks[1].light.tolist()
    assert len({tuple(look.light.tolist()) for look in looks}) == 3
    cells = pd.crosstab(plan["patient"], plan["split"])[["Train", "TestA"]].loc[sorted(smears["Train"])]
    both, quarter = cells.sum(axis=1), 18 / (55 + 18)
    deviation = (cells["TestA"] - quarter * both) / np.sqrt(quarter * (1 - quarter) * both)
    assert deviation.abs().max() < 3.5, "the same share of each smear, but for chance"


def test_names_tell_part_class_smear_picture_and_cell(planted: Path) -> None:
    truth = truth_of(planted)
    assert set(truth.path) == {path.relative_to(planted).as_posix() for path in planted.rglob("*.jpg")}
    assert len(truth) == PLANTED.images
    source = truth[truth.split != "LISC"]
    names = source.path.str.extract(r"^RaabinWBC/(Train|TestA|TestB)/(\w+)/(95-\d{1,2}-\d{1,2}-\d)_\d+_\d+\.jpg$")
    assert names.notna().all(axis=None)
    assert names.to_numpy().tolist() == source[["split", "given_label", "patient"]].to_numpy().tolist()
    assert source.image_id.is_unique
    lisc = truth[truth.split == "LISC"]
    parts = lisc.path.str.extract(r"^LISCCropped/(\w+)/(\d+)\.jpg$")
    assert parts[0].tolist() == lisc.given_label.tolist()
    for label, numbers in parts[1].astype(int).groupby(parts[0]):
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), label
    assert set(truth.true_label) == set(truth.given_label) == set(CLASSES)
    assert set(truth[truth.split == "TestB"].given_label) == {"Lymphocyte", "Neutrophil"}


def test_the_reader_finds_the_parts_the_classes_and_the_smears(tmp_path: Path) -> None:
    render("raabin", tmp_path / "r", RenderSpec(images=60, patients=5), workers=1, progress=False)
    truth = truth_of(tmp_path / "r").set_index("path")
    rows = get_competition("raabin").read(tmp_path / "r").frame
    assert len(rows) == 60
    found = [Path(path).relative_to((tmp_path / "r").resolve()).as_posix() for path in rows.path]
    truth = truth.loc[found]
    assert rows.split.tolist() == truth.split.tolist()
    assert [CLASSES[label] for label in rows.label] == truth.true_label.tolist()
    named = truth.patient.to_numpy() != ""
    assert rows.group[named].tolist() == truth.patient[named].tolist()
    assert rows.group[~named].is_unique


def test_plants_are_what_the_truth_says(planted: Path) -> None:
    truth = truth_of(planted).set_index("path", drop=False)
    assert truth.planted.value_counts().drop("").to_dict() == {
        "wrong_label": 12, "exact_duplicate": 3, "near_duplicate": 2, "corrupt": 3
    }  # fmt: skip
    assert ((truth.true_label != truth.given_label) == (truth.planted == "wrong_label")).all()
    for row in truth.to_dict("records"):
        image = decoded(planted / row["path"])
        assert (image is None) == (row["planted"] == "corrupt")
        if not row["duplicate_of"]:
            continue
        original = truth.loc[row["duplicate_of"]]
        assert {original["split"], row["split"]} == {"Train", "TestA"}
        assert original["true_label"] == row["true_label"]
        same = (planted / row["path"]).read_bytes() == (planted / row["duplicate_of"]).read_bytes()
        assert same == (row["planted"] == "exact_duplicate")
        copied = decoded(planted / row["duplicate_of"])
        assert image is not None
        assert copied is not None
        assert np.abs(image.astype(float) - copied).mean() < 15


def test_same_spec_gives_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    spec = RenderSpec(images=40, patients=4, seed=3, exact_duplicates=1, near_duplicates=1, corrupt_files=1)
    for workers in (1, 2):
        render("raabin", tmp_path / str(workers), spec, workers=workers, progress=False)
    names = sorted(path.relative_to(tmp_path / "1").as_posix() for path in (tmp_path / "1").rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path / "2").as_posix() for path in (tmp_path / "2").rglob("*.*"))
    _, different, failed = filecmp.cmpfiles(tmp_path / "1", tmp_path / "2", names, shallow=False)
    assert (different, failed) == ([], [])


def test_other_seed_gives_other_images() -> None:
    image = PlannedImage("", "", "LISC", "", "Monocyte", "Monocyte", 2, (raabin.SIDE, raabin.SIDE))
    assert raabin.draw(image, 0, 5) == raabin.draw(image, 0, 5)
    assert len({raabin.draw(image, index, seed) for index in (0, 1) for seed in (5, 6)}) == 4


@cache
def lymphocytes(part: str) -> list[np.ndarray]:
    """RGB images of lymphocytes on six smears."""
    images = []
    for index in range(12):
        image = PlannedImage("", "", part, "", "Lymphocyte", "Lymphocyte", index % 6, (raabin.SIDE, raabin.SIDE))
        pixels = cv2.imdecode(np.frombuffer(raabin.draw(image, index, 1), np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        images.append(pixels[:, :, ::-1])
    return images


def background(image: np.ndarray) -> np.ndarray:
    """Median colour of the image's brightest tenth, which nothing stained covers."""
    green = cv2.GaussianBlur(image[:, :, 1], (0, 0), 3.0)
    return np.asarray(np.median(image[green >= np.percentile(green, 90)], axis=0))


def nucleus_width(image: np.ndarray) -> float:
    """Diameter over the image's side of a disc of the nucleus' area: what absorbs most of the green light."""
    green = cv2.GaussianBlur(image[:, :, 1], (0, 0), 2.0)
    return float(np.sqrt(4 / np.pi * (green < 0.4 * background(image)[1]).mean()))


def test_laboratories_differ_in_light_size_and_sharpness() -> None:
    parts = {part: lymphocytes(part) for part in ("TestA", "TestB", "LISC")}
    light = {part: np.mean([background(image) for image in images], axis=0) for part, images in parts.items()}
    assert light["TestA"].mean() > light["TestB"].mean() + 8 > light["LISC"].mean() + 16
    assert light["TestA"][0] > light["TestA"][2] + 15, "a warm field"
    assert light["LISC"][1] / light["LISC"][0] > light["TestA"][1] / light["TestA"][0] + 0.05, "a greener field"
    assert abs(light["TestB"][0] - light["TestB"][2]) < 15, "another white balance"
    width = {part: np.median([nucleus_width(image) for image in images]) for part, images in parts.items()}
    assert 0.22 < width["TestA"] < width["TestB"] < 0.42
    assert 0.58 < width["LISC"] < 0.80
    assert {image.shape for part in ("TestA", "TestB") for image in parts[part]} == {(288, 288, 3)}
    sides = [image.shape[0] for image in parts["LISC"]]
    assert 120 <= min(sides) < max(sides) <= 200

    def edges(image: np.ndarray) -> float:
        """The steepest changes from pixel to pixel, over the whole range."""
        green = cv2.GaussianBlur(image[:, :, 1], (0, 0), 0.8).astype(float)
        return float(np.sort(np.abs(np.diff(green, axis=0)), axis=None)[-50] / np.ptp(green))

    sharp = {part: np.median([edges(image) for image in images]) for part, images in parts.items()}
    assert sharp["TestA"] > 1.15 * sharp["TestB"]
    assert sharp["TestA"] > 1.15 * sharp["LISC"]


def test_lisc_shows_cells_closely_whatever_their_class() -> None:
    widths: dict[str, list[float]] = {label: [] for label in CLASSES}
    for label, found in widths.items():
        for index in range(8):
            appearance = raabin.smear_appearance("LISC", 2, index)
            image = raabin.draw_cell("LISC", label, appearance, np.random.default_rng(index))
            inside = cv2.GaussianBlur(image[:, :, 1], (0, 0), 2.0) < 0.88 * background(image)[1]
            middle = inside[image.shape[0] // 2 - 4 : image.shape[0] // 2 + 4]
            found.append(middle.mean())  # across the middle
    assert all(0.55 < np.median(found) < 0.97 for found in widths.values()), widths


def test_the_sheet_has_a_row_for_each_class_and_laboratory(commands: Commands, tmp_path: Path) -> None:
    picture = laboratory_sheet(columns=1)
    assert picture.shape == (15 * 152, 180 + 152, 3)
    commands.succeed("render_cells.py", "--laboratories", tmp_path / "sheet.jpg")
    written = decoded(tmp_path / "sheet.jpg")
    assert written is not None
    assert written.shape[:2] == (15 * 152, 180 + 8 * 152)


def test_the_script_counts_labelled_images_only(commands: Commands, tmp_path: Path) -> None:
    assert "raabin" in LAYOUT_NAMES
    assert "raabin" in LABELLED
    size = ("--images", "40", "--patients", "4")
    printed = commands.succeed("render_cells.py", "--competition", "raabin", *size, "--out", tmp_path / "raabin")
    assert "rendered 40 images in raabin's layout" in printed
