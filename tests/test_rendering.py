"""Rendered folders: layouts, plants, determinism, interruption, and refusal of what cannot be drawn."""

import csv
import filecmp
from itertools import groupby
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from leukofold.errors import UserError
from leukofold.rendering import RenderSpec, folder, is_current, render, rendered_info
from leukofold.rendering import cnmc as cnmc_layout
from leukofold.rendering import wbcbench as wbcbench_layout
from leukofold.rendering.morphology import CLASS_NAMES

CLASSES = list(CLASS_NAMES)
PLANTED = RenderSpec(
    images=150, test_images=30, patients=12, seed=5, wrong_labels=0.1, exact_duplicates=4, near_duplicates=3,
    corrupt_files=3,
)  # fmt: skip
LISTS = {
    "phase1_train": ("phase1_label.csv", "phase1"),
    "phase2_train": ("phase2_train.csv", "phase2/train"),
    "phase2_eval": ("phase2_eval.csv", "phase2/eval"),
    "phase2_test": ("phase2_test.csv", "phase2/test"),
}


@pytest.fixture(scope="module")
def wbcbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "wbcbench"
    render("wbcbench", root, PLANTED, workers=1, progress=False)
    return root


@pytest.fixture(scope="module")
def cnmc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "cnmc"
    render("cnmc", root, PLANTED, workers=1, progress=False)
    return root


def truth_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "rendered_truth.csv", dtype=str, keep_default_na=False)


def decoded(path: Path) -> np.ndarray | None:
    content = path.read_bytes()
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("competition", ["wbcbench", "cnmc"])
def test_same_spec_gives_same_bytes_whatever_the_workers(competition: str, tmp_path: Path) -> None:
    spec = RenderSpec(images=70, test_images=8, patients=6, seed=3, exact_duplicates=2, near_duplicates=2)
    for workers in (1, 2):
        render(competition, tmp_path / str(workers), spec, workers=workers, progress=False)
    names = files_below(tmp_path / "1")
    assert names == files_below(tmp_path / "2")
    _, different, failed = filecmp.cmpfiles(tmp_path / "1", tmp_path / "2", names, shallow=False)
    assert (different, failed) == ([], [])


@pytest.mark.parametrize("layout", [wbcbench_layout, cnmc_layout])
def test_other_seed_gives_other_images(layout: ModuleType) -> None:
    first, second = (layout.plan_images(PLANTED.model_copy(update={"seed": seed})) for seed in (5, 6))
    assert [image.path for image in first] != [image.path for image in second]
    assert layout.draw(first[0], 0, 5) != layout.draw(first[0], 0, 6)
    assert layout.draw(first[0], 0, 5) != layout.draw(first[0], 1, 5)


def test_wbcbench_lists_have_the_real_headers_and_rows(wbcbench: Path) -> None:
    assert (wbcbench / "phase1_label.csv").read_text().splitlines()[0] == "ID,labels,split,,,"
    assert (wbcbench / "phase2_train.csv").read_text().splitlines()[0] == "ID,labels,split"
    assert (wbcbench / "phase2_eval.csv").read_text().splitlines()[0] == "ID,labels,split"
    test = (wbcbench / "phase2_test.csv").read_text().splitlines()
    assert test[0] == "ID,labels"
    assert all(line.endswith(".jpg,") for line in test[1:])
    for split, (name, where) in LISTS.items():
        rows = list(csv.reader((wbcbench / name).open(newline="")))
        assert all(len(row) == len(rows[0]) for row in rows)
        assert sorted(row[0] for row in rows[1:]) == sorted(path.name for path in (wbcbench / where).iterdir())
        if split != "phase2_test":
            assert {row[2] for row in rows[1:]} == {split}
            assert {row[1] for row in rows[1:]} <= set(CLASSES)


def test_wbcbench_counts_and_patients(wbcbench: Path) -> None:
    truth = truth_of(wbcbench)
    labelled = truth[truth.split != "phase2_test"]
    assert len(labelled) == PLANTED.images
    assert len(truth) == PLANTED.images + PLANTED.test_images
    assert labelled.patient.nunique() == PLANTED.patients
    assert set(labelled.true_label) == set(CLASSES)
    assert truth.groupby("patient").split.nunique().max() == 1
    shares = labelled.split.value_counts(normalize=True)
    assert shares["phase1_train"] == pytest.approx(0.215, abs=0.06)
    assert shares["phase2_train"] == pytest.approx(0.646, abs=0.06)
    assert labelled.true_label.value_counts().index[0] == "SNE"
    assert truth.image_id.is_unique


def test_wbcbench_ids_run_patient_by_patient(wbcbench: Path) -> None:
    truth = truth_of(wbcbench)
    assert truth.image_id.str.fullmatch(r"0\d{7}\.jpg").all()
    for split in LISTS:
        rows = truth[truth.split == split].assign(number=lambda t: t.image_id.str[:8].astype(int)).sort_values("number")
        runs = [patient for patient, _ in groupby(rows.patient)]
        assert len(runs) == len(set(runs)), "a patient's ids are contiguous"
        gaps, same = np.diff(rows.number), (rows.patient.to_numpy()[1:] == rows.patient.to_numpy()[:-1])
        if split == "phase1_train":
            assert gaps[same].max() <= 20
            assert gaps[~same].min() > 20
        else:
            assert (gaps == 1).all()
            order = (rows.given_label.where(rows.given_label != "", rows.true_label)).map(CLASSES.index).to_numpy()
            assert (np.diff(order)[same] >= 0).all(), "within a patient, ids are sorted by class"


