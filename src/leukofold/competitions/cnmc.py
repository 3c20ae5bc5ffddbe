"""C-NMC 2019: leukaemic (``all``) against normal (``hem``) B-lymphoid cells, segmented on black.

Source: ISBI 2019 challenge (CodaLab 20395); the images are at TCIA and on Kaggle
(``andrewmvd/leukemia-classification``). Packagings nest the folders differently, so the marker
folders are searched for::

    .../fold_{0,1,2}/{all,hem}/UID_<subject>_<image>_<cell>_<class>.bmp
    .../C-NMC_test_prelim_phase_data/N.bmp   .../C-NMC_test_prelim_phase_data_labels.csv
    .../C-NMC_test_final_phase_data/N.bmp

Groups are the subjects. Some images stand byte for byte under two subjects of different official
folds; such subjects are merged into one group, so that no image is trained on and scored.

The root may be a link, and so may the images that no list names. A preliminary image that a link leads out of the root
is refused.
"""

import hashlib
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from leukofold.archives import DAMAGED
from leukofold.cells import UNLABELLED, CellTable
from leukofold.competitions.base import Competition, Scan, file_sizes, need_folder
from leukofold.containment import need_contained, shown
from leukofold.errors import UserError, name_some
from leukofold.files import replacing
from leukofold.lists import read_list

CLASS_NAMES = ("hem", "all")  # index 1, all, is the positive class
SIDE = 450  # pixels; some final-phase images are 600 and are cropped to this
PREDICTIONS = "isbi_valid.predict"  # the file that the evaluation server looks for in the zip

MOST_BYTES = 1_000_000  # of a submission, unpacked: 2 for each image would do

PRELIM, FINAL = "C-NMC_test_prelim_phase_data", "C-NMC_test_final_phase_data"
PRELIM_LABELS = f"{PRELIM}_labels.csv"
FILE_NAME = re.compile(r"UID_(H?\d+)_(\d+)_(\d+)_(all|hem)\.bmp", re.IGNORECASE | re.ASCII)


