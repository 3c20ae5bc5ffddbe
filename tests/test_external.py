"""External data sets: layouts made by hand, their classes and counts, what is refused, and rendered ones."""

from __future__ import annotations

import csv
import filecmp
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold.cells import COLUMNS, CellTable
from leukofold.errors import UserError
from leukofold.external import get_source, names, read_source
from leukofold.images.reading import read_image
from leukofold.rendering import EXTERNAL, LAYOUT_NAMES, RenderSpec, is_current, render, rendered_info
from leukofold.rendering.degradation import degrade_folder
from leukofold.rendering.external import FOLDER_OF, FOLDERS
from leukofold.rendering.folder import LAYOUTS

if TYPE_CHECKING:
    from tests.conftest import Commands

WBC = ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")
JPEG = bytes(cv2.imencode(".jpg", np.full((12, 10, 3), 127, np.uint8))[1])
TOP = "PBC_dataset_normal_DIB"
HOW_ACEVEDO = (
    "download https://data.mendeley.com/datasets/snkd93bnjr and unpack PBC_dataset_normal_DIB.zip there "
    "(licence: CC BY 4.0), as input/README.md shows"
)
SPEC = RenderSpec(images=45, seed=4, wrong_labels=0.1, exact_duplicates=2, near_duplicates=2, corrupt_files=3)


def write(root: Path, *paths: str, content: bytes = JPEG) -> Path:
    """Writes files below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def a_bit_of_acevedo(root: Path, top: str = TOP) -> Path:
    """Writes an image of each of Acevedo-20's prefixes into its real folder, and a second promyelocyte."""
    paths = [f"{top}/{folder}/{prefix}_{100 + i}.jpg" for i, (prefix, folder) in enumerate(FOLDER_OF.items())]
    return write(root, *paths, f"{top}/ig/PMY_999.jpg")


def refusal(name: str, root: Path, take: list[str] | None = None, partial: bool = True) -> str:
    """Reads a data set that must be refused, and returns the one line."""
    with pytest.raises(UserError) as refused:
        read_source(name, root, WBC, take, partial)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def classes_of(frame: pd.DataFrame) -> dict[str, int]:
    return dict(Counter(WBC[label] for label in frame.label))


# --- what is there ------------------------------------------------------------------------------


def test_every_module_is_a_data_set() -> None:
    assert names() == ["acevedo", "blood8", "cellwiki"]
    for name in names():
        source = get_source(name)
        assert source.name == name
        assert set(source.published_counts) <= set(source.labels)
        assert {target for target in source.labels.values() if target is not None} <= set(WBC)


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^data\.external: unknown data set 'acevdo'; did you mean 'acevedo'\?$"):
        get_source("acevdo")
    with pytest.raises(UserError, match=r"^data\.external: unknown data set 'x'; known ones: acevedo, blood8, cell"):
        get_source("x")


def test_published_counts_are_those_of_the_papers() -> None:
    counts = get_source("acevedo").published_counts
    assert sum(counts.values()) == 17092
    folders = {"basophil": 1218, "eosinophil": 3117, "ig": 2895, "lymphocyte": 1214, "monocyte": 1420}
    for folder, number in {**folders, "neutrophil": 3329}.items():
        assert sum(counts[label] for label in FOLDERS[folder]) == number
    taken = sum(counts[label] for label in ("MO", "EO", "BNE", "PMY", "BA", "MY", "MMY"))
    plasma, prolymphocytes = (get_source(name).published_counts for name in ("blood8", "cellwiki"))
    assert (taken, dict(plasma), dict(prolymphocytes)) == (10132, {"plasma cell": 2895}, {"prolymphocyte": 18})
    assert taken + 2895 + 18 == 13045


# --- rows ---------------------------------------------------------------------------------------


def test_rows_of_acevedo(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path / "in")
    frame = read_source("acevedo", root, WBC, ["PMY", "BA"], partial=True)
    assert frame.to_dict("records") == [
        {
            "image_id": f"acevedo/{TOP}/{path}",
            "path": f"{root.as_posix()}/{TOP}/{path}",
            "bytes": len(JPEG),
            "label": label,
            "group": f"acevedo/{TOP}/{path}",
            "source": "acevedo",
            "is_external": True,
            "split": "acevedo",
        }
        for path, label in (("basophil/BA_100.jpg", 0), ("ig/PMY_106.jpg", 10), ("ig/PMY_999.jpg", 10))
    ]
    assert list(frame.columns) == list(COLUMNS)
    assert [str(frame[column].dtype) for column in ("bytes", "label", "is_external")] == ["int64", "int64", "bool"]
    assert len(CellTable(frame, WBC).labelled) == 3


