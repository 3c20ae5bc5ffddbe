"""C-NMC 2019: packagings, names, merged subjects, the preliminary CSV, the crop and the zip."""

from __future__ import annotations

import random
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from leukofold.competitions.cnmc import COMPETITION, PREDICTIONS
from leukofold.errors import UserError

if TYPE_CHECKING:
    from tests.conftest import CnmcInput

FINAL = "C-NMC_test_final_phase_data"


def group_of(root: Path) -> dict[str, str]:
    frame = COMPETITION.read(root).frame
    return {str(name): str(group) for name, group in zip(frame.image_id, frame.group, strict=True)}


# --- finding and naming images ------------------------------------------------------------------


def test_every_part_becomes_rows_with_class_subject_and_split(cnmc_input: CnmcInput) -> None:
    frame = COMPETITION.read(cnmc_input.write(finals=2)).frame
    assert COMPETITION.class_names == ("hem", "all")
    assert frame[["image_id", "label", "group", "split"]].to_numpy().tolist() == [
        ["UID_1_1_1_all.bmp", 1, "1", "fold_0"],
        ["UID_H2_1_1_hem.bmp", 0, "H2", "fold_1"],
        ["UID_57_29_1_all.bmp", 1, "57", "prelim"],
        ["UID_H30_2_1_hem.bmp", 0, "H30", "prelim"],
        ["1.bmp", -1, "", "final"],
        ["2.bmp", -1, "", "final"],
    ]
    assert [Path(path).read_bytes() for path in frame.path[:4]] == [b"one", b"two", b"three", b"four"]


@pytest.mark.parametrize(
    ("training", "prelim", "final"),
    [
        ("C-NMC_training_data", "C-NMC_test_prelim_phase_data", FINAL),  # TCIA
        ("train", "valid/C-NMC_test_prelim_phase_data", f"C-NMC_Leukemia/C-NMC_Leukemia/{FINAL}"),
        (".", "C-NMC_test_prelim_phase_data/C-NMC_test_prelim_phase_data", f"{FINAL}/{FINAL}"),
        ("C-NMC_training_data/C-NMC_training_data/fold_0", "a/b/c/C-NMC_test_prelim_phase_data", f"x y/{FINAL}"),
    ],
)
def test_packagings_of_any_depth_give_the_same_table(
    cnmc_input: CnmcInput, training: str, prelim: str, final: str
) -> None:
    kaggle = COMPETITION.read(cnmc_input.write())
    cnmc_input.root = cnmc_input.root.with_name("other")
    cnmc_input.training, cnmc_input.prelim, cnmc_input.final = training, prelim, final
    assert COMPETITION.read(cnmc_input.write()).fingerprint() == kaggle.fingerprint()


