"""WBCBench 2026: its lists in every shape they come in, its pseudo-patients, its submission."""

from __future__ import annotations

import csv
import io
import random
import re
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from leukofold.competitions import get_competition, names
from leukofold.competitions.wbcbench import CLASS_NAMES, COMPETITION, LARGEST_GAP, pseudo_patients
from leukofold.errors import UserError
from leukofold.images.reading import read_image

if TYPE_CHECKING:
    from tests.conftest import WbcInput

TEST_IDS = ["04000009.jpg", "04000002.jpg", "04000005.jpg"]  # the default list's order, which is not sorted
HEADER = "ID,labels,split\n"


def labels_of(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): CLASS_NAMES[int(label)] for name, label in zip(frame.image_id, frame.label, strict=True)}


def test_the_lists_become_one_table(wbc: WbcInput) -> None:
    table = COMPETITION.read(wbc.write())
    assert table.class_names == ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")
    assert labels_of(table.labelled) == {
        "01447013.jpg": "SNE", "01447020.jpg": "LY", "01447100.jpg": "BL", "02000001.jpg": "BA", "02000002.jpg": "LY",
        "02000003.jpg": "BA", "02000004.jpg": "SNE", "03000001.jpg": "EO", "03000002.jpg": "MO",
    }  # fmt: skip
    assert table.labelled.split.tolist() == ["phase1_train"] * 3 + ["phase2_train"] * 4 + ["phase2_eval"] * 2
    assert table.test.image_id.tolist() == TEST_IDS
    assert all(Path(path).is_file() for path in table.frame.path)
    assert (table.frame.bytes == [Path(path).stat().st_size for path in table.frame.path]).all()


def test_gaps_separate_patients_in_phase_1_and_class_resets_in_phase_2(wbc: WbcInput) -> None:
    groups = COMPETITION.read(wbc.write()).labelled.groupby("group").image_id.agg(list).tolist()
    assert groups == [
        ["01447013.jpg", "01447020.jpg"], ["01447100.jpg"], ["03000001.jpg", "03000002.jpg"],
        ["02000001.jpg", "02000002.jpg"], ["02000003.jpg", "02000004.jpg"],
    ]  # fmt: skip


def test_phase_1_rows_repeated_in_the_list_of_phase_2_count_once(wbc: WbcInput) -> None:
    alone = COMPETITION.read(wbc.write())
    repeated = f"{wbc.lists['phase2_train.csv']!s}01447013.jpg,SNE,phase1_train\n01447020.jpg,LY,phase1_train\n"
    both = COMPETITION.read(wbc.write({"phase2_train.csv": repeated}))
    assert both.fingerprint() == alone.fingerprint()


def test_a_row_repeated_with_another_label_is_refused(wbc: WbcInput) -> None:
    root = wbc.write({"phase2_train.csv": HEADER + "01447013.jpg,BL,phase1_train\n"})
    with pytest.raises(UserError, match=r"stand twice.*01447013\.jpg"):
        COMPETITION.scan(root)


def test_lists_without_a_split_column_belong_to_their_own_split(wbc: WbcInput) -> None:
    root = wbc.write({"phase2_eval.csv": "ID,labels\n03000001.jpg,EO\n"})
    assert COMPETITION.read(root).labelled.split.tolist()[-1] == "phase2_eval"


def test_a_released_patient_hash_replaces_the_pseudo_patient_where_it_is_given(wbc: WbcInput) -> None:
    header = "ID,labels,split,patient_hash\n"
    root = wbc.write(
        {
            "phase1_label.csv": header + "01447013.jpg,SNE,phase1_train,abc\n01447020.jpg,LY,phase1_train,\n",
            "phase2_train.csv": header + "02000001.jpg,BA,phase2_train,abc\n02000002.jpg,LY,phase2_train,def\n",
            "phase2_test.csv": "ID,labels,patient_hash\n04000009.jpg,,abc\n",
        }
    )
    table = COMPETITION.read(root)
    groups = dict(zip(table.frame.image_id, table.frame.group, strict=True))
    assert [groups[name] for name in ("01447013.jpg", "02000001.jpg", "02000002.jpg")] == ["abc", "abc", "def"]
    assert groups["01447020.jpg"] not in ("", "abc", "def")
    assert groups["04000009.jpg"] == ""