def test_all_that_the_competition_has_are_taken_by_default(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path)
    nine = {"BA": 1, "BNE": 1, "EO": 1, "LY": 1, "MMY": 1, "MO": 1, "MY": 1, "PMY": 2, "SNE": 1}
    assert classes_of(read_source("acevedo", root, WBC, None, partial=True)) == nine
    few = read_source("acevedo", root, ("SNE", "other", "EO"), None, partial=True)
    assert dict(zip(few.image_id.str.rpartition("/")[2], few.label, strict=True)) == {"EO_101.jpg": 2, "SNE_111.jpg": 0}


def test_blood8_by_folder_in_any_spelling(tmp_path: Path) -> None:
    folders = ("basophil", "Eosinophil", "LYMPHOCYTE", "monocyte", "neutrophil", "erythroblast", "platelet")
    root = write(tmp_path, *(f"{folder}/{i}.jpg" for i, folder in enumerate(folders)), "Plasma cell/BA_1.PNG")
    assert classes_of(read_source("blood8", root, WBC, None, partial=True)) == {
        "BA": 1, "EO": 1, "LY": 1, "MO": 1, "PC": 1
    }  # fmt: skip
    taken = read_source("blood8", root, WBC, ["plasma_cell"], partial=True)
    assert taken[["image_id", "label"]].to_numpy().tolist() == [["blood8/Plasma cell/BA_1.PNG", 8]]


@pytest.mark.parametrize("folder", ["plasma cell", "plasma_cell", "Plasma Cell", "PLASMA-CELL", "PlasmaCell"])
def test_spellings_of_a_folder(tmp_path: Path, folder: str) -> None:
    root = write(tmp_path, f"train/{folder}/1.jpg")
    assert read_source("blood8", root, WBC, None, partial=True).label.tolist() == [WBC.index("PC")]
    assert read_source("blood8", root / "train" / folder, WBC, None, partial=True).label.tolist() == [WBC.index("PC")]


def test_every_image_of_cellwiki_is_a_prolymphocyte(tmp_path: Path) -> None:
    root = write(tmp_path, *(f"pictures/{i} (a).{kind}" for i, kind in enumerate(["jpg", "JPEG", "png"] * 6)))
    frame = read_source("cellwiki", root, WBC, None, partial=False)
    assert classes_of(frame) == {"PLY": 18}
    assert frame.path.tolist() == sorted(frame.path)


@pytest.mark.parametrize("top", [TOP, f"a/{TOP}", f"a/b c/{TOP}", f"{TOP}/{TOP}", "renamed", "."])
def test_nesting_gives_the_same_images(tmp_path: Path, top: str) -> None:
    frame = read_source("acevedo", a_bit_of_acevedo(tmp_path, top), WBC, None, partial=True)
    assert len(frame) == 10
    assert all(Path(path).read_bytes() == JPEG for path in frame.path)
    inner = read_source("acevedo", tmp_path / top, WBC, None, partial=True)
    assert inner.path.tolist() == frame.path.tolist()


def test_what_lies_beside_the_data_sets_own_folder_is_passed_over(tmp_path: Path) -> None:
    root = write(a_bit_of_acevedo(tmp_path), "RaabinWBC/Train/Basophil/95-5-11-1_22_1.jpg", "sketch.png")
    assert len(read_source("acevedo", root, WBC, None, partial=True)) == 10


def test_stray_files_are_passed_over(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path)
    before = read_source("acevedo", root, WBC, None, partial=True)
    ig = f"{TOP}/ig"
    stray = (f"{ig}/.DS_Store", f"{ig}/Thumbs.db", f"{ig}/._PMY_1.jpg", f"__MACOSX/{ig}/PMY_1.jpg", f"{ig}/PMY_3.txt",
             f"{TOP}.zip", "readme.pdf", f".cache/{ig}/PMY_4.jpg")  # fmt: skip
    write(root, *stray)
    (root / ig / "PMY_5.jpg").symlink_to(root / "nowhere.jpg")
    pd.testing.assert_frame_equal(read_source("acevedo", root, WBC, None, partial=True), before)