def test_wbcbench_severities_only_in_phase_2(wbcbench: Path) -> None:
    truth = truth_of(wbcbench)
    whole = truth[truth.planted != "exact_duplicate"]
    whole = whole[whole.planted != "near_duplicate"]
    assert set(whole[whole.split == "phase1_train"].severity) == {"0"}
    assert set(truth[truth.split == "phase2_train"].severity) == {"0", "1", "2", "3", "4"}


def test_wbcbench_image_sizes(wbcbench: Path) -> None:
    shapes = {image.shape for path in wbcbench.rglob("*.jpg") if (image := decoded(path)) is not None}
    assert (368, 368, 3) in shapes
    assert shapes <= {(368, 368, 3), (368, 370, 3)}


def test_cnmc_layout(cnmc: Path) -> None:
    base = cnmc / "C-NMC_Leukemia"
    truth = truth_of(cnmc)
    training = truth[truth.split.str.startswith("fold_")]
    parts = training.path.str.extract(
        r"^C-NMC_Leukemia/training_data/(fold_[012])/(all|hem)/UID_([Hh]?\d+)_\d+_\d+_(all|hem)\.bmp$"
    )
    assert parts.notna().all(axis=None)
    assert (parts[0].to_numpy() == training.split.to_numpy()).all()
    assert (parts[1] == parts[3]).all()
    assert (parts[1].to_numpy() == training.given_label.to_numpy()).all()
    assert (parts[2].str.upper().to_numpy() == training.patient.to_numpy()).all()
    assert (parts[2].str.upper().str.startswith("H") == (parts[1] == "hem")).all()
    assert "h3" in set(parts[2])
    assert training.groupby("patient").split.nunique().max() == 1
    assert training.patient.nunique() == PLANTED.patients
    assert len(training.groupby(["split", "given_label"])) == 6
    header, *rows = (base / "validation_data/C-NMC_test_prelim_phase_data_labels.csv").read_text().splitlines()
    assert header == "Patient_ID,new_names,labels"
    prelim = base / "validation_data/C-NMC_test_prelim_phase_data"
    assert [row.split(",")[1] for row in rows] == [f"{n}.bmp" for n in range(1, len(rows) + 1)]
    assert {path.name for path in prelim.iterdir()} == {row.split(",")[1] for row in rows}
    assert all(row.split(",")[0].endswith("_all.bmp" if row[-1] == "1" else "_hem.bmp") for row in rows)
    final = base / "testing_data/C-NMC_test_final_phase_data"
    assert {path.name for path in final.iterdir()} == {f"{n}.bmp" for n in range(1, PLANTED.test_images + 1)}
    assert len(training) + len(rows) == PLANTED.images
    assert truth.groupby("patient").split.nunique().max() == 1


def test_cnmc_cells_are_centred_on_pure_black(cnmc: Path) -> None:
    sizes = set()
    for path in sorted(cnmc.rglob("*.bmp")):
        image = decoded(path)
        if image is None:
            continue
        sizes.add(image.shape[0])
        mask = (image.max(axis=2) > 0).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        assert abs(2 * x + width - image.shape[1]) <= 4
        assert abs(2 * y + height - image.shape[0]) <= 4
        assert image[:40].max() == 0, "the frame around the cell is exactly black"
        assert 90 < np.sqrt(4 * mask.sum() / np.pi) < 330
    assert 450 in sizes
    assert sizes <= {450, 600}


def test_cnmc_has_some_larger_final_images(tmp_path: Path) -> None:
    render("cnmc", tmp_path / "c", RenderSpec(images=60, test_images=80, patients=6), workers=1, progress=False)
    final = tmp_path / "c" / "C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data"
    sides = [int.from_bytes(path.read_bytes()[18:22], "little") for path in final.iterdir()]  # the BMP header's width
    assert 0 < sides.count(600) < 16
    assert sides.count(450) + sides.count(600) == 80