def test_images_of_another_size_are_taken_as_they_are(wbc: WbcInput) -> None:
    root = wbc.write()
    pixels = np.random.default_rng(0).integers(0, 256, (368, 370, 3), dtype=np.uint8)
    (root / "phase1" / "01447013.jpg").write_bytes(bytes(cv2.imencode(".jpg", pixels)[1]))
    decoded = read_image(COMPETITION.read(root).frame.path[0])
    assert COMPETITION.preprocess(decoded).shape == (368, 370, 3)


def test_listed_images_without_a_file_are_missing_and_named(wbc: WbcInput) -> None:
    root = wbc.write()
    for lost in ("phase2/test/04000002.jpg", "phase1/01447020.jpg"):
        (root / lost).unlink()
    scan = COMPETITION.scan(root)
    assert scan.missing == [(root / "phase1/01447020.jpg").as_posix(), (root / "phase2/test/04000002.jpg").as_posix()]
    assert len(scan.table.frame) == 10
    with pytest.raises(UserError, match=r"2 listed images have no file, .*01447020\.jpg first"):
        COMPETITION.read(root)


def test_a_missing_file_does_not_move_the_groups_of_the_others(wbc: WbcInput) -> None:
    root = wbc.write()
    before = COMPETITION.read(root).frame.set_index("image_id").group
    (root / "phase1" / "01447013.jpg").unlink()
    after = COMPETITION.scan(root).table.frame.set_index("image_id").group
    assert after.equals(before.drop("01447013.jpg"))


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"phase2_eval.csv": None}, r"phase2_eval\.csv: the list is missing"),
        ({"phase2_eval.csv": ""}, r"phase2_eval\.csv: not a readable CSV"),
        ({"phase2_eval.csv": b"\xff\xfe\x00"}, r"phase2_eval\.csv: not a readable CSV"),
        ({"phase2_eval.csv": 'ID,labels\n"03000001.jpg,EO\n'}, r"phase2_eval\.csv: not a readable CSV"),
        ({"phase1_label.csv": "ID,split,,,\n01447013.jpg,phase1_train,,,\n"}, r"phase1_label\.csv: no column 'labels'"),
        ({"phase2_test.csv": "image,labels\n04000009.jpg,\n"}, r"phase2_test\.csv: no column 'ID', only image, labels"),
        ({"phase2_eval.csv": HEADER + "03000001.jpg,NEU,phase2_eval\n"}, r"unknown label 'NEU' at 03000001\.jpg"),
        ({"phase2_eval.csv": HEADER + "03000001.jpg,,phase2_eval\n"}, r"unknown label '' at 03000001\.jpg"),
        ({"phase2_eval.csv": HEADER + "03000001.jpg,eo,phase2_eval\n"}, "unknown label 'eo'"),
        ({"phase2_eval.csv": HEADER + "03000001.jpg,EO,phase3\n"}, "unknown split 'phase3'"),
        ({"phase2_eval.csv": HEADER + "03000001,EO,phase2_eval\n"}, "column 'ID' holds '03000001', expected"),
    ],
)
def test_a_faulty_list_is_refused_by_name(wbc: WbcInput, lists: dict[str, str | bytes | None], said: str) -> None:
    root = wbc.write(lists)
    with pytest.raises(UserError, match=said):
        COMPETITION.scan(root)


def test_a_labelled_row_that_claims_to_be_of_the_test_set_is_refused(wbc: WbcInput) -> None:
    root = wbc.write({"phase2_eval.csv": HEADER + "04000001.jpg,EO,phase2_test\n"})
    (root / "phase2" / "eval" / "04000001.jpg").rename(root / "phase2" / "test" / "04000001.jpg")
    with pytest.raises(UserError, match=r"phase2_eval\.csv"):
        COMPETITION.scan(root)


@pytest.mark.parametrize("made", [False, True])
def test_a_missing_or_empty_folder_is_refused_with_the_way_to_fill_it(tmp_path: Path, made: bool) -> None:
    root = tmp_path / "wbc"
    if made:
        root.mkdir()
    with pytest.raises(UserError, match=r"wbc: the input folder (does not exist|is empty).*--download"):
        COMPETITION.read(root)


def test_an_unknown_competition_is_refused_with_the_nearest() -> None:
    assert names() == ["acevedo", "cnmc", "multimodal", "raabin", "wbcbench"]
    with pytest.raises(UserError, match="did you mean 'wbcbench'"):
        get_competition("wbc-bench")
    with pytest.raises(UserError, match="known ones: acevedo, cnmc, multimodal, raabin, wbcbench"):
        get_competition("base")