def test_folders_and_images_may_be_links(tmp_path: Path) -> None:
    a_bit_of_acevedo(tmp_path / "disk")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / TOP).symlink_to(tmp_path / "disk" / TOP)
    assert len(read_source("acevedo", tmp_path / "in", WBC, None, partial=True)) == 10


def test_endings_in_any_case(tmp_path: Path) -> None:
    endings = ("jpg", "JPG", "Jpeg", "png", "BMP", "tif", "TIFF")
    root = write(tmp_path, *(f"{TOP}/basophil/ba_{i}.{ending}" for i, ending in enumerate(endings)))
    assert classes_of(read_source("acevedo", root, WBC, None, partial=True)) == {"BA": 7}


@settings(max_examples=40, deadline=None)
@given(counts=st.dictionaries(st.sampled_from(sorted(FOLDER_OF)), st.integers(0, 4)), seed=st.integers(0, 9))
def test_any_mix_is_read_back(tmp_path_factory: pytest.TempPathFactory, counts: Mapping[str, int], seed: int) -> None:
    root = tmp_path_factory.mktemp("mix")
    numbers = iter(np.random.default_rng(seed).permutation(100))
    for prefix, number in counts.items():
        write(root, *(f"{TOP}/{FOLDER_OF[prefix]}/{prefix}_{next(numbers)}.jpg" for _ in range(number)))
    expected = {prefix: number for prefix, number in counts.items() if number and prefix in WBC}
    if not expected:
        assert str(root) in refusal("acevedo", root)
        return
    frame = read_source("acevedo", root, WBC, None, partial=True)
    assert classes_of(frame) == expected
    assert frame.path.tolist() == sorted(frame.path)
    assert frame.image_id.is_unique
    assert frame.group.is_unique


# --- classes asked for --------------------------------------------------------------------------


def test_classes_in_any_spelling_and_twice(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path)
    assert classes_of(read_source("acevedo", root, WBC, ["pmy", "PMY", "ba"], partial=True)) == {"BA": 1, "PMY": 2}


def test_classes_that_cannot_be_taken_are_refused(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path)
    known = "known ones are BA, BNE, EO, LY, MMY, MO, MY, PMY, SNE"
    key = "data.external.acevedo.classes"
    assert refusal("acevedo", root, ["BA", "basophil"]) == f"{key}: Acevedo-20 has no class 'basophil'; {known}"
    every = ", ".join(WBC)
    assert refusal("acevedo", root, ["IG"]) == f"{key}: 'IG' corresponds to none of the classes {every}; {known}"
    assert refusal("acevedo", root, []) == f"{key}: names no class; {known}, or leave the key out to take them all"
    with pytest.raises(UserError) as refused:
        read_source("acevedo", root, ("BA", "EO"), ["SNE"], partial=True)
    assert str(refused.value) == f"{key}: 'SNE' corresponds to none of the classes BA, EO; known ones are BA, EO"
    with pytest.raises(UserError) as refused:
        read_source("acevedo", root, ("hem", "all"), None, partial=True)
    assert str(refused.value) == (
        "data.external.acevedo: Acevedo-20 has none of the classes hem, all; take this data set out"
    )


# --- folders that are not what they should be ---------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    root = tmp_path / "in"
    assert refusal("acevedo", root) == f"{root}: the folder of Acevedo-20 does not exist; {HOW_ACEVEDO}"
    write(root, ".DS_Store")
    assert refusal("acevedo", root) == f"{root}: the folder of Acevedo-20 is empty; {HOW_ACEVEDO}"
    write(tmp_path, "file")
    assert refusal("acevedo", tmp_path / "file") == (
        f"{tmp_path / 'file'}: the folder of Acevedo-20 is a file; {HOW_ACEVEDO}"
    )
    assert "CellWiki" in refusal("cellwiki", root)
    assert "https://huggingface.co/datasets/ehottl/blood_dataset" in refusal("blood8", root)


@pytest.mark.parametrize("ending", ["zip.part", "zip.crdownload", "ZIP.TMP", "zip.aria2"])
def test_a_download_that_has_not_finished(tmp_path: Path, ending: str) -> None:
    write(tmp_path, f"PBC.{ending}", "PBC.zip")
    assert refusal("acevedo", tmp_path) == (
        f"{tmp_path}: no images, only PBC.{ending}; finish the download and unpack it there"
    )