class CNMC(Competition):
    """The files, the classes and the submission of C-NMC 2019."""

    name = "cnmc"
    title = "C-NMC 2019"
    class_names = CLASS_NAMES
    metric = "weighted_f1"
    submission_suffix = ".zip"
    kaggle_download = ("datasets", "download", "-d", "andrewmvd/leukemia-classification")
    by_hand = (
        "download https://www.kaggle.com/datasets/andrewmvd/leukemia-classification, or the collection "
        "C-NMC 2019 from The Cancer Imaging Archive, and unpack it there"
    )
    published_counts: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "fold_0": {"hem": 1130, "all": 2397},
        "fold_1": {"hem": 1163, "all": 2418},
        "fold_2": {"hem": 1096, "all": 2457},
        "prelim": {"hem": 648, "all": 1219},
        "final": {"unlabelled": 2586},
    }

    def scan(self, root: Path) -> Scan:
        """Finds the marker folders and reads their names; see the base class."""
        need_folder(root, self)
        folders = _marker_folders(root)
        rows, missing = _training_rows(root, folders["train"]), []
        if folders["prelim"]:
            prelim, lost = _prelim_rows(root, folders["prelim"])
            rows += prelim
            missing += lost
        labelled = len(rows)
        if folders["final"]:
            final, lost = _final_rows(folders["final"])
            rows += final
            missing += lost
        names, paths, sizes, labels, subjects, splits = zip(*rows, strict=True)
        groups = _merged_subjects(paths[:labelled], sizes[:labelled], subjects[:labelled])
        table = CellTable.from_columns(
            CLASS_NAMES,
            image_id=names,
            path=[path.as_posix() for path in paths],
            bytes=sizes,
            label=labels,
            group=[*groups, *subjects[labelled:]],
            source=[self.name] * len(rows),
            is_external=[False] * len(rows),
            split=splits,
        )
        return Scan(table, missing)

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Cuts the centre 450 x 450 out of larger images (some of the final phase are 600 x 600)."""
        top, left = (max(0, (side - SIDE) // 2) for side in image.shape[:2])
        return image[top : top + SIDE, left : left + SIDE]

    def write_submission(self, path: Path, image_ids: Sequence[str], labels: np.ndarray) -> None:
        """Writes the zip of one 0 or 1 per line, in the order of the file numbers; see the base class."""
        by_number = sorted(zip(image_ids, labels, strict=True), key=lambda row: _number(row[0]))
        lines = "".join(f"{label}\n" for _, label in by_number)
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            entry = zipfile.ZipInfo(PREDICTIONS)  # a fixed date: the same predictions give the same bytes
            archive.writestr(entry, lines, zipfile.ZIP_DEFLATED)

    def check_submission(self, path: Path, root: Path) -> list[str]:
        """Compares the zip's one file and its lines with the final phase's files; see the base class."""
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        numbers = {_number(name) for folder in _marker_folders(root)["final"] for name in _images(folder)}
        if not numbers:
            raise UserError(f"{root}: no folder {FINAL} with images to check the submission against")
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.namelist()
                if entries != [PREDICTIONS]:
                    names = name_some([shown(name) for name in entries])
                    return [f"the zip holds {names or 'nothing'}; it must hold one file, {PREDICTIONS}"]
                size = archive.getinfo(PREDICTIONS).file_size
                if size > MOST_BYTES:
                    return [f"{PREDICTIONS} unpacks to {size:,} bytes; two for each image would do"]
                text = archive.read(PREDICTIONS).decode("ascii")
        except (*DAMAGED, OSError):
            return ["not a zip archive of a text file"]
        lines = text.removesuffix("\n").split("\n")  # splitlines would also take form feeds and CR for line ends
        faults = []
        if len(lines) != max(numbers):
            faults.append(f"{len(lines)} lines, the final phase has {max(numbers)} images")
        wrong = [f"line {i}: {line!r}" for i, line in enumerate(lines, 1) if line not in ("0", "1")]
        if wrong:
            faults.append(f"lines other than 0 or 1: {name_some(wrong)}")
        return faults

    def upload_steps(self, path: Path, message: str) -> tuple[list[str], str]:
        """CodaLab has no client; see the base class."""
        return [], (
            "open https://competitions.codalab.org/competitions/20395, sign in, choose Participate, then "
            f"Submit / View Results and the final phase, upload {path} and note '{message}'"
        )


Row = tuple[str, Path, int, int, str, str]  # image_id, path, bytes, label, subject, split


def _marker_folders(root: Path) -> dict[str, list[Path]]:
    """Finds the folders that hold images, however deep they lie: ``train``, ``prelim`` and ``final``."""
    found: dict[str, list[Path]] = {"train": [], "prelim": [], "final": []}
    for name, folders, files in os.walk(root):
        folders.sort()
        folder = Path(name)
        if not any(file.lower().endswith(".bmp") for file in files):
            continue
        if folder.name in CLASS_NAMES and re.fullmatch(r"fold_\d", folder.parent.name):
            found["train"].append(folder)
        elif folder.name in (PRELIM, FINAL):
            found["prelim" if folder.name == PRELIM else "final"].append(folder)
    return found


def _images(folder: Path) -> dict[str, int]:
    """Returns name -> bytes of a folder's BMP files, sorted by name."""
    return {name: size for name, size in sorted(file_sizes(folder).items()) if name.lower().endswith(".bmp")}


def _number(name: str) -> int:
    """Returns N of ``N.bmp``."""
    stem = name.rsplit(".", 1)[0]
    if not re.fullmatch("[0-9]{1,6}", stem):
        raise UserError(f"{shown(name)}: the final and preliminary images are called N.bmp; remove this file")
    return int(stem)


def _parse(name: str, where: Path) -> tuple[str, int]:
    """Returns the subject (in upper case: one is spelt h3) and the label of a training image's name."""
    match = FILE_NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{where}: '{shown(name)}' is not called UID_<subject>_<image>_<cell>_<all|hem>.bmp")
    return match[1].upper(), CLASS_NAMES.index(match[4].lower())


def _training_rows(root: Path, folders: list[Path]) -> list[Row]:
    """Lists the training images from their names."""
    rows: list[Row] = []
    for folder in folders:
        for name, size in _images(folder).items():
            subject, label = _parse(name, folder)
            if CLASS_NAMES[label] != folder.name:
                raise UserError(f"{folder / name}: the name says {CLASS_NAMES[label]}, the folder {folder.name}")
            rows.append((name, folder / name, size, label, subject, folder.parent.name))
    if not rows:
        raise UserError(f"{root}: no folder fold_<0-2>/<all|hem> with .bmp images; see input/README.md")
    return rows