def test_the_list_of_the_preliminary_phase_may_lie_anywhere(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    before = COMPETITION.read(root).fingerprint()
    (root / f"{cnmc_input.prelim}_labels.csv").rename(root / "C-NMC_test_prelim_phase_data_labels.csv")
    assert COMPETITION.read(root).fingerprint() == before


def test_other_files_in_the_folders_are_passed_over(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    before = COMPETITION.read(root).fingerprint()
    for path in ("readme.txt", f"{cnmc_input.training}/fold_0/all/.DS_Store", f"{cnmc_input.final}/Thumbs.db"):
        cnmc_input.add(path)
    assert COMPETITION.read(root).fingerprint() == before


def test_a_subject_in_lower_case_is_the_one_in_upper_case(cnmc_input: CnmcInput) -> None:
    cnmc_input.train(0, "UID_H3_1_1_hem.bmp", b"a")
    cnmc_input.train(0, "UID_h3_2_1_hem.bmp", b"b")
    cnmc_input.train(0, "UID_3_2_1_all.BMP", b"c")
    groups = group_of(cnmc_input.root)
    assert groups["UID_H3_1_1_hem.bmp"] == groups["UID_h3_2_1_hem.bmp"] == "H3"
    assert groups["UID_3_2_1_all.BMP"] == "3"


def test_training_data_alone_is_enough(cnmc_input: CnmcInput) -> None:
    cnmc_input.train(0, "UID_1_1_1_all.bmp")
    table = COMPETITION.read(cnmc_input.root)
    assert len(table.labelled) == 1
    assert table.test.empty


def test_final_images_come_in_the_order_of_their_numbers(cnmc_input: CnmcInput) -> None:
    expected = [f"{number}.bmp" for number in range(1, 13)]
    assert COMPETITION.read(cnmc_input.write(finals=12)).test.image_id.tolist() == expected


def test_gaps_in_the_final_numbers_and_unlisted_files_are_missing_and_named(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write(finals=12)
    for path in (f"{cnmc_input.final}/2.bmp", f"{cnmc_input.final}/10.bmp", f"{cnmc_input.prelim}/2.bmp"):
        (root / path).unlink()
    scan = COMPETITION.scan(root)
    assert [Path(path).relative_to(root).as_posix() for path in scan.missing] == [
        f"{cnmc_input.prelim}/2.bmp", f"{cnmc_input.final}/2.bmp", f"{cnmc_input.final}/10.bmp",
    ]  # fmt: skip
    with pytest.raises(UserError, match="3 listed images have no file"):
        COMPETITION.read(root)


# --- subjects that share images -----------------------------------------------------------------


def test_subjects_that_share_images_are_one_group_however_long_the_chain(cnmc_input: CnmcInput) -> None:
    cnmc_input.train(0, "UID_1_1_1_all.bmp", b"A and B")
    cnmc_input.train(1, "UID_2_1_1_all.bmp", b"A and B")
    cnmc_input.train(1, "UID_2_2_1_all.bmp", b"B and C")
    cnmc_input.train(2, "UID_3_1_1_all.bmp", b"B and C")
    cnmc_input.train(2, "UID_3_2_1_all.bmp", b"only C")
    cnmc_input.train(2, "UID_H3_1_1_hem.bmp", b"other")
    groups = group_of(cnmc_input.root)
    assert {name: group for name, group in groups.items() if "H3" not in name} == dict.fromkeys(
        [name for name in groups if "H3" not in name], "1+2+3"
    )
    assert groups["UID_H3_1_1_hem.bmp"] == "H3"


def test_preliminary_subjects_are_merged_with_training_subjects(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    cnmc_input.add(f"{cnmc_input.prelim}/1.bmp", b"one")  # the bytes of UID_1_1_1_all.bmp
    groups = group_of(root)
    assert groups["UID_57_29_1_all.bmp"] == groups["UID_1_1_1_all.bmp"] == "1+57"


@pytest.mark.parametrize("changed", [0, 39_999])
def test_images_that_differ_in_a_single_byte_at_the_edge_are_not_the_same(cnmc_input: CnmcInput, changed: int) -> None:
    content = bytearray(random.Random(0).randbytes(40_000))
    cnmc_input.train(0, "UID_1_1_1_all.bmp", bytes(content))
    content[changed] ^= 1
    cnmc_input.train(1, "UID_2_1_1_all.bmp", bytes(content))
    assert set(group_of(cnmc_input.root).values()) == {"1", "2"}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 14)), min_size=1, max_size=20))
def test_groups_are_the_connected_components_of_shared_images(images: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for i, (subject, content) in enumerate(images):
            path = Path(folder) / "fold_0" / "all" / f"UID_{subject}_{i}_1_all.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([content]) * 50)
        groups = group_of(Path(folder))
    edges = np.array([(subject, 10 + content) for subject, content in images]).T
    component = connected_components(coo_matrix((np.ones(len(images)), edges), shape=(25, 25)), directed=False)[1]
    found = [groups[f"UID_{subject}_{i}_1_all.bmp"] for i, (subject, _) in enumerate(images)]
    expected = [component[subject] for subject, _ in images]
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))


def test_rendered_subjects_are_groups_and_duplicates_tie_them_together(rendered_cnmc: Path) -> None:
    truth = pd.read_csv(rendered_cnmc / "rendered_truth.csv", dtype=str, keep_default_na=False)
    table = COMPETITION.read(rendered_cnmc)
    patients = dict(zip(truth.path, truth.patient.str.upper(), strict=True))
    frame = table.labelled
    patient = pd.Series([patients[Path(path).relative_to(rendered_cnmc).as_posix()] for path in frame.path])
    assert frame.groupby(patient.to_numpy()).group.nunique().max() == 1
    tied = [{patients[row.path], patients[row.duplicate_of]} for row in truth[truth.duplicate_of != ""].itertuples()]
    assert len(tied) == 3
    for pair in tied:
        assert frame.group[patient.isin(pair)].nunique() == 1
    alone = ~patient.isin(set().union(*tied))
    assert (frame.group[alone] == patient[alone]).all()
    assert table.test.image_id.tolist() == [f"{number}.bmp" for number in range(1, 13)]


# --- the crop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(600, 600), (600, 450), (450, 600), (451, 453)])
def test_larger_images_are_cut_to_450_about_the_centre(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 450) // 2, (shape[1] - 450) // 2
    assert np.array_equal(COMPETITION.preprocess(image), image[top : top + 450, left : left + 450])


def test_600_pixels_lose_75_on_each_side() -> None:
    image = np.zeros((600, 600, 3), np.uint8)
    image[75:525, 75:525] = 1
    assert COMPETITION.preprocess(image).min() == 1