@pytest.mark.parametrize("ending", ["zip", "RAR", "parquet", "tar.gz"])
def test_an_archive_that_is_still_packed(tmp_path: Path, ending: str) -> None:
    write(tmp_path, f"data/PBC.{ending}", "readme.txt")
    assert refusal("blood8", tmp_path) == (
        f"{tmp_path}: no images, only data/PBC.{ending}; unpack it there, see input/README.md"
    )


def test_a_folder_without_images(tmp_path: Path) -> None:
    write(tmp_path, "readme.txt", "a/b/c/d/e/too_deep.jpg")
    assert refusal("cellwiki", tmp_path) == (
        f"{tmp_path}: no images (.jpg, .jpeg, .png, .bmp, .tif, .tiff) up to 4 folders deep; see input/README.md"
    )


def test_only_classes_that_are_not_taken(tmp_path: Path) -> None:
    root = write(tmp_path, "platelet/1.jpg")
    assert refusal("blood8", root, ["plasma cell"]) == (
        f"{root}: no image of plasma cell; see input/README.md for the files of Blood 8 classes"
    )


def test_fewer_images_than_published_are_named_unless_on_purpose(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(tmp_path)
    assert refusal("acevedo", root, ["PMY", "BA"], partial=False) == (
        f"{root}: fewer images than published (PMY 2 of 592, BA 1 of 1218); finish the download, or take a subset on "
        "purpose with data.external.acevedo.partial: true"
    )
    plasma = write(tmp_path / "blood8", *(f"plasma cell/{i}.jpg" for i in range(3)), "monocyte/1.jpg", content=b"")
    assert "(plasma cell 3 of 2895)" in refusal("blood8", plasma, partial=False)
    # of the others the numbers are not published, but that of all together is
    assert refusal("blood8", plasma, ["monocyte"], partial=False) == (
        f"{plasma}: 4 images, Blood 8 classes has 46232; finish the download or keep one copy, or take what is there "
        "with data.external.blood8.partial: true"
    )
    assert len(read_source("blood8", plasma, WBC, None, partial=True)) == 4


def test_more_images_than_published(tmp_path: Path) -> None:
    root = write(tmp_path, *(f"{i}.jpg" for i in range(19)))
    assert refusal("cellwiki", root, partial=False) == (
        f"{root}: more images than published (prolymphocyte 19 of 18); keep one copy if it was unpacked twice, or take "
        "them all with data.external.cellwiki.partial: true"
    )
    assert len(read_source("cellwiki", root, WBC, None, partial=True)) == 19


def test_unknown_classes_name_the_file(tmp_path: Path) -> None:
    root = write(a_bit_of_acevedo(tmp_path / "a"), f"{TOP}/ig/BLAST_7.jpg")
    assert refusal("acevedo", root) == (
        f"{root}/{TOP}/ig/BLAST_7.jpg: 'BLAST' is no class of Acevedo-20; known ones are BA, BNE, EO, ERB, IG, LY, "
        "MMY, MO, MY, NEUTROPHIL, PLATELET, PMY, SNE"
    )
    root = write(tmp_path / "b", "ig/1.jpg", "plasma cell/1.jpg")
    assert refusal("blood8", root, ["plasma cell"]) == (
        f"{root}/ig/1.jpg: 'ig' is no class of Blood 8 classes; known ones are basophil, eosinophil, erythroblast, "
        "lymphocyte, monocyte, neutrophil, plasma cell, platelet"
    )


def test_a_data_set_that_was_unpacked_twice(tmp_path: Path) -> None:
    root = a_bit_of_acevedo(a_bit_of_acevedo(tmp_path), f"again/{TOP}")
    assert refusal("acevedo", root) == f"{root}: holds Acevedo-20 twice, in {TOP}, again/{TOP}; keep one of them"
    shutil.rmtree(root / "again")
    first = f"{root}/{TOP}/{TOP}/basophil/BA_100.jpg"
    assert refusal("acevedo", a_bit_of_acevedo(root, f"{TOP}/{TOP}")) == (
        f"{root}: the same file name twice, {first} and {root}/{TOP}/basophil/BA_100.jpg; keep one copy"
    )


def test_cellwiki_does_not_take_another_data_sets_folders(tmp_path: Path) -> None:
    root = write(tmp_path, "basophil/1.jpg", "2.jpg")
    assert refusal("cellwiki", root) == (
        f"{root}: CellWiki prolymphocytes are one flat folder, images lie in {root}, {root}/basophil; keep one"
    )


# --- rendered -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three data sets, rendered with planted faults."""
    folder = tmp_path_factory.mktemp("rendered")
    for name in EXTERNAL:
        render(name, folder / name, SPEC, workers=1, progress=False)
    return folder


def truth_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "rendered_truth.csv", dtype=str, keep_default_na=False)