# --- lists as spreadsheets and tools leave them -------------------------------------------------


@st.composite
def written_lists(draw: DrawFn) -> tuple[dict[str, str], bytes]:
    """Draws some rows, and one of the many CSV files that say the same."""
    numbers = draw(st.lists(st.integers(0, 99_999_999), min_size=1, max_size=12, unique=True))
    rows = {f"{number:08d}.jpg": draw(st.sampled_from(CLASS_NAMES)) for number in numbers}
    columns: list[tuple[str, list[str]]] = [
        ("ID", list(rows)), ("labels", list(rows.values())), ("split", ["phase2_eval"] * len(rows)),
    ]  # fmt: skip
    notes = st.lists(st.text('a,;" é', max_size=5), min_size=len(rows), max_size=len(rows))
    columns += [(f"note {i}", draw(notes)) for i in range(draw(st.integers(0, 2)))]
    columns = draw(st.permutations(columns)) + [("", [""] * len(rows))] * draw(st.integers(0, 3))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*(values for _, values in columns), strict=True))
    return rows, (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + text.getvalue().encode()


@settings(max_examples=40, deadline=None)
@given(written_lists())
def test_byte_order_marks_empty_and_unknown_columns_and_their_order_do_not_matter(
    drawn: tuple[dict[str, str], bytes],
) -> None:
    rows, content = drawn
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("phase1_label.csv", "phase2_train.csv", "phase2_test.csv"):
            (root / name).write_text(HEADER)
        (root / "phase2_eval.csv").write_bytes(content)
        (root / "phase2" / "eval").mkdir(parents=True)
        for image_id in rows:
            (root / "phase2" / "eval" / image_id).touch()
        frame = COMPETITION.read(root).frame
    assert list(labels_of(frame).items()) == list(rows.items())


# --- pseudo-patients ----------------------------------------------------------------------------


@st.composite
def patients_with_gaps(draw: DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draws ids that run patient by patient with gaps > 20 between, and the patient of each."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=12))
    number, numbers = draw(st.integers(0, 50_000_000)), []
    for size in sizes:
        number += draw(st.integers(LARGEST_GAP + 1, 5000))
        for position in range(size):
            number += draw(st.integers(1, LARGEST_GAP)) if position else 0
            numbers.append(number)
    return np.array(numbers), np.repeat(np.arange(len(sizes)), sizes)


def ids_of(numbers: np.ndarray) -> list[str]:
    return [f"{number:08d}.jpg" for number in numbers]


@settings(max_examples=60, deadline=None)
@given(patients_with_gaps(), st.integers(0, 2**32 - 1))
def test_patients_apart_by_more_than_20_ids_are_cut_exactly_in_whatever_order_rows_come(
    drawn: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    numbers, patients = drawn
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    labels = rng.integers(0, 13, len(numbers))
    blocks = pseudo_patients(ids_of(numbers[order]), labels, resets=False)
    assert blocks.tolist() == patients[order].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(0, 10**6))
def test_patients_sorted_by_class_are_cut_where_the_class_falls_and_never_inside(
    patients: list[list[int]], seed: int
) -> None:
    labels = np.array([label for patient in patients for label in sorted(patient)])
    truth = np.repeat(np.arange(len(patients)), [len(patient) for patient in patients])
    order = np.random.default_rng(seed).permutation(len(labels))
    blocks = np.empty_like(order)
    blocks[order] = pseudo_patients(ids_of(2_000_000 + order), labels[order], resets=True)
    visible = sum(max(one) > min(next_one) for one, next_one in pairwise(patients))
    assert blocks.max() + 1 == visible + 1
    assert pd.Series(blocks).groupby(truth).nunique().max() == 1


def test_no_ids_are_no_patients() -> None:
    assert pseudo_patients([], np.array([], dtype=np.int64), resets=True).tolist() == []


def test_no_rendered_patient_is_split_and_those_of_phase_1_are_all_found(rendered_wbcbench: Path) -> None:
    truth = pd.read_csv(rendered_wbcbench / "rendered_truth.csv", dtype=str, keep_default_na=False)
    labelled = COMPETITION.read(rendered_wbcbench).labelled.merge(truth[["image_id", "patient"]], on="image_id")
    assert len(labelled) == 110
    assert labelled.groupby("patient").group.nunique().max() == 1  # no boundary falls inside a patient
    phase1 = labelled[labelled.split == "phase1_train"]
    assert phase1.groupby("group").patient.nunique().max() == 1
    assert labelled.groupby("group").patient.nunique().max() < labelled.patient.nunique() / 2  # nor are all one group


def test_the_rendered_table_is_what_the_truth_says(rendered_wbcbench: Path) -> None:
    truth = pd.read_csv(rendered_wbcbench / "rendered_truth.csv", dtype=str, keep_default_na=False)
    table = COMPETITION.read(rendered_wbcbench)
    given = truth[truth.given_label != ""]
    assert labels_of(table.labelled) == dict(zip(given.image_id, given.given_label, strict=True))
    assert table.test.image_id.tolist() == truth[truth.split == "phase2_test"].image_id.tolist()


# --- the submission -----------------------------------------------------------------------------

Mutation = Callable[[list[str], random.Random], str]  # lines of a valid file (header first) -> a faulty file


def change_row(change: Callable[[str, str], str]) -> Mutation:
    """Changes one row's id and label."""

    def mutate(lines: list[str], rng: random.Random) -> str:
        row = rng.randrange(1, len(lines))
        image_id, label = lines[row].split(",")
        return join([*lines[:row], change(image_id, label), *lines[row + 1 :]])

    return mutate


def join(lines: list[str], end: str = "\n") -> str:
    return end.join(lines) + end


def drop_row(lines: list[str], rng: random.Random) -> str:
    row = rng.randrange(1, len(lines))
    return join(lines[:row] + lines[row + 1 :])


def duplicate_id(lines: list[str], rng: random.Random) -> str:
    one, other = rng.sample(range(1, len(lines)), 2)
    return join([lines[one] if row == other else line for row, line in enumerate(lines)])


def repeat_row(lines: list[str], rng: random.Random) -> str:
    return join([*lines, rng.choice(lines[1:])])


def swap_rows(lines: list[str], rng: random.Random) -> str:
    one, other = rng.sample(range(1, len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return join(lines)


def extra_column(lines: list[str], rng: random.Random) -> str:
    return join([f"{line},{rng.random()}" if row else f"{line},confidence" for row, line in enumerate(lines)])


MUTATIONS: dict[str, Mutation] = {
    "dropped row": drop_row,
    "duplicated id": duplicate_id,
    "repeated row": repeat_row,
    "swapped rows": swap_rows,
    "no rows": lambda lines, rng: join(lines[:1]),
    "no header": lambda lines, rng: join(lines[1:]),
    "empty file": lambda lines, rng: "",
    "blank label": change_row(lambda image_id, label: f"{image_id},"),
    "no label": change_row(lambda image_id, label: image_id),
    "unknown label": change_row(lambda image_id, label: f"{image_id},NEU"),
    "label in lower case": change_row(lambda image_id, label: f"{image_id},{label.lower()}"),
    "label with a space": change_row(lambda image_id, label: f"{image_id}, {label}"),
    "class index": change_row(lambda image_id, label: f"{image_id},{CLASS_NAMES.index(label)}"),
    "third field in a row": change_row(lambda image_id, label: f"{image_id},{label},1"),
    "id without zeros": change_row(lambda image_id, label: f"{image_id.lstrip('0')},{label}"),
    "id without suffix": change_row(lambda image_id, label: f"{image_id[:-4]},{label}"),
    "renamed column": lambda lines, rng: join([rng.choice(["ID,label", "id,labels", "labels,ID"]), *lines[1:]]),
    "extra column": extra_column,
    "index column": lambda lines, rng: join([f"{row - 1 if row else ''},{line}" for row, line in enumerate(lines)]),
    "semicolons": lambda lines, rng: join([line.replace(",", ";") for line in lines]),
    "byte-order mark": lambda lines, rng: "\ufeff" + join(lines),
}


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds no more than a test list of 40 ids in no order."""
    root = tmp_path_factory.mktemp("list")
    ids = random.Random(0).sample(range(4_000_000, 5_000_000), 40)
    (root / "phase2_test.csv").write_text(join(["ID,labels", *(f"{number:08d}.jpg," for number in ids)]))
    return root


def faults_of(content: str, root: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.csv"
        path.write_bytes(content.encode())
        return COMPETITION.check_submission(path, root)


def valid_lines(root: Path, rng: random.Random) -> list[str]:
    ids = [line.split(",")[0] for line in (root / "phase2_test.csv").read_text().splitlines()[1:]]
    return ["ID,labels", *(f"{image_id},{rng.choice(CLASS_NAMES)}" for image_id in ids)]


@pytest.mark.parametrize("fault", MUTATIONS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_fault_in_a_submission_goes_unreported(listing: Path, fault: str, seed: int) -> None:
    rng = random.Random(seed)
    lines = valid_lines(listing, rng)
    assert faults_of(join(lines), listing) == []
    assert faults_of(join(lines, "\r\n"), listing) == []  # as a spreadsheet on Windows saves it
    assert faults_of(MUTATIONS[fault](lines, rng), listing) != []


def test_written_submissions_pass_their_check_and_keep_the_lists_order(wbc: WbcInput, tmp_path: Path) -> None:
    root, path = wbc.write(), tmp_path / "s.csv"
    COMPETITION.write_submission(path, TEST_IDS, np.array([12, 0, 4]))
    assert path.read_bytes() == b"ID,labels\n04000009.jpg,VLY\n04000002.jpg,BA\n04000005.jpg,LY\n"
    assert COMPETITION.check_submission(path, root) == []


def test_a_report_names_the_rows_at_fault(listing: Path) -> None:
    lines = valid_lines(listing, random.Random(1))
    first, second, third = (line.split(",")[0] for line in lines[1:4])
    lines[1:3] = [f"{second},BA", f"{second},", "99999999.jpg,NEU"]
    report = "; ".join(faults_of(join(lines), listing))
    for said in (
        "41 rows, the test list has 40", f"more than once: {second}", f"not there: {first}", "99999999.jpg: 'NEU'",
        f"{second}: ''", "does not have: 99999999.jpg",
    ):  # fmt: skip
        assert said in report
    assert third not in report


def test_swapped_rows_are_named_by_number(listing: Path) -> None:
    lines = valid_lines(listing, random.Random(1))
    lines[4], lines[7] = lines[7], lines[4]
    assert re.search(rf"order differs.*row 4: {lines[4][:12]}", faults_of(join(lines), listing)[0])


def test_an_unclosed_quote_in_a_submission_of_real_size_is_a_fault_not_a_crash(listing: Path) -> None:
    lines = valid_lines(listing, random.Random(1))
    content = join([lines[0], f'"{lines[1]}', *lines[2:] * 300])
    try:
        assert faults_of(content, listing) != []
    except UserError as error:
        assert "s.csv" in str(error)  # noqa: PT017 - either way of reporting will do


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfID,labels\n04000009.jpg,\n", b"ID,labels,,\n04000009.jpg,,,\n"],
    ids=["byte-order mark", "empty columns"],
)
def test_a_test_list_that_can_be_read_can_be_checked_against(wbc: WbcInput, tmp_path: Path, content: bytes) -> None:
    root = wbc.write({"phase2_test.csv": content})
    ids: Any = COMPETITION.read(root).test.image_id.tolist()
    COMPETITION.write_submission(tmp_path / "s.csv", ids, np.array([3]))
    assert COMPETITION.check_submission(tmp_path / "s.csv", root) == []


def test_what_is_not_there_or_no_text_is_refused(wbc: WbcInput, tmp_path: Path) -> None:
    root = wbc.write()
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        COMPETITION.check_submission(tmp_path / "none.csv", root)
    (tmp_path / "image.csv").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"image\.csv: not a text file"):
        COMPETITION.check_submission(tmp_path / "image.csv", root)
    with pytest.raises(UserError, match=r"phase2_test\.csv: no such file"):
        COMPETITION.check_submission(tmp_path / "image.csv", tmp_path)


def test_a_test_list_without_its_columns_is_refused(wbc: WbcInput, tmp_path: Path) -> None:
    root = wbc.write({"phase2_test.csv": "image,labels\n04000009.jpg,\n"})
    COMPETITION.write_submission(tmp_path / "s.csv", ["04000009.jpg"], np.array([0]))
    with pytest.raises(UserError, match=r"phase2_test\.csv.*ID"):
        COMPETITION.check_submission(tmp_path / "s.csv", root)