def _prelim_rows(root: Path, folders: list[Path]) -> tuple[list[Row], list[str]]:
    """Lists the preliminary phase's images with the labels of its CSV."""
    lists = sorted(root.rglob(PRELIM_LABELS))
    if not lists:
        raise UserError(f"{root}: {PRELIM} is there but not {PRELIM_LABELS}; see input/README.md")
    raw = read_list(lists[0], ("Patient_ID", "new_names", "labels"))
    twice = raw.new_names[raw.new_names.duplicated()].tolist()
    if raw.empty or twice:
        fault = f"{shown(twice[0])} stands twice; keep one row of it" if twice else "lists no image; download it again"
        raise UserError(f"{lists[0]}: {fault}")
    files = {name: (folder / name, size) for folder in folders for name, size in _images(folder).items()}
    places = [files[name][0].relative_to(root).as_posix() if name in files else name for name in raw.new_names]
    need_contained(lists[0], root, raw.Patient_ID.tolist(), places)
    rows: list[Row] = []
    missing = []
    for original, name, given in zip(raw.Patient_ID, raw.new_names, raw.labels, strict=True):
        subject, label = _parse(original, lists[0])
        if given not in ("0", "1"):
            raise UserError(f"{lists[0]}: unknown label '{shown(given)}' at {shown(name)}; 1 is all, 0 is hem")
        if int(given) != label:
            raise UserError(f"{lists[0]}: {shown(name)} is labelled {given}, but its original name is {original}")
        if name in files:
            path, size = files[name]
            rows.append((original, path, size, label, subject, "prelim"))
        else:
            missing.append((folders[0] / name).as_posix())
    return rows, missing


def _final_rows(folders: list[Path]) -> tuple[list[Row], list[str]]:
    """Lists the final phase's images in the order of their numbers; gaps count as missing."""
    files: dict[int, tuple[Path, int]] = {}
    for path, size in ((folder / name, size) for folder in folders for name, size in _images(folder).items()):
        if _number(path.name) in files:
            raise UserError(f"{path} and {files[_number(path.name)][0]} have the same number; remove one")
        files[_number(path.name)] = (path, size)
    rows: list[Row] = [(path.name, path, size, UNLABELLED, "", "final") for _, (path, size) in sorted(files.items())]
    missing = [(folders[0] / f"{number}.bmp").as_posix() for number in range(1, max(files)) if number not in files]
    return rows, missing


def _merged_subjects(paths: Sequence[Path], sizes: Sequence[int], subjects: Sequence[str]) -> list[str]:
    """Names each image's group: its subject, together with the subjects that share an image with it."""
    group = {subject: {subject} for subject in subjects}
    for same in _identical_files(paths, sizes):
        union = set().union(*(group[subjects[i]] for i in same))
        for subject in union:
            group[subject] = union
    names = {subject: "+".join(sorted(union)) for subject, union in group.items()}
    return [names[subject] for subject in subjects]


def _identical_files(paths: Sequence[Path], sizes: Sequence[int]) -> Iterable[list[int]]:
    """Finds sets of byte-identical files.

    The images are uncompressed and of one size, so 16 KB from the middle, where the cell is, tell
    nearly all apart; only what agrees there is read whole.
    """
    candidates: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        for i, middle in enumerate(pool.map(_middle, paths, sizes)):
            candidates[sizes[i], middle].append(i)
    for same_middle in candidates.values():
        if len(same_middle) == 1:
            continue
        whole: dict[bytes, list[int]] = defaultdict(list)
        for i in same_middle:
            whole[hashlib.sha256(paths[i].read_bytes()).digest()].append(i)
        yield from (same for same in whole.values() if len(same) > 1)


def _middle(path: Path, size: int, length: int = 16384) -> bytes:
    """Digests the middle of a file."""
    with path.open("rb") as file:
        file.seek(max(0, (size - length) // 2))
        return hashlib.sha256(file.read(length)).digest()


COMPETITION = CNMC()