def test_every_layout_has_a_name() -> None:
    assert set(LAYOUT_NAMES) == set(LAYOUTS)
    assert set(EXTERNAL) == set(names())


def test_rendered_bytes_do_not_depend_on_the_workers(rendered: Path, tmp_path: Path) -> None:
    name = "acevedo"
    render(name, tmp_path / name, SPEC, workers=2, progress=False)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(rendered).as_posix() for p in (rendered / name).rglob("*") if p.is_file())
    assert filecmp.cmpfiles(tmp_path, rendered, files, shallow=False)[1:] == ([], [])
    assert is_current(rendered / name, name, SPEC)


def test_rendered_acevedo_is_read_back_as_drawn(rendered: Path) -> None:
    truth = truth_of(rendered / "acevedo")
    assert len(truth) == SPEC.images
    assert set(truth.true_label) == set(FOLDER_OF)
    assert (truth.path == [f"{TOP}/{FOLDER_OF[p]}/{i}" for p, i in zip(truth.given_label, truth.image_id, strict=True)]
            ).all()  # fmt: skip
    assert (truth.image_id.str.partition("_")[0] == truth.given_label).all()
    frame = read_source("acevedo", rendered / "acevedo", WBC, None, partial=True)
    assert classes_of(frame) == Counter(truth.given_label[truth.given_label.isin(WBC)])
    stamp = rendered_info(rendered / "acevedo")
    assert stamp is not None
    assert stamp["competition"] == "acevedo"


@pytest.mark.parametrize("name", EXTERNAL)
def test_rendered_plants_are_what_the_truth_says(name: str, rendered: Path) -> None:
    truth = truth_of(rendered / name)
    corrupt = truth[truth.planted == "corrupt"]
    assert len(corrupt) == SPEC.corrupt_files
    for row in truth.to_dict("records"):
        content = (rendered / name / row["path"]).read_bytes()
        whole = bool(content) and cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
        assert whole == (row["planted"] != "corrupt")
        if row["duplicate_of"]:
            same = (rendered / name / row["duplicate_of"]).read_bytes() == content
            assert same == (row["planted"] == "exact_duplicate")
    assert Counter(truth.planted)["exact_duplicate"] == SPEC.exact_duplicates
    assert Counter(truth.planted)["near_duplicate"] == SPEC.near_duplicates
    if name == "acevedo":
        wrong = truth.true_label != truth.given_label
        assert (wrong == (truth.planted == "wrong_label")).all()
        assert wrong.sum() == round(SPEC.wrong_labels * truth.true_label.isin(WBC).sum())
    if name == "cellwiki":
        assert ((truth.true_label != "PLY") == (truth.planted == "wrong_label")).all()
        assert (truth.true_label != "PLY").sum() == round(SPEC.wrong_labels * SPEC.images)


def test_rendered_plasma_cells_are_acevedos_immature_granulocytes(rendered: Path) -> None:
    acevedo, blood8 = (
        {path.name: path.read_bytes() for path in (rendered / name).rglob("*.jpg")} for name in ("acevedo", "blood8")
    )
    assert acevedo == blood8
    plasma = {path.name for path in (rendered / "blood8" / "plasma cell").iterdir()}
    assert plasma == {path.name for path in (rendered / "acevedo" / TOP / "ig").iterdir()}
    assert {name.partition("_")[0] for name in plasma} == {"IG", "MMY", "MY", "PMY"}
    frame = read_source("blood8", rendered / "blood8", WBC, ["plasma cell"], partial=True)
    assert classes_of(frame) == {"PC": len(plasma)}
    truth = truth_of(rendered / "blood8")
    assert set(truth.given_label[truth.path.str.startswith("plasma cell/")]) == {"plasma cell"}
    assert "" not in set(truth.planted[truth.path.str.startswith("plasma cell/")]), "each is a wrong label or worse"
    assert "PC" not in set(truth.true_label)


