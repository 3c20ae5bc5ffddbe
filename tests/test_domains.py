"""Target domains by configuration: a folder per class, renamed, left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold.cells import COLUMNS, CellTable
from leukofold.domains import read_domain
from leukofold.errors import UserError

FIVE = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")


def write(root: Path, *paths: str) -> Path:
    """Writes a file of as many bytes as its path has letters to each path below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * len(path))
    return root


def test_folders_become_rows_of_a_table_of_cells(tmp_path: Path) -> None:
    root = write(tmp_path, "neut/2.png", "neut/part 2/1.JPG", "Lymphocyte/1.bmp", "mixt/1.jpg")
    frame = read_domain("clinic", root, FIVE, {"neut": "Neutrophil", "mixt": ""})
    assert frame[["image_id", "label", "bytes"]].to_numpy().tolist() == [
        ["clinic/Lymphocyte/1.bmp", 2, 16],
        ["clinic/neut/2.png", 4, 10],
        ["clinic/neut/part 2/1.JPG", 4, 17],
    ]
    assert frame.group.tolist() == frame.image_id.tolist()
    assert (set(frame.source), set(frame.split)) == ({"clinic"}, {"clinic"})
    assert not frame.is_external.any()
    assert [Path(path).stat().st_size for path in frame.path] == frame.bytes.tolist()
    assert CellTable(frame, FIVE).counts().loc["clinic", "Neutrophil"] == 2


def test_columns_and_types_are_those_of_the_table_of_cells(tmp_path: Path) -> None:
    frame = read_domain("clinic", write(tmp_path, "Basophil/1.jpg"), FIVE, {})
    expected = pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in COLUMNS.items()})
    assert frame.dtypes.to_dict() == expected.dtypes.to_dict()
    assert list(frame.columns) == list(COLUMNS)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(FIVE), st.integers(1, 4), min_size=1), st.randoms(use_true_random=False))
def test_class_indices_are_those_of_the_list_whichever_folders_there_are(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], random: Random
) -> None:
    root = tmp_path_factory.mktemp("domain")
    for name, count in counts.items():
        folder = "".join(random.choice([letter.upper(), letter.lower()]) for letter in name)
        write(root, *(f"{folder}/{i}.jpg" for i in range(count)))
    labels = read_domain("clinic", root, FIVE, {}).label
    assert labels.value_counts().to_dict() == {FIVE.index(name): count for name, count in counts.items()}
    assert labels.is_monotonic_increasing


def test_names_of_folders_match_whatever_their_case(tmp_path: Path) -> None:
    frame = read_domain("clinic", write(tmp_path, "BASO/1.jpg", "Mixt/1.jpg"), FIVE, {"Baso": "Basophil", "mixt": ""})
    assert frame.image_id.tolist() == ["clinic/BASO/1.jpg"]


def test_two_folders_of_one_class_are_put_together(tmp_path: Path) -> None:
    root = write(tmp_path, "band/1.jpg", "segmented/1.jpg")
    frame = read_domain("clinic", root, FIVE, {"band": "Neutrophil", "segmented": "Neutrophil"})
    assert (set(frame.label), len(set(frame.image_id))) == ({4}, 2)


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path, "Basophil/1.jpg", "Basophil/Thumbs.db", "Basophil/._1.jpg", ".git/1.jpg", "__MACOSX/1.jpg")
    assert len(read_domain("clinic", write(root, "sheet.png"), FIVE, {})) == 1


@pytest.mark.parametrize(
    ("paths", "names", "said"),
    [
        (
            ("Basophil/1.jpg", "Blast/1.jpg"),
            {},
            "{root}/Blast: no class; known ones are Basophil, Eosinophil, Lymphocyte, Monocyte, Neutrophil; "
            "name its class in data.domains.clinic.names, or '' to leave it out",
        ),
        (
            ("Basophil/1.jpg",),
            {"blast": "Neutrophile"},
            "data.domains.clinic.names: 'Neutrophile' is no class; known ones are Basophil, Eosinophil, Lymphocyte, "
            "Monocyte, Neutrophil",
        ),
        (
            ("Basophil/notes.txt", "1.jpg"),
            {},
            "{root}: no image (.jpg, .jpeg, .png, .bmp, .tif, .tiff) in a folder of a class (data.domains.clinic)",
        ),
        ((), {}, "data.domains.clinic.root: {root}: no such folder; put the images there, a folder per class"),
    ],
    ids=["unknown folder", "unknown class", "no image", "no folder"],
)
def test_faults_are_told_in_one_line(tmp_path: Path, paths: tuple[str, ...], names: dict[str, str], said: str) -> None:
    root = write(tmp_path / "clinic", *paths)
    with pytest.raises(UserError) as refused:
        read_domain("clinic", root, FIVE, names)
    assert str(refused.value) == said.format(root=root)
