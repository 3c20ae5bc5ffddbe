"""A rendered WBCBench 2026 folder: which images it holds, how they are named, and its four lists.

The layout, the odd headers and the order of the ids follow the competition's real files: ids run patient by
patient; in phase 1 patients are separated by gaps of more than 20, in phase 2 ids are consecutive and each
patient's images are sorted by class.
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering.cell import draw_image
from leukofold.rendering.degradation import degrade
from leukofold.rendering.morphology import CLASS_NAMES
from leukofold.rendering.plan import (
    IMAGE_STREAM,
    PATIENT_STREAM,
    PLAN_STREAM,
    PlannedImage,
    apportion,
    plant_corruption,
    plant_duplicates,
    plant_wrong_labels,
    share_out,
)
from leukofold.rendering.spec import RenderSpec
from leukofold.rendering.stain import Appearance, sample_appearance

SUFFIX = ".jpg"

FOLDERS = {
    "phase1_train": "phase1",
    "phase2_train": "phase2/train",
    "phase2_eval": "phase2/eval",
    "phase2_test": "phase2/test",
}

LISTS = {
    "phase1_train": ("phase1_label.csv", "ID,labels,split,,,"),
    "phase2_train": ("phase2_train.csv", "ID,labels,split"),
    "phase2_eval": ("phase2_eval.csv", "ID,labels,split"),
    "phase2_test": ("phase2_test.csv", "ID,labels"),
}

PATIENTS = {"phase1_train": 74, "phase2_train": 222, "phase2_eval": 49, "phase2_test": 148}
"""Patients of the real splits."""

COUNTS = {
    "BA": (74, 420, 60), "BL": (572, 1699, 412), "BNE": (111, 340, 71), "EO": (181, 798, 169),
    "LY": (2344, 6886, 1571), "MMY": (98, 335, 47), "MO": (741, 2454, 466), "MY": (108, 405, 75),
    "PC": (2, 56, 32), "PLY": (2, 11, 1), "PMY": (42, 76, 34), "SNE": (3913, 11135, 2306), "VLY": (100, 282, 106),
}  # fmt: skip
"""Real images per class in phase1_train, phase2_train and phase2_eval."""

SPREAD = {"SNE": 3.0, "LY": 3.0, "MO": 2.0, "EO": 1.0, "BA": 0.8, "BNE": 0.6, "MY": 0.4, "MMY": 0.4, "PMY": 0.4,
          "VLY": 0.4, "BL": 0.25, "PC": 0.15, "PLY": 0.15}  # fmt: skip
"""How evenly patients share a class (see ``plan.share_out``)."""

SEVERITIES = {
    "phase1_train": (1.0, 0.0, 0.0, 0.0, 0.0),
    "phase2_train": (0.40, 0.20, 0.18, 0.12, 0.10),
    "phase2_eval": (0.25, 0.25, 0.20, 0.15, 0.15),
    "phase2_test": (0.20, 0.20, 0.20, 0.20, 0.20),
}
"""Share of the severities 0 to 4 in each split (the real mixes are unpublished)."""

CONFUSED_WITH = {
    "BA": ("EO", "PMY"), "BL": ("PMY", "LY", "PLY"), "BNE": ("SNE", "MMY"), "EO": ("SNE", "BA"), "LY": ("VLY", "BL"),
    "MMY": ("MY", "BNE"), "MO": ("VLY", "BL"), "MY": ("MMY", "PMY"), "PC": ("VLY", "LY"), "PLY": ("LY", "BL"),
    "PMY": ("MY", "BL"), "SNE": ("BNE", "EO"), "VLY": ("LY", "MO"),
}  # fmt: skip
"""What an expert would mistake a class for."""


def _class_counts(spec: RenderSpec) -> dict[str, dict[str, int]]:
    """Images per split and class, in the published proportions; every class is in the labelled splits."""
    if spec.images < 60:
        raise UserError(f"render.images = {spec.images}: WBCBench needs at least 60 for its 13 classes; raise it")
    real = np.array(list(COUNTS.values()))
    totals = apportion(spec.images, real.sum(axis=1).tolist(), least=1)
    splits = list(FOLDERS)[:3]
    counts: dict[str, dict[str, int]] = {split: {} for split in splits}
    given = np.zeros(3)
    wanted = real.sum(axis=0) / real.sum() * spec.images
    for label, total in sorted(zip(COUNTS, totals, strict=True), key=lambda entry: entry[1]):
        quota = np.array(COUNTS[label]) / sum(COUNTS[label]) * total
        shares = np.floor(quota).astype(int)
        while shares.sum() < total:  # what remains goes where the class and the split most lack it
            lack = (quota - shares) + 0.5 * (wanted - given - shares) / wanted
            shares[np.argmax(lack)] += 1
        given += shares
        for split, share in zip(splits, shares.tolist(), strict=True):
            if share:
                counts[split][label] = share
    test = apportion(spec.test_images, real.sum(axis=1).tolist())
    counts["phase2_test"] = {label: count for label, count in zip(COUNTS, test, strict=True) if count}
    return counts


def _patients(spec: RenderSpec, counts: dict[str, dict[str, int]]) -> dict[str, list[int]]:
    """Numbers of the patients of each split, all distinct."""
    splits = list(FOLDERS)
    if spec.patients < 3:
        raise UserError(f"render.patients = {spec.patients}: WBCBench needs at least 3, one per split; raise it")
    numbers = apportion(spec.patients, [PATIENTS[split] for split in splits[:3]], least=1)
    numbers.append(max(1, round(spec.patients * PATIENTS["phase2_test"] / 345)))
    first = 0
    patients = {}
    for split, number in zip(splits, numbers, strict=True):
        if split == "phase2_test":
            number = min(number, spec.test_images)
        images = sum(counts[split].values())
        if images < number:
            raise UserError(
                f"render.patients = {spec.patients}: {split} gets {number} patients but only {images} images; "
                "lower patients or raise images"
            )
        patients[split] = list(range(first, first + number))
        first += number
    return patients


def plan_images(spec: RenderSpec) -> list[PlannedImage]:
    """Plans every image of the folder.

    Args:
        spec: size, seed and plants.

    Returns:
        The images in the order of the lists.

    Raises:
        UserError: too few images or patients for the layout, or too many plants.
    """
    rng = np.random.default_rng([spec.seed, PLAN_STREAM])
    counts = _class_counts(spec)
    images: list[PlannedImage] = []
    for split, patients in _patients(spec, counts).items():
        labels = {label: counts[split][label] for label in CLASS_NAMES if label in counts[split]}
        for patient, share in zip(patients, share_out(labels, patients, SPREAD, rng), strict=True):
            for label in (name for name in CLASS_NAMES for _ in range(share.get(name, 0))):
                shape = (368, 370) if rng.random() < 0.02 else (368, 368)
                severity = int(rng.choice(5, p=SEVERITIES[split]))
                given = "" if split == "phase2_test" else label
                images.append(PlannedImage("", "", split, f"P{patient:04d}", label, given, patient, shape, severity))
    labelled = [image for image in images if image.given_label]

    def mistake(image: PlannedImage) -> None:
        choices = CONFUSED_WITH[image.true_label]
        image.given_label = choices[int(rng.integers(len(choices)))]

    plant_wrong_labels(labelled, mistake, spec)
    images = _numbered(images, rng)
    plant_duplicates(images, lambda image: image.split, spec)
    plant_corruption([image for image in images if image.given_label], spec)
    return images


def _numbered(images: list[PlannedImage], rng: np.random.Generator) -> list[PlannedImage]:
    """Gives the images their ids: patient by patient, in phase 2 sorted by class within the patient."""
    order = list(CLASS_NAMES)
    number = int(rng.integers(1_000_000, 2_000_000))
    numbered: list[PlannedImage] = []
    for patient in sorted({image.patient_index for image in images}):
        own = [image for image in images if image.patient_index == patient]
        phase1 = own[0].split == "phase1_train"
        if phase1:
            own = [own[i] for i in rng.permutation(len(own))]
        else:
            # the lists' own labels set the order, so that a wrong label is not betrayed by it
            own.sort(key=lambda image: order.index(image.given_label or image.true_label))
        number += int(rng.integers(21, 400)) if phase1 else 0
        for position, image in enumerate(own):
            number += int(rng.integers(1, 20)) if phase1 and position else 1
            image.image_id = f"{number:08d}{SUFFIX}"
            image.path = f"{FOLDERS[image.split]}/{image.image_id}"
        numbered += own
    return numbered


def write_lists(root: Path, images: list[PlannedImage]) -> None:
    """Writes the four CSV files with the real headers, phase 1's three empty columns included."""
    for split, (name, header) in LISTS.items():
        rows = [header]
        for image in images:
            if image.split == split:
                fields = [image.image_id, image.given_label, split][: 2 if split == "phase2_test" else 3]
                rows.append(",".join(fields) + "," * header.count(",,,") * 3)
        (root / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


@lru_cache(maxsize=512)
def _appearance(seed: int, patient: int) -> Appearance:
    return sample_appearance(np.random.default_rng([seed, PATIENT_STREAM, patient]))


def draw(image: PlannedImage, index: int, seed: int) -> bytes:
    """Draws one planned image.

    Args:
        image: what to draw.
        index: its number in the plan; with the seed it determines the pixels.
        seed: the spec's seed.

    Returns:
        The JPEG file's bytes.
    """
    rng = np.random.default_rng([seed, IMAGE_STREAM, index])
    appearance = _appearance(seed, image.patient_index)
    pixels = draw_image(image.true_label, appearance, rng, image.shape)
    return encode(degrade(pixels, image.severity, rng), appearance.quality)


def encode(pixels: NDArray[np.uint8], quality: int = 85) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as JPEG."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(SUFFIX, bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