def test_rendered_prolymphocytes_vary_in_size(rendered: Path) -> None:
    assert classes_of(read_source("cellwiki", rendered / "cellwiki", WBC, None, partial=True)) == {"PLY": SPEC.images}
    whole = truth_of(rendered / "cellwiki").query("planted == ''").path
    shapes = {read_image(rendered / "cellwiki" / path).shape for path in whole}
    assert len(shapes) > 15


def test_rendered_cells_are_as_large_as_wbcbenchs_on_another_background(
    rendered: Path, rendered_wbcbench: Path
) -> None:
    def measure(paths: list[Path]) -> tuple[np.ndarray, float]:
        """Background colour (RGB) and area in pixels of what is darker in red than red cells are."""
        images = [read_image(path) for path in paths]
        background = np.mean([np.percentile(image.reshape(-1, 3), 85, axis=0) for image in images], axis=0)
        return background, float(np.median([(image[:, :, 0] < 150).sum() for image in images]))

    truth = truth_of(rendered_wbcbench)
    ours = truth[(truth.true_label == "SNE") & (truth.severity == "0") & (truth.planted == "")].path
    light, area = measure([rendered_wbcbench / path for path in ours][:12])
    truth = truth_of(rendered / "acevedo")
    theirs = truth[(truth.true_label == "SNE") & (truth.planted == "")].path
    other_light, other_area = measure([rendered / "acevedo" / path for path in theirs])
    assert np.abs(other_light - light).max() > 6
    assert 0.6 < other_area / area < 1.6
    shapes = {read_image(rendered / "acevedo" / path).shape for path in theirs}
    assert (363, 360, 3) in shapes
    assert shapes <= {(363, 360, 3), (369, 366, 3), (360, 360, 3)}


def test_patients_and_test_images_change_no_external_image(tmp_path: Path) -> None:
    for name, patients in (("a", 3), ("b", 30)):
        render("cellwiki", tmp_path / name, RenderSpec(images=2, test_images=patients, patients=patients), 1, False)
    first, second = ([p.read_bytes() for p in sorted((tmp_path / n).glob("*.jpg"))] for n in ("a", "b"))
    assert first == second
    assert len(first) == 2