@pytest.mark.parametrize("side", [450, 300])
def test_images_of_450_and_less_stay_whole(side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.array_equal(COMPETITION.preprocess(image), image)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("fold_0/all/UID_H9_1_1_hem.bmp", r"UID_H9_1_1_hem\.bmp: the name says hem, the folder all"),
        ("fold_0/hem/UID_9_1_1_all.bmp", "the name says all, the folder hem"),
        ("fold_0/all/cell_17.bmp", r"fold_0/all: 'cell_17\.bmp' is not called UID_"),
        ("fold_0/all/UID_X9_1_1_all.bmp", r"'UID_X9_1_1_all\.bmp' is not called UID_"),
        (f"{FINAL}/copy of 3.bmp", r"copy of 3\.bmp: .* called N\.bmp"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(cnmc_input: CnmcInput, path: str, said: str) -> None:
    root = cnmc_input.write()
    cnmc_input.add(path)
    with pytest.raises(UserError, match=said):
        COMPETITION.scan(root)


def test_an_image_in_two_folds_is_refused(cnmc_input: CnmcInput) -> None:
    for fold in (0, 1):
        cnmc_input.train(fold, "UID_9_1_1_all.bmp")
    with pytest.raises(UserError, match=r"stand twice.*UID_9_1_1_all\.bmp"):
        COMPETITION.scan(cnmc_input.root)


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        ("Patient_ID,new_names,labels", "UID_57_29_1_all.bmp,1.bmp,0", r"1\.bmp is labelled 0, .*UID_57_29_1_all"),
        ("Patient_ID,new_names,labels", "UID_57_29_1_all.bmp,1.bmp,2", r"unknown label '2' at 1\.bmp"),
        ("Patient_ID,new_names,labels", "UID_57_29_1_all.bmp,1.bmp,", "unknown label '' at"),
        ("Patient_ID,new_names,labels", "57,1.bmp,1", "'57' is not called UID_"),
        ("Patient_ID,labels", "UID_57_29_1_all.bmp,1", "no column 'new_names', only Patient_ID, labels"),
        ("Patient_ID,new_names,labels", "UID_57_29_1_all.bmp,1.bmp,1\na,b,c,d,e", r"labels\.csv"),
        ("Patient_ID,new_names,labels", '"UID_57_29_1_all.bmp,1.bmp,1', r"labels\.csv"),
    ],
    ids=["other label", "third label", "no label", "no name", "no column", "more fields", "open quote"],
)
def test_a_faulty_row_of_the_preliminary_list_is_refused(
    cnmc_input: CnmcInput, header: str, row: str, said: str
) -> None:
    root = cnmc_input.write()
    cnmc_input.prelim_list([row], header)
    with pytest.raises(UserError, match=said) as caught:
        COMPETITION.scan(root)
    assert "C-NMC_test_prelim_phase_data_labels.csv" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01"], ids=["empty", "binary"])
def test_a_preliminary_list_that_is_no_csv_is_refused_by_name(cnmc_input: CnmcInput, content: bytes) -> None:
    root = cnmc_input.write()
    cnmc_input.add(f"{cnmc_input.prelim}_labels.csv", content)
    with pytest.raises(UserError, match=r"C-NMC_test_prelim_phase_data_labels\.csv"):
        COMPETITION.scan(root)


