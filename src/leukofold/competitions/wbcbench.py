"""WBCBench 2026: 13 classes of white blood cells under noise, blur and illumination shifts.

Source: Kaggle competition ``wbc-bench-2026``; arXiv 2604.10797. Layout below the root::

    phase1/*.jpg  phase2/train/*.jpg  phase2/eval/*.jpg  phase2/test/*.jpg
    phase1_label.csv  phase2_train.csv  phase2_eval.csv      ID,labels,split
    phase2_test.csv                                          ID,labels (empty)

Patients are not named. The ids run patient by patient, so contiguous blocks of ids serve as groups
(``pseudo_patients``). The same order betrays labels, so nothing that predicts may look at it.

The root may be a link. In it, a link that leads a listed image elsewhere is refused.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from leukofold.cells import UNLABELLED, CellTable
from leukofold.competitions.base import Competition, Scan, file_sizes, need_folder
from leukofold.containment import need_contained, shown
from leukofold.errors import UserError, name_some
from leukofold.files import write_text
from leukofold.lineages import LINEAGES
from leukofold.lists import need_one_spelling, read_list

CLASS_NAMES = ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")

# List -> the split its rows belong to where it has no split column.
LISTS = {
    "phase1_label.csv": "phase1_train",
    "phase2_train.csv": "phase2_train",
    "phase2_eval.csv": "phase2_eval",
    "phase2_test.csv": "phase2_test",
}
FOLDERS = {
    "phase1_train": "phase1",
    "phase2_train": "phase2/train",
    "phase2_eval": "phase2/eval",
    "phase2_test": "phase2/test",
}
IMAGE_ID = re.compile(r"[0-9]{1,18}\.jpg")
LARGEST_GAP = 20  # ids of one patient lie closer than this; cutting phase 1 there gives its 74 patients

_COUNTS = {  # published, in the order of CLASS_NAMES
    "phase1_train": (74, 572, 111, 181, 2344, 98, 741, 108, 2, 2, 42, 3913, 100),
    "phase2_train": (420, 1699, 340, 798, 6886, 335, 2454, 405, 56, 11, 76, 11135, 282),
    "phase2_eval": (60, 412, 71, 169, 1571, 47, 466, 75, 32, 1, 34, 2306, 106),
}


class WBCBench(Competition):
    """The files, the classes and the submission of WBCBench 2026."""

    name = "wbcbench"
    title = "WBCBench 2026"
    class_names = CLASS_NAMES
    lineages = LINEAGES
    metric = "macro_f1"
    submission_suffix = ".csv"
    kaggle_download = ("competitions", "download", "-c", "wbc-bench-2026")
    by_hand = (
        "the competition's page is https://www.kaggle.com/competitions/wbc-bench-2026 (closed; accepted members "
        "still download there); the images are also released on Hugging Face as Xin-Tian/wbcbench2026 (CC BY-NC 4.0)"
    )
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]] = {
        **{split: dict(zip(CLASS_NAMES, counts, strict=True)) for split, counts in _COUNTS.items()},
        "phase2_test": {"unlabelled": 16477},
    }

    def scan(self, root: Path) -> Scan:
        """Reads the four lists and finds their images; see the base class."""
        need_folder(root, self)
        rows = pd.concat([_read_list(root / name, split) for name, split in LISTS.items()], ignore_index=True)
        rows = _drop_repeated(rows)
        sizes = {split: file_sizes(root / folder) for split, folder in FOLDERS.items()}
        files = [f"{FOLDERS[split]}/{name}" for split, name in zip(rows.split, rows.image_id, strict=True)]
        need_contained(root, root, rows.image_id.tolist(), files)
        rows["bytes"] = [sizes[split].get(name, -1) for split, name in zip(rows.split, rows.image_id, strict=True)]
        rows["path"] = [(root / file).as_posix() for file in files]
        absent = rows.bytes < 0
        found = rows[~absent]
        table = CellTable.from_columns(
            CLASS_NAMES,
            image_id=found.image_id.to_numpy(),
            path=found.path.to_numpy(),
            bytes=found.bytes.to_numpy(),
            label=found.label.to_numpy(),
            group=_groups(rows)[~absent.to_numpy()],
            source=np.full(len(found), self.name),
            is_external=np.zeros(len(found), bool),
            split=found.split.to_numpy(),
        )
        return Scan(table, rows.path[absent].tolist())

    def write_submission(self, path: Path, image_ids: Sequence[str], labels: np.ndarray) -> None:
        """Writes ``ID,labels`` with class abbreviations; see the base class."""
        lines = [f"{image_id},{CLASS_NAMES[label]}" for image_id, label in zip(image_ids, labels, strict=True)]
        write_text(path, "\n".join(["ID,labels", *lines]) + "\n")

    def check_submission(self, path: Path, root: Path) -> list[str]:
        """Compares columns, row count, ids, their order and labels with ``phase2_test.csv``; see the base class."""
        expected = _listed_ids(root / "phase2_test.csv")
        header, rows = _plain_csv(_plain_text(path, "utf-8"), path)
        if header != ["ID", "labels"]:
            return [f"the header is '{shown(','.join(header))}', it must be 'ID,labels'"]
        ids = [row["ID"] or "" for row in rows]
        faults = []
        if len(ids) != len(expected):
            faults.append(f"{len(ids)} rows, the test list has {len(expected)}")
        twice = sorted(name for name, times in Counter(ids).items() if times > 1)
        if twice:
            faults.append(f"ids more than once: {_some(twice)}")
        lacking = sorted(set(expected) - set(ids))
        if lacking:
            faults.append(f"ids of the test list not there: {_some(lacking)}")
        unknown = sorted(set(ids) - set(expected))
        if unknown:
            faults.append(f"ids that the test list does not have: {_some(unknown)}")
        if not faults and ids != expected:
            first = next(i for i, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b)
            faults.append(f"the order differs from the test list's, first in row {first + 1}: {shown(ids[first])}")
        labels = [row["labels"] or "" for row in rows]
        wrong = [f"{name}: '{label}'" for name, label in zip(ids, labels, strict=True) if label not in CLASS_NAMES]
        if wrong:
            faults.append(f"blank or unknown labels: {_some(wrong)}; known ones are {' '.join(CLASS_NAMES)}")
        if any(None in row for row in rows):
            faults.append("a row with more than two fields")
        return faults

    def upload_steps(self, path: Path, message: str) -> tuple[list[str], str]:
        """Uploads through the Kaggle client; see the base class."""
        arguments = ["competitions", "submit", "-c", "wbc-bench-2026", "-f", str(path), "-m", message]
        return arguments, "upload it at https://www.kaggle.com/competitions/wbc-bench-2026/submit"


def pseudo_patients(image_ids: Sequence[str], labels: np.ndarray, resets: bool) -> np.ndarray:
    """Recovers blocks of ids that belong to one patient each.

    The organisers number the images patient by patient and, within a patient of phase 2, class by
    class. Sorted by number, a block ends at a gap of more than ``LARGEST_GAP`` ids and, with
    ``resets``, where the class index falls. Two neighbours that the rule cannot tell apart share a
    block, which keeps cross-validation honest; it finds about 198 of phase 2's 222 patients.

    Args:
        image_ids: n names that start with a number, such as ``01447013.jpg``.
        labels: n class indices in alphabetical class order.
        resets: Whether a falling class index ends a block (phase 2).

    Returns:
        n block numbers, 0 upwards in the order of the ids.
    """
    numbers = np.array([int(Path(name).stem) for name in image_ids], dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    ends = np.diff(numbers[order]) > LARGEST_GAP
    if resets:
        ends |= np.diff(np.asarray(labels)[order]) < 0
    blocks = np.empty(len(numbers), dtype=np.int64)
    blocks[order] = np.concatenate([[0], np.cumsum(ends)]) if len(numbers) else []
    return blocks


def _groups(rows: pd.DataFrame) -> np.ndarray:
    """Names the patient of each row: the released hash where there is one, else the pseudo-patient; test: ""."""
    groups = np.full(len(rows), "", dtype=object)
    for split in (name for name in FOLDERS if name != "phase2_test"):
        mask = (rows.split == split).to_numpy()
        part = rows[mask]
        blocks = pseudo_patients(part.image_id.tolist(), part.label.to_numpy(), resets=split != "phase1_train")
        groups[mask] = [f"{split}-{block:03d}" for block in blocks]
    hashed = (rows.patient != "").to_numpy() & (rows.split != "phase2_test").to_numpy()
    groups[hashed] = rows.patient[hashed]
    return groups


def _read_list(path: Path, default_split: str) -> pd.DataFrame:
    """Reads one list into image_id, label, split and patient ("" where it is not told)."""
    if not path.is_file():
        raise UserError(f"{path}: the list is missing; see input/README.md for the files of WBCBench")
    raw = read_list(path, ("ID", "labels"), ("split", "patient_hash"))
    splits = raw["split"] if "split" in raw.columns else pd.Series(default_split, index=raw.index)
    test = default_split == "phase2_test"
    mixed = splits[(splits == "phase2_test") != test]
    strange = sorted(set(splits) - set(FOLDERS))
    if not strange and len(mixed):
        raise UserError(f"{path}: split '{mixed.iloc[0]}' does not belong into this list; download the file again")
    if strange:
        raise UserError(f"{path}: unknown split '{shown(strange[0])}'; known ones are {', '.join(FOLDERS)}")
    bad_ids = [name for name in raw["ID"] if not IMAGE_ID.fullmatch(name)]
    if bad_ids:
        raise UserError(
            f"{path}: column 'ID' holds '{shown(bad_ids[0])}', expected digits and .jpg; download the file again"
        )
    if "patient_hash" in raw.columns:
        need_one_spelling(path, "patients", raw["patient_hash"])
    return pd.DataFrame(
        {
            "image_id": raw["ID"],
            "label": UNLABELLED if default_split == "phase2_test" else _label_indices(path, raw),
            "split": splits,
            "patient": raw["patient_hash"] if "patient_hash" in raw.columns else "",
        }
    )


def _label_indices(path: Path, raw: pd.DataFrame) -> list[int]:
    """Turns abbreviations into indices, refusing unknown ones."""
    index = {name: i for i, name in enumerate(CLASS_NAMES)}
    unknown = raw[~raw["labels"].isin(CLASS_NAMES)]
    if len(unknown):
        first = unknown.iloc[0]
        raise UserError(
            f"{path}: unknown label '{shown(first['labels'])}' at {first['ID']} ({len(unknown)} in all); "
            f"known ones are {' '.join(CLASS_NAMES)}"
        )
    return [index[name] for name in raw["labels"]]


def _drop_repeated(rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps one of rows that two lists repeat word for word (phase2_train.csv may repeat phase 1's)."""
    return rows.drop_duplicates(["image_id", "label", "split"]).reset_index(drop=True)