@pytest.mark.parametrize("competition", ["wbcbench", "cnmc"])
def test_plants_are_what_the_truth_says(competition: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(competition)
    truth = truth_of(root).set_index("path", drop=False)
    assert set(truth.path) == {name for name in files_below(root) if name.endswith((".jpg", ".bmp"))}
    assert truth.planted.value_counts().drop("").to_dict() == {
        "wrong_label": round(PLANTED.wrong_labels * PLANTED.images),
        "exact_duplicate": PLANTED.exact_duplicates,
        "near_duplicate": PLANTED.near_duplicates,
        "corrupt": PLANTED.corrupt_files,
    }
    differs = (truth.true_label != truth.given_label) & (truth.given_label != "")
    assert (differs == (truth.planted == "wrong_label")).all()
    corrupt = truth.planted == "corrupt"
    assert (truth[corrupt].given_label != "").all()
    for path in truth.path:
        assert (decoded(root / path) is None) == corrupt[path]
    for kind in ("exact_duplicate", "near_duplicate"):
        for row in truth[truth.planted == kind].to_dict("records"):
            original = truth.loc[row["duplicate_of"]]
            assert original["split"] != row["split"]
            assert original["patient"] != row["patient"]
            assert original["true_label"] == row["true_label"]
            assert original["planted"] == ""
            same = (root / row["path"]).read_bytes() == (root / row["duplicate_of"]).read_bytes()
            assert same == (kind == "exact_duplicate")
            first, second = decoded(root / row["path"]), decoded(root / row["duplicate_of"])
            assert first is not None
            assert second is not None
            assert np.abs(first.astype(float) - second).mean() < 25


def test_wbcbench_test_images_carry_no_given_label(wbcbench: Path) -> None:
    truth = truth_of(wbcbench)
    assert (truth[truth.split == "phase2_test"].given_label == "").all()
    assert (truth[truth.split == "phase2_test"].true_label != "").all()


def test_rendered_info_and_is_current(wbcbench: Path, tmp_path: Path) -> None:
    info = rendered_info(wbcbench)
    assert info is not None
    assert info["rendered"] is True
    assert info["competition"] == "wbcbench"
    assert info["spec"] == PLANTED.model_dump(mode="json")
    assert is_current(wbcbench, "wbcbench", PLANTED)
    assert not is_current(wbcbench, "cnmc", PLANTED)
    assert not is_current(wbcbench, "wbcbench", PLANTED.model_copy(update={"seed": 9}))
    assert rendered_info(tmp_path / "nowhere") is None


def test_interrupted_render_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RenderSpec(images=60, test_images=1, patients=4)
    render("wbcbench", tmp_path / "w", spec, workers=1, progress=False)
    before = {name: (tmp_path / "w" / name).read_bytes() for name in files_below(tmp_path / "w")}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_plant", interrupted)
    for root in (tmp_path / "new", tmp_path / "w"):
        with pytest.raises(KeyboardInterrupt):
            render("wbcbench", root, spec.model_copy(update={"seed": 1}), workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert before == {name: (tmp_path / "w" / name).read_bytes() for name in files_below(tmp_path / "w")}


def test_earlier_rendered_folder_is_replaced_but_nothing_else(tmp_path: Path) -> None:
    spec = RenderSpec(images=60, test_images=1, patients=3)
    root = tmp_path / "deep" / "w"
    render("wbcbench", root, spec, workers=1, progress=False)
    (root / "phase1" / "stray.jpg").write_bytes(b"")
    render("wbcbench", root, spec, workers=1, progress=False)
    assert not (root / "phase1" / "stray.jpg").exists()
    assert [path.name for path in root.parent.iterdir()] == ["w"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="not rendered"):
        render("wbcbench", mine, spec, progress=False)
    with pytest.raises(UserError, match="is a file"):
        render("wbcbench", mine / "thesis.txt", spec, progress=False)
    assert (mine / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize(
    ("competition", "changes", "key"),
    [
        ("wbcbench", {"images": 59}, "render.images"),
        ("wbcbench", {"patients": 2}, "render.patients"),
        ("wbcbench", {"images": 60, "patients": 80}, "render.patients"),
        ("wbcbench", {"exact_duplicates": 500}, "render.exact_duplicates"),
        ("wbcbench", {"corrupt_files": 500}, "render.corrupt_files"),
        ("cnmc", {"patients": 5}, "render.patients"),
        ("cnmc", {"images": 20, "patients": 40}, "render.images"),
        ("cnmc", {"near_duplicates": 500}, "render.near_duplicates"),
        ("lisc", {}, "wbcbench, cnmc"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    competition: str, changes: dict[str, int], key: str, tmp_path: Path
) -> None:
    spec = RenderSpec(**({"images": 100, "test_images": 5, "patients": 10} | changes))
    with pytest.raises(UserError) as refusal:
        render(competition, tmp_path / "x", spec, workers=1, progress=False)
    assert key in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_spec_refuses_unknown_keys_and_wrong_bounds() -> None:
    with pytest.raises(ValidationError):
        RenderSpec(imags=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        RenderSpec(wrong_labels=1.5)


def test_cnmc_duplicates_lie_under_few_pairs_of_subjects(tmp_path: Path) -> None:
    spec = RenderSpec(images=200, test_images=10, patients=20, exact_duplicates=12)
    render("cnmc", tmp_path / "cnmc", spec, workers=1, progress=False)
    truth = pd.read_csv(tmp_path / "cnmc" / "rendered_truth.csv", keep_default_na=False).set_index("path")
    copies = truth[truth.planted == "exact_duplicate"]
    pairs = {
        (truth.patient[original], patient)
        for original, patient in zip(copies.duplicate_of, copies.patient, strict=True)
    }
    assert len(copies) == 12
    assert len(pairs) <= 4