def test_preliminary_images_without_their_list_are_refused(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    (root / f"{cnmc_input.prelim}_labels.csv").unlink()
    with pytest.raises(UserError, match=r"phase_data is there but not C-NMC_test_prelim_phase_data_labels\.csv"):
        COMPETITION.scan(root)


def test_the_preliminary_list_may_start_with_a_byte_order_mark(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    before = COMPETITION.read(root).fingerprint()
    path = root / f"{cnmc_input.prelim}_labels.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert COMPETITION.read(root).fingerprint() == before


@pytest.mark.parametrize("files", [None, [], ["notes.txt"]])
def test_a_missing_or_empty_folder_is_refused(cnmc_input: CnmcInput, files: Sequence[str] | None) -> None:
    if files is not None:
        cnmc_input.root.mkdir(parents=True)
    for name in files or ():
        cnmc_input.add(name)
    with pytest.raises(UserError, match=r"input/README\.md"):
        COMPETITION.scan(cnmc_input.root)


# --- the submission -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds no more than twelve final-phase images."""
    root = tmp_path_factory.mktemp("finals")
    (root / FINAL).mkdir()
    for number in range(1, 13):
        (root / FINAL / f"{number}.bmp").touch()
    return root


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_predictions_are_written_by_number_whatever_their_order(finals: Path, tmp_path: Path) -> None:
    numbers = random.Random(0).sample(range(1, 13), 12)
    labels = np.array([number in (2, 3, 10) for number in numbers]).astype(np.int64)
    COMPETITION.write_submission(tmp_path / "s.zip", [f"{number}.bmp" for number in numbers], labels)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["isbi_valid.predict"]
        assert archive.read("isbi_valid.predict") == b"0\n1\n1\n0\n0\n0\n0\n0\n0\n1\n0\n0\n"
    assert COMPETITION.check_submission(tmp_path / "s.zip", finals) == []


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    ids, labels = ["1.bmp", "2.bmp"], np.array([1, 0])
    for name in ("a.zip", "b.zip"):
        COMPETITION.write_submission(tmp_path / name, ids, labels)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("content", [b"0\n" * 12, b"1\n" * 11 + b"0"])
def test_a_valid_zip_of_another_program_passes(finals: Path, tmp_path: Path, content: bytes) -> None:
    assert COMPETITION.check_submission(zipped(tmp_path / "s.zip", {PREDICTIONS: content}), finals) == []


OTHER_LINES = {
    "empty": b"",
    "one line less": b"0\n" * 11,
    "one line more": b"0\n" * 13,
    "blank last line": b"0\n" * 12 + b"\n",
    "blank line for a label": b"0\n" * 11 + b"\n",
    "a third class": b"0\n" * 11 + b"2\n",
    "negative": b"0\n" * 11 + b"-1\n",
    "probability": b"0\n" * 11 + b"0.9\n",
    "trailing spaces": b"0 \n" * 12,
    "class names": b"hem\n" * 12,
    "all in one line": b"01" * 6,
    "not ASCII": b"\xff\n" * 12,
    "Arabic digit": b"0\n" * 11 + b"\xd9\xa1\n",
    "byte-order mark": b"\xef\xbb\xbf" + b"0\n" * 12,
    "CRLF line ends": b"0\r\n" * 12,
    "CR line ends": b"0\r" * 12,
    "form feeds for line ends": b"0\x0c1\n" * 6,
}


@pytest.mark.parametrize("content", OTHER_LINES.values(), ids=OTHER_LINES.keys())
def test_other_lines_than_one_0_or_1_per_image_are_reported(finals: Path, tmp_path: Path, content: bytes) -> None:
    assert COMPETITION.check_submission(zipped(tmp_path / "s.zip", {PREDICTIONS: content}), finals) != []


@pytest.mark.parametrize(
    "names",
    [[], ["isbi_valid.txt"], [f"predictions/{PREDICTIONS}"], [PREDICTIONS, "readme.txt"], [PREDICTIONS.upper()]],
)
def test_other_entries_than_the_one_the_server_looks_for_are_reported(
    finals: Path, tmp_path: Path, names: list[str]
) -> None:
    path = zipped(tmp_path / "s.zip", dict.fromkeys(names, b"0\n" * 12))
    (fault,) = COMPETITION.check_submission(path, finals)
    assert "it must hold one file, isbi_valid.predict" in fault
    assert all(name in fault for name in names)


def test_numbers_in_the_report_are_right(finals: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", {PREDICTIONS: b"0\n2\n1\nx\n"})
    assert COMPETITION.check_submission(path, finals) == [
        "4 lines, the final phase has 12 images", "lines other than 0 or 1: line 2: '2', line 4: 'x'",
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_damaged_zip_is_reported_and_never_a_crash(finals: Path, where: int, flipped: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zip"
        COMPETITION.write_submission(path, [f"{number}.bmp" for number in range(1, 13)], np.array([0, 1, 1] * 4))
        content = bytearray(path.read_bytes())
        where %= len(content)
        content[where] ^= flipped
        path.write_bytes(content[:where] if cut else content)
        faults = COMPETITION.check_submission(path, finals)
    assert faults or not cut  # a flipped bit may hit a date or a flag that nobody reads


@pytest.mark.parametrize(
    ("offset", "value"),
    [(6, 99), (8, 1), (8, 32), (10, 99)],
    ids=["zip version", "encrypted", "patched", "compression"],
)
def test_a_zip_that_python_cannot_open_is_reported(finals: Path, tmp_path: Path, offset: int, value: int) -> None:
    content = bytearray(zipped(tmp_path / "s.zip", {PREDICTIONS: b"0\n" * 12}).read_bytes())
    content[content.find(b"PK\x01\x02") + offset] = value  # in the zip's directory
    (tmp_path / "s.zip").write_bytes(content)
    assert COMPETITION.check_submission(tmp_path / "s.zip", finals) != []


def test_what_is_no_zip_or_not_there_is_told(finals: Path, tmp_path: Path) -> None:
    (tmp_path / "s.zip").write_bytes(b"0\n" * 12)
    assert COMPETITION.check_submission(tmp_path / "s.zip", finals) == ["not a zip archive of a text file"]
    with pytest.raises(UserError, match=r"none\.zip: no such file"):
        COMPETITION.check_submission(tmp_path / "none.zip", finals)
    with pytest.raises(UserError, match=f"no folder {FINAL}"):
        COMPETITION.check_submission(tmp_path / "s.zip", tmp_path)
