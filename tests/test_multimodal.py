"""Cells of several registered images: the reader, the table, the caches, duplicates and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest

from leukofold.augment import Augmentation
from leukofold.cells import image_files, modalities
from leukofold.competitions import get_competition
from leukofold.competitions.multimodal import CLASS_NAMES
from leukofold.config import Config, DataConfig, ImageConfig, Transform, load_config
from leukofold.duplicates import find_duplicates, merge_groups
from leukofold.errors import UserError
from leukofold.experiment import open_experiment, read_competition
from leukofold.gallery import augmentation_sheet
from leukofold.images.cellimages import open_images
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image, survey_images
from leukofold.loaders import CellDataset, IndependentCells
from leukofold.preparation import inspect_input
from leukofold.registered import find_modalities, registered_files
from leukofold.runs import RunFolder

if TYPE_CHECKING:
    from tests.conftest import Commands, MultimodalInput

COMPETITION = get_competition("multimodal")


def edit_list(root: Path, change: str) -> None:
    """Changes ``cells.csv``: each a mistake of a user."""
    path = root / "cells.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if change == "class":
        table.loc[2, "label"] = "Blast"
    elif change == "twice":
        table.loc[1, "cell_id"] = table.cell_id[0]
    elif change == "same file":
        table.loc[1, "Color1"] = table.Color1[0]
    elif change == "patient":
        table.loc[3, "patient"] = ""
    elif change == "no label":
        table = table.drop(columns="label")
    elif change == "age":
        table["age"] = "30"
    elif change == "empty":
        table = table.head(0)
    elif change == "one modality":
        table = table.drop(columns=["Color1", "Color2"])
    table.to_csv(path, index=False)


def test_a_list_gives_cells_with_their_patients_and_all_their_files(multimodal: MultimodalInput) -> None:
    table = COMPETITION.read(multimodal.root)
    frame = table.frame
    assert table.class_names == CLASS_NAMES == ("Neutrophil", "Lymphocyte", "Eosinophil", "Monocyte", "Basophil")
    assert modalities(frame) == ("Fluorescent", "Color1", "Color2")
    assert len(frame) == multimodal.cells
    assert frame.path.tolist() == frame["path:Fluorescent"].tolist()
    assert table.knows_patients
    assert frame.group.nunique() == multimodal.patients
    for _, row in frame.iloc[[0, 7]].iterrows():
        files = [Path(row[f"path:{name}"]) for name in modalities(frame)]
        assert {file.stem for file in files} == {row.image_id}
        assert {file.parent.name for file in files} == {CLASS_NAMES[row.label]}
        assert row.bytes == sum(file.stat().st_size for file in files)
    every = image_files(frame)
    assert len(every) == 3 * len(frame)
    assert every.path[len(frame) + 4] == frame["path:Color1"][4]
    assert every.bytes[len(frame) + 4] == Path(frame["path:Color1"][4]).stat().st_size


def test_folders_alone_give_the_same_cells_without_patients(multimodal: MultimodalInput, tmp_path: Path) -> None:
    root = shutil.copytree(multimodal.root, tmp_path / "input")
    listed = COMPETITION.read(root).frame.set_index("image_id").sort_index()
    (root / "cells.csv").unlink()
    (root / "Color1" / ".hidden.png").write_bytes(b"")
    table = COMPETITION.read(root)
    found = table.frame.set_index("image_id").sort_index()
    for column in ("label", "path", "path:Fluorescent", "path:Color1", "path:Color2", "bytes", "split"):
        assert found[column].tolist() == listed[column].tolist()
    assert not table.knows_patients
    assert found.group.tolist() == found.index.tolist()


def test_abbreviations_other_modalities_and_cells_to_predict_are_read(multimodal: MultimodalInput) -> None:
    table = pd.read_csv(multimodal.root / "cells.csv", dtype=str)
    renamed = table.rename(columns={"Color2": "Phase"}).assign(label=["neu", "LYM", "Eos", "MO", "bas"] * 12)
    renamed.loc[4, "label"] = ""
    path = multimodal.root / "cells.csv"
    renamed[["cell_id", "label", "patient", "Phase", "Color1", "Fluorescent"]].to_csv(path, index=False)
    found = COMPETITION.read(multimodal.root)
    assert modalities(found.frame) == ("Fluorescent", "Color1", "Phase")  # the paper's first, in its order
    assert found.labelled.label.tolist()[:4] == [0, 1, 2, 3]
    assert found.test.image_id.tolist() == [table.cell_id[4]]
    assert found.test.group.tolist() == [""]


def test_a_cell_that_lacks_an_image_is_named_and_the_others_are_found(
    multimodal: MultimodalInput, commands: Commands
) -> None:
    table = pd.read_csv(multimodal.root / "cells.csv", dtype=str)
    for modality, row in (("Color1", 3), ("Color2", 3), ("Fluorescent", 5)):
        (multimodal.root / table[modality][row]).unlink()
    scan = COMPETITION.scan(multimodal.root)
    expected = [
        f"{multimodal.root}: c3: no image of Color1, Color2",
        f"{multimodal.root}: c5: no image of Fluorescent",
    ]
    assert scan.missing == expected
    assert len(scan.table.frame) == multimodal.cells - 2
    with pytest.raises(UserError, match=r"2 cells lack an image, .*: c3: no image of Color1"):
        COMPETITION.read(multimodal.root)
    (multimodal.root / "cells.csv").unlink()
    assert sorted(COMPETITION.scan(multimodal.root).missing) == sorted(expected)
    said = commands.run("prepare_input.py", "--competition", "multimodal", "--input", str(multimodal.root))
    assert f"missing: {expected[1]}" in said.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("class", r"cells.csv: 'Blast' is no class; known ones are Neutrophil, Lymphocyte"),
        ("twice", r"cells.csv: 1 cells stand there twice: c0; a cell lies in the folder of one class"),
        ("same file", r"cells.csv: 1 images are listed more than once: .*c0.png; keep one of each"),
        ("patient", r"cells.csv: 1 labelled cells without a patient, c3 first; name each"),
        ("no label", r"cells.csv: no column 'label', only cell_id, patient, Fluorescent"),
        (
            "age",
            r"cells.csv: column 'age' names no file that is there; columns beside cell_id, label",
        ),
        ("empty", r"cells.csv: lists no cell; fill it, or delete it"),
        ("one modality", r"images of 1 modality \(Fluorescent\); put a folder for each modality there"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_in_one_line(multimodal: MultimodalInput, change: str, said: str) -> None:
    edit_list(multimodal.root, change)
    with pytest.raises(UserError, match=said) as caught:
        COMPETITION.scan(multimodal.root)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_folders_is_said_in_one_line(multimodal: MultimodalInput) -> None:
    root = multimodal.root
    (root / "cells.csv").unlink()
    (root / "Color1" / "Neutrophil" / "c0.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"c0\.png: the same cell as .*c0\.jpg, which has another suffix"):
        COMPETITION.scan(root)
    (root / "Color1" / "Neutrophil" / "c0.jpg").unlink()
    shutil.copy(root / "Color1" / "Neutrophil" / "c0.png", root / "Color1" / "Basophil" / "c0.png")
    with pytest.raises(UserError, match="1 cells stand there twice: c0; a cell lies in the folder of one class"):
        COMPETITION.scan(root)
    (root / "Color1" / "Basophil" / "c0.png").rename(root / "Color1" / "c0.png")
    with pytest.raises(UserError, match=r"c0 lies in no folder of a class; put it into <modality>/<class>/"):
        COMPETITION.scan(root)
    (root / "Color1" / "c0.png").unlink()
    (root / "Color2" / "Blast").mkdir()
    shutil.copy(root / "Color1" / "Neutrophil" / "c0.png", root / "Color2" / "Blast" / "x.png")
    with pytest.raises(UserError, match="'Blast' is no class"):
        COMPETITION.scan(root)
    (root / "Color2" / "Blast" / "x.png").unlink()
    with pytest.raises(UserError, match=r"no images .* in folders of the modalities nothing"):
        registered_files(root, ["nothing"])
    assert find_modalities(root) == ["Color1", "Color2", "Fluorescent"]


def test_the_counts_are_held_against_the_papers(multimodal: MultimodalInput) -> None:
    report = inspect_input(COMPETITION, multimodal.root, progress=False)
    counts = report.counts.set_index("class")
    assert counts.published.tolist() == [9616, 4448, 677, 124, 47]
    assert counts.published.sum() == 14912
    assert counts.found.sum() == multimodal.cells
    assert report.unreadable == []
    third = Path(COMPETITION.read(multimodal.root).frame["path:Color2"][7])
    third.write_bytes(b"")
    assert inspect_input(COMPETITION, multimodal.root, progress=False).unreadable == [
        f"{third}: the file is empty; download it again"
    ]


def test_each_modality_has_a_cache_of_its_own_that_runs_share(multimodal: MultimodalInput, tmp_path: Path) -> None:
    frame = COMPETITION.read(multimodal.root).labelled
    preparation = Preparation(ImageConfig(size=24), lambda image: image)

    def opened(*names: str) -> tuple[set[str], np.ndarray]:
        data = DataConfig(competition="multimodal", modalities=names or None, cache=tmp_path / "cache")
        images = open_images(frame, preparation, "multimodal", data, progress=False)
        assert images.modalities == (names or ("Fluorescent", "Color1", "Color2"))
        assert images.count == len(images.modalities)
        rows = images.rows(["c7", "c2"])
        return set(images.key.split("-")), images.channels(rows)

    everything, pixels = opened()
    one, alone = opened("Color1")
    two, turned = opened("Color2", "Fluorescent")
    assert pixels.shape == (2, 24, 24, 9)
    assert one < everything
    assert two == everything - one
    assert np.array_equal(alone, pixels[..., 3:6])
    assert np.array_equal(turned, np.concatenate([pixels[..., 6:], pixels[..., :3]], axis=3))
    cell = frame[frame.image_id == "c2"].iloc[0]
    for k, name in enumerate(modalities(frame)):
        assert np.array_equal(pixels[1, ..., 3 * k : 3 * k + 3], preparation(read_image(cell[f"path:{name}"])))


def test_augmentation_keeps_the_images_of_a_cell_registered() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), (0, 0), 2)
    specs = [
        Transform(name="D4", p=1.0),
        Transform(name="Affine", rotate=[-45, 45], translate_percent=[-0.1, 0.1], p=1.0),
        Transform(name="RandAugment", num_ops=2, magnitude=18, p=1.0),
    ]
    augmentation = Augmentation(specs)
    seen = set()
    for seed in range(6):
        stack = augmentation(np.stack([image] * 4), seed)
        assert stack.shape == (4, 32, 32, 3)
        assert all(np.array_equal(stack[0], other) for other in stack[1:])
        assert np.array_equal(stack[0], augmentation(image[None], seed)[0])  # as of a cell with one image
        seen.add(stack[0].tobytes())
    assert len(seen) == 6


def test_a_picture_of_augmentations_shows_all_images_of_a_cell() -> None:
    path = Path(__file__).resolve().parents[1] / "configs" / "multimodal" / "paper003" / "base.yaml"
    four = augmentation_sheet(load_config([path], ["mixing.mixup=0.5"]))
    one = augmentation_sheet(load_config([path], ["mixing.mixup=0.5", "data.modalities=[Color2]"]))
    assert four.shape == one.shape  # two cells of four images, or eight of one
    rows = np.split(four[: len(four) // 4 * 4], 4)
    grey = rows[0][:, -440:]  # the three bands of the last cell
    assert (np.ptp(grey, axis=2) == 0).all()
    assert not np.array_equal(rows[0], rows[1])


def test_a_loader_brings_colours_one_image_after_another(multimodal: MultimodalInput, tmp_path: Path) -> None:
    frame = COMPETITION.read(multimodal.root).labelled
    data = DataConfig(cache=tmp_path / "cache")
    images = open_images(frame, Preparation(ImageConfig(size=24), lambda x: x), "multimodal", data, progress=False)
    item = CellDataset(images, frame)[5]
    assert item["image"].shape == (9, 24, 24)
    expected = images.channels(np.array([5]))[0].transpose(2, 0, 1)
    assert np.array_equal(item["image"].numpy(), expected)
    assert (item["label"], item["row"]) == (frame.label[5], 5)
    nothing = Augmentation([])
    mixed = IndependentCells(images, frame, nothing)[((5, 1), (11, 2), (0, 3))]
    assert mixed["label"].tolist() == frame.label[[5, 11, 0]].tolist()
    assert mixed["row"].tolist() == [5, 11, 0]
    for k, row in enumerate((5, 11, 0)):
        other = images.channels(np.array([row]))[0].transpose(2, 0, 1)
        assert np.array_equal(mixed["image"][3 * k : 3 * k + 3].numpy(), other[3 * k : 3 * k + 3])
    turned = Augmentation([Transform(name="RandAugment", num_ops=2, magnitude=18, p=1.0)])
    image = IndependentCells(images, frame, turned)[((5, 1), (11, 2), (0, 3))]["image"].numpy()
    for k, (row, seed) in enumerate(((5, 1), (11, 2), (0, 3))):
        own = turned(images.of_modality(row, k), seed)[0].transpose(2, 0, 1)
        assert np.array_equal(image[3 * k : 3 * k + 3], own)


def test_a_copy_of_any_image_makes_two_cells_one_group(multimodal: MultimodalInput, tmp_path: Path) -> None:
    table = pd.read_csv(multimodal.root / "cells.csv", dtype=str)
    first, copy = 1, 9
    assert table.patient[first] != table.patient[copy]
    shutil.copy(multimodal.root / table.Color1[first], multimodal.root / table.Color1[copy])
    shutil.copy(multimodal.root / table.Color1[20], multimodal.root / table.Color2[20])  # of one cell: no pair
    frame = COMPETITION.read(multimodal.root).frame
    hashes = survey_images(image_files(frame), tmp_path / "cache", progress=False)
    assert hashes.shape == (3 * len(frame), 32)
    pairs = find_duplicates(frame, hashes, tmp_path / "cache", progress=False)
    exact = pairs[pairs.exact]
    assert exact[["image_id_a", "image_id_b"]].to_numpy().tolist() == [[f"c{first}", f"c{copy}"]]
    assert exact[["row_a", "row_b"]].to_numpy().tolist() == [[first, copy]]
    again = find_duplicates(frame, hashes, tmp_path / "cache", progress=False)
    pd.testing.assert_frame_equal(again, pairs)
    groups = merge_groups(frame.group.tolist(), exact, frame.is_external.to_numpy())
    assert groups[first] == groups[copy]


def test_what_shows_what_is_part_of_the_fingerprint(multimodal: MultimodalInput) -> None:
    path = multimodal.root / "cells.csv"
    table = pd.read_csv(path, dtype=str)
    prints = [COMPETITION.read(multimodal.root).fingerprint()]
    for renamed in ({"Color1": "Color2", "Color2": "Color1"}, {"Color1": "Phase"}):
        table.rename(columns=renamed).to_csv(path, index=False)
        prints.append(COMPETITION.read(multimodal.root).fingerprint())
    assert len(set(prints)) == 3


def test_a_missing_folder_is_not_said_to_be_downloadable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the input folder does not exist; .* put images of your own there") as caught:
        COMPETITION.read(tmp_path / "nowhere")
    assert "--download" not in str(caught.value)


def config_of(multimodal: MultimodalInput, tmp_path: Path, **data: object) -> Config:
    """A configuration of the input."""
    given = {"competition": "multimodal", "root": multimodal.root, "cache": tmp_path / "cache", **data}
    return Config(data=DataConfig.model_validate(given), image=ImageConfig(size=24))


def test_folds_do_not_depend_on_the_modalities_that_are_seen(multimodal: MultimodalInput, tmp_path: Path) -> None:
    splits = []
    for names in (None, ("Color2",)):
        config = config_of(multimodal, tmp_path, modalities=names)
        experiment = open_experiment(config, RunFolder("run", tmp_path / "oof"), progress=False)
        splits.append((experiment.folds.tolist(), experiment.metadata(0)["data_fingerprint"], experiment.split_by))
        assert experiment.metadata(0)["modalities"] == list(names or ("Fluorescent", "Color1", "Color2"))
    assert splits[0] == splits[1]
    assert splits[0][2] == "group"


def test_without_patients_folds_are_said_to_be_of_images(multimodal: MultimodalInput, tmp_path: Path) -> None:
    (multimodal.root / "cells.csv").unlink()
    experiment = open_experiment(config_of(multimodal, tmp_path), RunFolder("run", tmp_path / "oof"), progress=False)
    assert experiment.split_by == "image"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"modalities": ["Colour1"]}, "data.modalities: multimodal has no 'Colour1'; there are Fluorescent, Color1"),
        ({"modalities": ["Color1", "Color1"]}, "an image stands twice; name each once"),
        ({"domains": {"x": {"root": "elsewhere"}}}, "data.domains: their cells have one image each"),
    ],
)
def test_modalities_that_there_are_not_are_refused(
    multimodal: MultimodalInput, tmp_path: Path, data: dict[str, object], said: str
) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        read_competition(config_of(multimodal, tmp_path, **data))


def test_data_of_one_image_have_no_modalities(rendered_wbcbench: Path) -> None:
    config = load_config([], [f"data.root={rendered_wbcbench}", "data.modalities=[Color1]"])
    with pytest.raises(UserError, match=r"wbcbench has no 'Color1'; its cells have one image each; leave it out"):
        read_competition(config)