def test_too_few_images_for_acevedos_classes(tmp_path: Path) -> None:
    for name in ("acevedo", "blood8"):
        with pytest.raises(
            UserError, match=r"^render\.images = 12: Acevedo-20 needs at least 13, one per class; raise"
        ):
            render(name, tmp_path / name, RenderSpec(images=12), workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_renders_an_external_data_set(commands: Commands) -> None:
    said = commands.succeed(
        "render_cells.py", "--competition", "cellwiki", "--images", "3", "--workers", "1", "--out", "w"
    )
    assert said == "rendered 3 images in cellwiki's layout: w\n"
    assert len(list((commands.cwd / "w").glob("*.jpg"))) == 3


# --- degraded -----------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 250, (10, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (72, 80), interpolation=cv2.INTER_CUBIC)


def a_tree(root: Path, number: int = 40) -> Path:
    """Writes a tree of smooth pictures and a list."""
    for i in range(number):
        kind = ".png" if i % 8 == 0 else ".JPG" if i % 8 == 1 else ".jpg"
        write(root, f"a{i % 3}/b/{i:03d}{kind}", content=bytes(cv2.imencode(kind, picture(i))[1]))
    return write(root, "a0/list.csv", content=b"ID\n1\n")


def test_degraded_folder_has_all_files_and_severities(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "from")
    severities = degrade_folder(source, tmp_path / "to" / "new", seed=3, progress=False)
    target = tmp_path / "to" / "new"
    expected = {re.sub(r"\.png$", ".jpg", p.relative_to(source).as_posix()) for p in source.rglob("*") if p.is_file()}
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == expected | {"degraded.csv"}
    assert (target / "a0/list.csv").read_bytes() == b"ID\n1\n"
    rows = list(csv.reader((target / "degraded.csv").open(newline="")))
    assert rows[0] == ["path", "severity"]
    assert {path: int(severity) for path, severity in rows[1:]} == severities
    assert [path for path, _ in rows[1:]] == sorted(severities)
    assert len(severities) == 40
    assert set(severities.values()) == {0, 1, 2, 3, 4}
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["new"]


def test_severer_copies_are_farther_from_their_originals(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "from", 60)
    distances = {}
    for severity in range(5):
        target = tmp_path / str(severity)
        shares = np.eye(5)[severity]
        assert set(degrade_folder(source, target, shares=shares, progress=False).values()) == {severity}
        pairs = [(path, source / path.relative_to(target)) for path in target.rglob("*.jpg")]
        distances[severity] = np.mean([
            np.abs(read_image(copy).astype(float) - read_image(original))
            for copy, original in pairs if original.exists()
        ])  # fmt: skip
    assert distances[0] < 3  # what JPEG changes
    assert all(distances[k + 1] > 1.2 * distances[k] for k in range(4)), distances


def test_a_copy_depends_on_seed_and_path_alone(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "from")
    first = degrade_folder(source, tmp_path / "1", progress=False)
    (source / "a1/b/001.JPG").unlink()
    shutil.copytree(source, tmp_path / "moved")
    second = degrade_folder(tmp_path / "moved", tmp_path / "2", progress=False)
    assert second == {path: severity for path, severity in first.items() if path != "a1/b/001.JPG"}
    assert all((tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes() for path in second)
    assert degrade_folder(source, tmp_path / "3", seed=1, progress=False) != second


def test_the_mix_is_that_of_phase_2(tmp_path: Path) -> None:
    tiny = bytes(cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1])
    write(tmp_path / "from", *(f"{i}.jpg" for i in range(1500)), content=tiny)
    found = Counter(degrade_folder(tmp_path / "from", tmp_path / "to", progress=False).values())
    for severity, share in enumerate((0.40, 0.20, 0.18, 0.12, 0.10)):
        assert found[severity] / 1500 == pytest.approx(share, abs=4 * np.sqrt(share / 1500))


def test_a_degraded_rendered_folder_still_says_that_it_was_rendered(rendered: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(rendered / "cellwiki", tmp_path / "from")
    for path in truth_of(copy).query("planted == 'corrupt'").path:
        (copy / path).unlink()
    degrade_folder(copy, tmp_path / "to", seed=7, progress=False)
    info = rendered_info(tmp_path / "to")
    assert info is not None
    assert info["degraded"] == {"seed": 7, "shares": [0.40, 0.20, 0.18, 0.12, 0.10]}
    assert is_current(copy, "cellwiki", SPEC)
    assert not is_current(tmp_path / "to", "cellwiki", SPEC)


def test_what_cannot_be_degraded_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = a_tree(tmp_path / "from", 4)
    before = sorted(tmp_path.rglob("*"))

    def refused(source: Path, target: Path) -> str:
        with pytest.raises(UserError) as error:
            degrade_folder(source, target, progress=False)
        return str(error.value)

    assert refused(source, source) == f"{source}: is not an empty folder; name another one"
    assert refused(source, source / "a0/list.csv") == f"{source}/a0/list.csv: is not an empty folder; name another one"
    inside = source / "new"
    assert refused(source, inside) == (
        f"{inside}: lies in {source}, whose images are to be degraded; name a folder elsewhere"
    )
    assert refused(tmp_path / "no", tmp_path / "to") == f"{tmp_path}/no: no such folder"
    assert sorted(tmp_path.rglob("*")) == before
    write(source, "a0/b/003.png")
    assert refused(source, tmp_path / "to") == (
        f"{source}/a0/b/003.png: its copy would be called a0/b/003.jpg, as another image's; rename one of them"
    )
    (source / "a0/b/003.png").unlink()
    write(source, "a0/broken.jpg", content=JPEG[:100])
    assert refused(source, tmp_path / "to") == f"{source}/a0/broken.jpg: the file is cut short; download it again"
    assert not (tmp_path / "to").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_the_command_degrades_a_folder(commands: Commands) -> None:
    a_tree(commands.cwd / "from", 6)
    (commands.cwd / "to").mkdir()
    assert commands.succeed("render_cells.py", "--degrade", "from", "--out", "to") == "degraded 6 images of from: to\n"
    assert len(list((commands.cwd / "to").rglob("*.jpg"))) + len(list((commands.cwd / "to").rglob("*.JPG"))) == 6
    both = "--out belongs together with --competition or with --degrade: give it and one of them"
    for arguments in (["--degrade", "from"], ["--degrade", "from", "--competition", "cnmc", "--out", "x"]):
        assert commands.refused("render_cells.py", *arguments) == f"error: {both}"
    assert json.loads((commands.cwd / "to" / "degraded.csv").read_text().splitlines()[1].rpartition(",")[2]) in range(5)
