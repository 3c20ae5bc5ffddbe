"""Lists as spreadsheets, tools and people leave them: read alike, or refused by line; nothing else ever comes out."""

from __future__ import annotations

import csv
import io
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from leukofold.competitions import get_competition
from leukofold.config import DataConfig
from leukofold.corrections import read_corrections
from leukofold.errors import UserError
from leukofold.labels.truth import true_labels
from leukofold.lists import SEPARATORS, need_one_spelling, read_list

if TYPE_CHECKING:
    from tests.conftest import CnmcInput, MultimodalInput, WbcInput

TEXT = "ID,labels\n01,LY\n2,SNE\n"


def read(content: str | bytes, needed: tuple[str, ...] = ("ID", "labels"), **more: object) -> dict[str, list[str]]:
    """What ``read_list`` makes of a file of this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return {str(name): list(column) for name, column in read_list(path, needed, **more).items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace(",", ";").encode(),
        TEXT.replace(",", "\t").encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("\n", "\r\r\n").encode(),
        b'"ID", "labels"\n"01", "LY"\n"2", "SNE"\n',
        b" id ,LABELS\n 01, LY \n2,SNE",
        b"\n,,\nID,labels,,\n01,LY,,\n\n2,SNE,,\n,,,\n",
        b'note,labels,ID\n"a\nb",LY,01\n"5"" c, d",SNE,2\n',
        b"ID;labels;a,b\n01;LY;1,5\n2;SNE;1,5\n",
        b"ID,labels,x,x\n01,LY,1,2\n2,SNE\n",
    ],
    ids=[
        "plain", "byte-order mark", "semicolons", "tabs", "Windows", "old Mac", "CR twice", "quoted", "case and spaces",
        "empty columns and lines", "line breaks elsewhere", "commas between semicolons", "twice what nobody reads",
    ],
)  # fmt: skip
def test_what_is_the_same_to_people_is_read_alike(content: bytes) -> None:
    found = read(content)
    assert {name: found[name] for name in ("ID", "labels")} == {"ID": ["01", "2"], "labels": ["LY", "SNE"]}
    assert set(found) == {"ID", "labels"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty; put the list there once more"),
        (b"\xef\xbb\xbf \n\n", "it is empty"),
        (TEXT.encode("utf-16"), "UTF-16, or no text at all; save it as 'CSV UTF-8'"),
        (TEXT.encode("utf-16-le"), "UTF-16, or no text at all"),
        (TEXT.encode("utf-32"), "UTF-16, or no text at all"),
        (b"ID,labels\n01,L\0Y\n", "UTF-16, or no text at all"),
        (b"ID,labels\n01,LY\n2,caf\xe9\n", "line 3 is not UTF-8; save it as 'CSV UTF-8'"),
        (b"ID,ID,labels\n1,2,LY\n", "columns 'ID' and 'ID' have one name; keep one of them"),
        (b"ID,labels,Labels\n1,LY,MO\n", "columns 'labels' and 'Labels' have one name"),
        (b"ID,split\n1,2\n", "no column 'labels', only ID, split; the first line has to name them"),
        (b"ID|labels\n1|2\n", r"no column 'ID', only ID\|labels"),
        (b",,\n", "no column 'ID', only empty ones"),
        (b"ID,labels\n1,LY\n2,LY,MO\n", "line 3 has 3 fields, the header 2; put values that hold a sep"),
        (b'ID,labels\n1,"L\nY"\n', r"line 2, column 'labels': a line break or another control character in 'L\\nY'"),
        (b'ID,labels\n1,LY\n"2\x1b[2J",LY\n', r"line 3, column 'ID': .*in '2\\x1b\[2J'; take it out"),
        ("ID,labels\n1,LY\n\ufeff2,LY\n".encode(), r"line 3, column 'ID': .*in '\\ufeff2'"),
        (b'ID,labels\n1,LY\n"2,LY\n3,LY\n', "line 3: .*; look for a quote that is not closed"),
        (b'ID,labels\n1,"a"b\n', "line 2: .*double those within a value"),
        (b'"ID,labels\n1,LY\n', "line 1: .*look for a quote that is not closed"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(content)
    assert "list.csv: " in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_quote_that_is_not_closed_is_found_in_a_list_of_real_size() -> None:
    rows = "".join(f"{number:08d}.jpg,LY\n" for number in range(20_000))
    with pytest.raises(UserError, match=r"line 2: .*look for a quote that is not closed"):
        read(f'ID,labels\n"{rows}')


def test_a_list_that_is_not_there_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.csv: no such file"):
        read_list(tmp_path / "gone.csv", ("ID",))
    with pytest.raises(UserError, match=r"is a folder; name a CSV file"):
        read_list(tmp_path, ("ID",))


def test_columns_come_in_the_files_order_under_the_names_asked_for() -> None:
    content = b"b,PATH, ,A,c\n1,2,3,4,5\n"
    assert list(read(content, ("path",), known=("a", "d"))) == ["path", "a"]
    assert list(read(content, ("path",), others=True)) == ["b", "path", "A", "c"]
    with pytest.raises(UserError, match="columns 'x' and 'X' have one name"):
        read(b"path,x,X\n1,2,3\n", ("path",), others=True)
    assert read(b"path,a\n", ("path",)) == {"path": []}


def test_names_that_differ_in_case_alone_are_refused() -> None:
    need_one_spelling(Path("l.csv"), "patients", ["a", "b", "a", ""])
    with pytest.raises(UserError, match=r"l\.csv: patients 'P1' and 'p1' differ in case alone"):
        need_one_spelling(Path("l.csv"), "patients", ["P1", "b", "p1"])


# --- any bytes, and any table -------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text('aI"D;,\t\n\r \x00\ufeff', max_size=60).map(str.encode)))
@example(b'"')
@example(b"a\r\nb")
def test_of_any_bytes_comes_a_table_or_a_line_for_the_user(content: bytes) -> None:
    found, fault = {"a": [""]}, ""
    try:
        found = read(content, ("a",), others=True)
    except UserError as error:
        fault = str(error)
    assert "\n" not in fault
    assert "a" in found
    assert len({len(column) for column in found.values()}) == 1


VALUES = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=8).map(str.strip)


@st.composite
def tables(draw: DrawFn) -> pd.DataFrame:
    """A table of text with any names of columns, the first two of which are known."""
    others = draw(st.lists(VALUES.filter(bool), max_size=3))
    names = ["ID", "label", *others]
    if len({name.casefold() for name in names}) < len(names):
        names = names[:2]
    rows = draw(st.lists(st.tuples(*[VALUES] * len(names)).filter(any), max_size=6))
    return pd.DataFrame(rows, columns=names, dtype=str)


@settings(max_examples=100, deadline=None)
@given(
    tables(), st.sampled_from(SEPARATORS), st.booleans(), st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)  # fmt: skip
def test_every_table_that_pythons_writer_writes_is_read_back(
    table: pd.DataFrame, separator: str, marked: bool, end: str, quoting: int
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(table.columns)
    writer.writerows(table.to_numpy().tolist())
    content = (b"\xef\xbb\xbf" if marked else b"") + text.getvalue().encode()
    assert read(content, ("ID", "label"), others=True) == {str(name): list(table[name]) for name in table}


# --- the readers that use it --------------------------------------------------------------------


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Changes, takes out, repeats or puts in some bytes."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(found) + 1)
        end = min(len(found), start + rng.randint(0, 12))
        new = rng.choice(
            [b"", b'"', b",", b";", b"\n", b"\0", b"../", b"\xff", b"\xef\xbb\xbf", b"/etc/x", found[start:end] * 2]
        )
        found[start:end] = new
    return bytes(found)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mutated_lists_of_wbcbench_are_read_or_refused(wbc_files: WbcInput, seed: int) -> None:
    rng, root = random.Random(seed), wbc_files.root
    name = rng.choice(sorted(wbc_files.lists))
    valid = str(wbc_files.lists[name])
    paths, fault = [], ""
    try:
        (root / name).write_bytes(mutated(valid.encode(), rng))
        scan = get_competition("wbcbench").scan(root)
        paths = [*scan.table.frame.path, *scan.missing]
    except UserError as error:
        fault = str(error)
    finally:
        (root / name).write_text(valid)
    assert "\n" not in fault
    assert {Path(path).parent.relative_to(root).as_posix() for path in paths} <= set(wbc_files.FOLDERS.values())


@pytest.fixture(scope="module")
def wbc_files(tmp_path_factory: pytest.TempPathFactory) -> WbcInput:
    """A WBCBench folder that is written once."""
    from tests.conftest import WbcInput as Input

    made = Input(tmp_path_factory.mktemp("fuzz") / "wbcbench")
    made.write()
    return made


def test_semicolons_tabs_and_other_case_give_the_same_table_of_wbcbench(wbc: WbcInput, tmp_path: Path) -> None:
    competition = get_competition("wbcbench")
    before = competition.read(wbc.write()).fingerprint()
    test_ids = competition.read(wbc.root).test.image_id.tolist()
    for separator, header in ((";", "ID;labels"), ("\t", "id\tLabels")):
        for name, text in wbc.lists.items():
            assert isinstance(text, str)
            changed = text.replace(",", separator).replace(f"ID{separator}labels", header)
            (wbc.root / name).write_text(changed, encoding="utf-8")
        assert competition.read(wbc.root).fingerprint() == before
        competition.write_submission(tmp_path / "s.csv", test_ids, pd.Series([1, 2, 3]).to_numpy())
        assert competition.check_submission(tmp_path / "s.csv", wbc.root) == []


@pytest.mark.parametrize(
    "image_id", ["../../etc/1.jpg", "/1.jpg", "\u0663.jpg", f"{'9' * 5000}.jpg", "1.jpg.jpg", "1.JPG"]
)
def test_ids_of_wbcbench_are_digits(wbc: WbcInput, image_id: str) -> None:
    root = wbc.write({"phase2_eval.csv": f"ID,labels\n{image_id},EO\n"})
    with pytest.raises(UserError, match=r"phase2_eval\.csv: column 'ID' holds '.*', expected digits and \.jpg"):
        get_competition("wbcbench").scan(root)


def test_a_submission_of_hostile_bytes_is_a_fault_in_one_line(wbc: WbcInput, tmp_path: Path) -> None:
    root, path = wbc.write(), tmp_path / "s.csv"
    competition = get_competition("wbcbench")
    path.write_bytes(b'ID,labels\n"\x1b[2J\n",LY\n04000002.jpg\n,"\r"\n')
    assert all(fault.isprintable() for fault in competition.check_submission(path, root))
    path.write_bytes("ID,labels\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"s.csv: not a text file; write it as UTF-8"):
        competition.check_submission(path, root)


def test_the_preliminary_list_of_c_nmc_is_read_by_the_same_rules(cnmc_input: CnmcInput) -> None:
    competition, root = get_competition("cnmc"), cnmc_input.write()
    before = competition.read(root).fingerprint()
    cnmc_input.prelim_list(
        ["UID_57_29_1_all.bmp;1.bmp;1", "UID_H30_2_1_hem.bmp;2.bmp;0"], "patient_id;New_Names;LABELS"
    )
    assert competition.read(root).fingerprint() == before
    for rows, said in (
        (["UID_57_29_1_all.bmp,1.bmp,1", "UID_H30_2_1_hem.bmp,1.bmp,0"], r"1\.bmp stands twice; keep one row of it"),
        ([], "lists no image; download it again"),
    ):
        cnmc_input.prelim_list(rows)
        with pytest.raises(UserError, match=rf"labels\.csv: {said}"):
            competition.scan(root)


def test_a_final_image_of_an_absurd_number_is_refused_at_once(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write()
    cnmc_input.add(f"{cnmc_input.final}/20190526163446.bmp")
    with pytest.raises(UserError, match=r"20190526163446\.bmp: the final and preliminary images are called N\.bmp"):
        get_competition("cnmc").scan(root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("c7,", "C8,", 1), "cells 'C8' and 'c8' differ in case alone"),
        (lambda text: text.replace(",p1,", ",P0,", 1), "patients 'p0' and 'P0' differ in case alone"),
        (lambda text: text.replace("c7,", ",", 1), "1 cells without a cell_id; name each"),
        (lambda text: text.replace("Color1", "color2", 1), "columns 'color2' and 'Color2' have one name"),
        (lambda text: text.replace("c7,", '"c\n7",', 1), r"line 9, column 'cell_id': a line break"),
    ],
)  # fmt: skip
def test_a_list_of_several_images_that_is_ambiguous_is_refused(
    multimodal: MultimodalInput, change: object, said: str
) -> None:
    path = multimodal.root / "cells.csv"
    assert callable(change)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=said):
        get_competition("multimodal").scan(multimodal.root)


def test_case_and_separator_of_a_list_of_several_images_do_not_count(multimodal: MultimodalInput) -> None:
    competition, path = get_competition("multimodal"), multimodal.root / "cells.csv"
    before = competition.read(multimodal.root).fingerprint()
    header, _, rows = path.read_text().partition("\n")
    path.write_text(f"\ufeff{header.upper()}\n{rows}".replace(",", ";"), encoding="utf-8")
    assert competition.read(multimodal.root).fingerprint() == before


def test_one_file_under_two_spellings_is_listed_twice(multimodal: MultimodalInput) -> None:
    path = multimodal.root / "cells.csv"
    table = pd.read_csv(path, dtype=str)
    own = multimodal.root / table.Color1[0]
    own.with_name("C0.png").hardlink_to(own)  # as a file system sees it that takes both names for one
    table.loc[1, "Color1"] = table.Color1[0].replace("c0.png", "C0.png")
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match=r"1 images are listed more than once: .*C0\.png"):
        get_competition("multimodal").scan(multimodal.root)


def test_lists_of_label_issues_are_read_by_the_same_rules(tmp_path: Path) -> None:
    labelled = pd.DataFrame({"image_id": ["a", "b"], "label": [0, 1], "source": "own"})
    path = tmp_path / "issues.csv"
    config = DataConfig(drop_issues=path)
    path.write_text("\ufeffIMAGE_ID;given_label\n a ;LY\n", encoding="utf-8")
    folds = pd.Series([0, 1]).to_numpy()
    assert read_corrections(config, labelled, ("LY", "MO"), folds, [0])[0].tolist() == [-1, 1]
    path.write_text("image_id,given_label,IMAGE_ID\na,LY,b\n")
    with pytest.raises(
        UserError, match=r"data.drop_issues: .*issues.csv: columns 'image_id' and 'IMAGE_ID' have one name"
    ):
        read_corrections(config, labelled, ("LY", "MO"), folds, [0])


def test_a_damaged_list_of_rendered_truth_is_named(tmp_path: Path) -> None:
    (tmp_path / "rendered.json").write_text('{"rendered": true}')
    (tmp_path / "rendered_truth.csv").write_text("path,class\n")
    with pytest.raises(UserError, match=r"rendered_truth.csv: no column 'true_label', only path, class"):
        true_labels([str(tmp_path / "1.jpg")], ("LY",))