def _listed_ids(path: Path) -> list[str]:
    """Reads the ids of the test list, in every shape that ``lists`` takes."""
    text = _plain_text(path, "utf-8-sig")
    for separator in (",", ";", "\t"):
        header, rows = _plain_csv(text, path, separator)
        names = [name.strip() for name in header]
        column = "ID" if "ID" in names else next((name for name in names if name.casefold() == "id"), None)
        if column is not None:
            ids = [(row[header[names.index(column)]] or "").strip() for row in rows]
            return [name for name in ids if name]
    raise UserError(f"{path}: no column 'ID'; download the file again")


def _some(values: Sequence[str]) -> str:
    """Names the first few of many values from outside."""
    return name_some([shown(value) for value in values])


def _plain_text(path: Path, encoding: str) -> str:
    """Reads a text file."""
    try:
        text = path.read_bytes().decode(encoding).lstrip("\r\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; write it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path}: not a text file; write it as UTF-8")
    return text


def _plain_csv(text: str, path: Path, separator: str = ",") -> tuple[list[str], list[dict[str, str | None]]]:
    """Reads a CSV with the standard library: header and rows; a field that lacks is None."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV: {error}; look for a quote that is not closed") from None
    return list(reader.fieldnames or []), rows


COMPETITION = WBCBench()
