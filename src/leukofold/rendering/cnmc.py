"""A rendered C-NMC 2019 folder, in the layout of the Kaggle packaging.

As in the real data, subjects (not images) are divided among the folds, the preliminary and the final phase, one
subject is spelt in lower case, some final-phase images are larger, and exact duplicates lie under two subjects.
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering.lymphoid import LARGE_SIDE, SIDE, SubjectAppearance, draw_segmented_cell, sample_subject
from leukofold.rendering.plan import (
    IMAGE_STREAM,
    PATIENT_STREAM,
    PLAN_STREAM,
    PlannedImage,
    plant_corruption,
    plant_duplicates,
    plant_wrong_labels,
    share_out,
)
from leukofold.rendering.spec import RenderSpec

SUFFIX = ".bmp"

TRAINING = "C-NMC_Leukemia/training_data"
PRELIM = "C-NMC_Leukemia/validation_data/C-NMC_test_prelim_phase_data"
PRELIM_LABELS = f"{PRELIM}_labels.csv"
FINAL = "C-NMC_Leukemia/testing_data/C-NMC_test_final_phase_data"

FOLDS = ("fold_0", "fold_1", "fold_2")

PRELIM_SHARE = 1867 / 12528
"""Share of the labelled images that belong to the preliminary phase."""

ALL_SHARE = {"train": 7272 / 10661, "prelim": 1219 / 1867, "final": 0.66}
"""Share of leukaemic cells (the final phase's is unpublished)."""

SUBJECTS = {"train": (47, 26), "prelim": (13, 15), "final": (9, 8)}
"""Real subjects with and without leukaemia."""

LOWER_CASE = "H3"
"""The subject that some file names spell in lower case."""


def _subject_counts(spec: RenderSpec) -> dict[str, tuple[int, int]]:
    """Leukaemic and normal subjects of the training set, the preliminary and the final phase."""
    if spec.patients < 6:
        raise UserError(
            f"render.patients = {spec.patients}: C-NMC needs at least 6, one of each class in each of 3 folds; raise it"
        )
    normal = max(3, round(spec.patients * 26 / 73))
    counts = {"train": (spec.patients - normal, normal)}
    for phase in ("prelim", "final"):
        leukaemic, healthy = (max(1, round(spec.patients * number / 73)) for number in SUBJECTS[phase])
        counts[phase] = (leukaemic, healthy)
    return counts


def _image_counts(spec: RenderSpec, subjects: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Leukaemic and normal images of each phase."""
    prelim = round(spec.images * PRELIM_SHARE)
    totals = {"train": spec.images - prelim, "prelim": prelim, "final": spec.test_images}
    counts = {}
    for phase, total in totals.items():
        leukaemic = round(total * ALL_SHARE[phase])
        counts[phase] = (leukaemic, total - leukaemic)
        if phase == "final":
            subjects[phase] = (min(subjects[phase][0], leukaemic), min(subjects[phase][1], total - leukaemic))
        elif any(images < number for images, number in zip(counts[phase], subjects[phase], strict=True)):
            raise UserError(
                f"render.images = {spec.images}: too few for the {sum(subjects[phase])} subjects of C-NMC's {phase} "
                f"set ({total} images); raise images or lower patients"
            )
    return counts


def _subject_names(subjects: dict[str, tuple[int, int]], rng: np.random.Generator) -> dict[str, list[list[str]]]:
    """Names of the leukaemic (``17``) and normal (``H17``) subjects of each phase; no two are alike."""
    leukaemic = iter((1 + rng.permutation(max(99, sum(pair[0] for pair in subjects.values())))).tolist())
    total = sum(pair[1] for pair in subjects.values())
    others = [number for number in (1 + rng.permutation(max(99, total + 1))).tolist() if f"H{number}" != LOWER_CASE]
    normal = iter([int(LOWER_CASE[1:]), *others])  # the training set comes first and so holds that subject
    return {
        phase: [[str(next(leukaemic)) for _ in range(sick)], [f"H{next(normal)}" for _ in range(healthy)]]
        for phase, (sick, healthy) in subjects.items()
    }


def _folds_of(sizes: list[int]) -> list[int]:
    """Divides subjects among the three folds so that each fold has subjects and the numbers of images are close."""
    loads, members = [0, 0, 0], [0, 0, 0]
    folds = [0] * len(sizes)
    for subject in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fold = min(range(3), key=lambda k: (members[k] > 0 and 0 in members, loads[k], k))
        folds[subject] = fold
        loads[fold] += sizes[subject]
        members[fold] += 1
    return folds


def plan_images(spec: RenderSpec) -> list[PlannedImage]:
    """Plans every image of the folder.

    Args:
        spec: size, seed and plants.

    Returns:
        Training images by fold, class and name, then the preliminary and the final phase by number.

    Raises:
        UserError: too few images or subjects for the layout, or too many plants.
    """
    rng = np.random.default_rng([spec.seed, PLAN_STREAM])
    subjects = _subject_counts(spec)
    counts = _image_counts(spec, subjects)
    names = _subject_names(subjects, rng)
    images: list[PlannedImage] = []
    index = 0
    for phase, pair in names.items():
        for label, members, count in zip(("all", "hem"), pair, counts[phase], strict=True):
            if not members:
                continue
            numbers = [share[label] for share in share_out({label: count}, range(len(members)), {label: 3.0}, rng)]
            folds = [FOLDS[k] for k in _folds_of(numbers)] if phase == "train" else [phase] * len(members)
            for subject, number, split in zip(members, numbers, folds, strict=True):
                images += _cells_of(subject, number, label, split, index, rng)
                index += 1
    images = _placed(images, rng)
    labelled = [image for image in images if image.split != "final"]
    training = [image for image in images if image.split in FOLDS]

    def mistake(image: PlannedImage) -> None:
        # labels were given by subject, so a wrong one is a cell of the other class among a subject's cells
        image.true_label = {"all": "hem", "hem": "all"}[image.given_label]

    plant_wrong_labels(labelled, mistake, spec)
    # as in the real data, where two subjects share 71 images, few pairs of subjects hold all duplicates
    plant_duplicates(training, lambda image: image.split, spec, order=lambda image: image.patient)
    plant_corruption(labelled, spec)
    return images


def _cells_of(
    subject: str, number: int, label: str, split: str, index: int, rng: np.random.Generator
) -> list[PlannedImage]:
    """Cells of one subject, named after the field of view (image) and the cell in it."""
    cells = []
    picture, cell = 1, 0
    for position in range(number):
        if cell and rng.random() < 0.45:
            picture, cell = picture + 1, 0
        cell += 1
        spelt = subject.lower() if subject == LOWER_CASE and position % 3 == 1 else subject
        name = f"UID_{spelt}_{picture}_{cell}_{label}{SUFFIX}"
        given = "" if split == "final" else label
        side = LARGE_SIDE if split == "final" and rng.random() < 0.04 else SIDE
        cells.append(PlannedImage("", name, split, subject, label, given, index, (side, side)))
    return cells


def _placed(images: list[PlannedImage], rng: np.random.Generator) -> list[PlannedImage]:
    """Gives the images their paths; the two test phases number them in random order."""
    placed: list[PlannedImage] = []
    for fold in FOLDS:
        own = sorted((image for image in images if image.split == fold), key=lambda i: (i.given_label, i.patient_index))
        for image in own:
            image.path = f"{TRAINING}/{fold}/{image.given_label}/{image.image_id}"
        placed += own
    for split, folder in (("prelim", PRELIM), ("final", FINAL)):
        own = [image for image in images if image.split == split]
        for number, i in enumerate(rng.permutation(len(own)), start=1):
            own[i].path = f"{folder}/{number}{SUFFIX}"
            if split == "final":
                own[i].image_id = f"{number}{SUFFIX}"
            placed.append(own[i])
    return placed


def write_lists(root: Path, images: list[PlannedImage]) -> None:
    """Writes the preliminary phase's CSV (1 = all, 0 = hem)."""
    rows = ["Patient_ID,new_names,labels"]
    for image in images:
        if image.split == "prelim":
            rows.append(f"{image.image_id},{Path(image.path).name},{int(image.given_label == 'all')}")
    (root / PRELIM_LABELS).write_text("\n".join(rows) + "\n", encoding="utf-8")


@lru_cache(maxsize=512)
def _appearance(seed: int, subject: int) -> SubjectAppearance:
    return sample_subject(np.random.default_rng([seed, PATIENT_STREAM, subject]))


def draw(image: PlannedImage, index: int, seed: int) -> bytes:
    """Draws one planned image; see ``wbcbench.draw``. Returns the BMP file's bytes."""
    rng = np.random.default_rng([seed, IMAGE_STREAM, index])
    subject = _appearance(seed, image.patient_index)
    return encode(draw_segmented_cell(image.true_label, subject, rng, image.shape[0]))


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as 24-bit BMP."""
    return bytes(cv2.imencode(SUFFIX, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])
