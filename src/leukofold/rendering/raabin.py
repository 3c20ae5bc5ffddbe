"""Rendered RaabinWBC and LISC: five classes from two laboratories, the first of them with two microscopes.

The layout is the published one (Tsutsui, Su and Wen 2023, arXiv 2303.01777): ``RaabinWBC/{Train,TestA,TestB}`` and
``LISCCropped``, each with a folder per class. Train and TestA are a random split of the same smears; TestB comes from
another microscope and camera and holds lymphocytes and neutrophils only; LISC is another laboratory's, cut out closely
around the cells.

Two things differ from the real data. In Train and TestA a class has the mean of its published share and of a fifth, so
that each has at least 11 % and can be learnt from a few hundred images. And all classes lie on the same smears, while
most of the real basophils and eosinophils come from a few smears of their own.

Light, stain, optics and magnification set the laboratories apart. They were settled by looking at cells and by trying
small networks, until batch normalisation lost more than group normalisation did, as published for real images. Scores
on these drawings show that code works; they are no evidence for either.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering import wbcbench
from leukofold.rendering.cell import draw_image
from leukofold.rendering.morphology import sample_morphology
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
from leukofold.rendering.stain import STAINS, Appearance, sample_appearance, stain_vectors

FOLDERS = {"Train": "RaabinWBC/Train", "TestA": "RaabinWBC/TestA", "TestB": "RaabinWBC/TestB", "LISC": "LISCCropped"}

SHARES = {"Train": 0.55, "TestA": 0.18, "TestB": 0.09, "LISC": 0.18}
"""Shares of the images; TestB, which says little with its two classes, has fewer than in reality."""

COUNTS = {
    "Basophil": (212, 89, 0, 55), "Eosinophil": (744, 322, 0, 39), "Lymphocyte": (2427, 1034, 148, 59),
    "Monocyte": (561, 234, 0, 48), "Neutrophil": (6231, 2660, 1971, 56),
}  # fmt: skip
"""Real images per class in Train, TestA, TestB and LISC."""

DRAWN_AS = {
    "Basophil": ("BA",), "Eosinophil": ("EO",), "Lymphocyte": ("LY",), "Monocyte": ("MO",),
    "Neutrophil": ("SNE",) * 9 + ("BNE",),
}  # fmt: skip
"""WBCBench's classes that stand for a class; a neutrophil in ten is a band."""

SPREAD = {"Basophil": 0.8, "Eosinophil": 1.0, "Lymphocyte": 3.0, "Monocyte": 2.0, "Neutrophil": 3.0}
"""How evenly smears share a class (see ``plan.share_out``)."""

CONFUSED_WITH = {
    "Basophil": ("Eosinophil", "Lymphocyte"), "Eosinophil": ("Neutrophil", "Basophil"),
    "Lymphocyte": ("Monocyte", "Neutrophil"), "Monocyte": ("Lymphocyte", "Neutrophil"),
    "Neutrophil": ("Eosinophil", "Lymphocyte"),
}  # fmt: skip
"""What a wrong label says, where the part has that class."""

FEWEST = 30  # images, so that every part has all its classes


@dataclass(frozen=True)
class Laboratory:
    """How a laboratory's images look; pairs are the bounds between which its smears lie.

    Attributes:
        light: mean colour of the background in RGB, 0 to 255.
        light_spread: its standard deviation from smear to smear.
        tint: factor on what every stain absorbs of red, green and blue.
        haemoglobin: what red cells absorb of red, green and blue.
        variation: relative standard deviations of the stains' hue and of their strength (``stain_vectors``).
        scale: magnification, as in ``Appearance``.
        blur: as in ``Appearance``.
        sharpening: as in ``Appearance``.
        noise: as in ``Appearance``.
        quality: JPEG quality.
        red_cells: as in ``Appearance``.
    """

    light: tuple[float, float, float]
    light_spread: tuple[float, float, float]
    tint: tuple[float, float, float]
    haemoglobin: tuple[float, float, float]
    variation: tuple[float, float]
    scale: tuple[float, float]
    blur: tuple[float, float]
    sharpening: tuple[float, float]
    noise: tuple[float, float]
    quality: tuple[int, int]
    red_cells: tuple[float, float]


RAABIN = Laboratory(
    light=(240, 218, 208), light_spread=(5, 8, 14), tint=(1.00, 1.18, 1.18), haemoglobin=(1.00, 1.12, 0.66),
    variation=(0.16, 0.15), scale=(0.80, 1.00), blur=(0.5, 0.8), sharpening=(0.3, 0.8), noise=(0.5, 1.2),
    quality=(90, 96), red_cells=(16, 28),
)  # fmt: skip

OTHER_MICROSCOPE = replace(
    RAABIN, light=(206, 204, 214), light_spread=(5, 5, 5), scale=(0.96, 1.06), blur=(1.0, 1.5), sharpening=(0.0, 0.2),
    noise=(1.5, 2.5),
)  # fmt: skip

LISC = Laboratory(
    light=(188, 188, 171), light_spread=(6, 6, 6), tint=(1.04, 1.15, 1.10), haemoglobin=(0.90, 1.05, 0.64),
    variation=(0.08, 0.10), scale=(0.86, 1.0), blur=(1.0, 1.6), sharpening=(0.0, 0.2), noise=(2.5, 4.0),
    quality=(60, 75), red_cells=(10, 22),
)  # fmt: skip

LABORATORIES = {"Train": RAABIN, "TestA": RAABIN, "TestB": OTHER_MICROSCOPE, "LISC": LISC}

OTHER_SMEARS = {"TestB": 6, "LISC": 8}
"""Smears that the spec's ``patients`` does not count."""

SIDE = 288
"""Side of RaabinWBC's images in pixels, half of the real one."""

CELL_SHARE = (0.70, 0.85)
"""Bounds of the share of a LISC image's side that its cell takes."""

CUT_SIDES = (120, 200)
"""Bounds of this side in pixels."""


def plan_images(spec: RenderSpec) -> list[PlannedImage]:
    """Plans every image of the folder; ``patients`` are Train's and TestA's smears, ``test_images`` has no meaning.

    Args:
        spec: size, seed and plants.

    Returns:
        The images, sorted by path.

    Raises:
        UserError: too few images for the classes or the smears, or too many plants.
    """
    rng = np.random.default_rng([spec.seed, PLAN_STREAM])
    counts = _class_counts(spec)
    images = _same_smears(spec, counts, rng)
    for part, smears in OTHER_SMEARS.items():
        for label, count in counts[part].items():
            images += [_planned(part, label, int(rng.integers(smears))) for _ in range(count)]

    def mistake(image: PlannedImage) -> None:
        choices = [label for label in CONFUSED_WITH[image.true_label] if label in counts[image.split]]
        image.given_label = choices[int(rng.integers(len(choices)))]

    plant_wrong_labels(images, mistake, spec)
    _name(images, spec, rng)
    images.sort(key=lambda image: image.path)
    # within the laboratory: one of its images among another's would be no leak but a stranger
    plant_duplicates([image for image in images if image.split in ("Train", "TestA")], lambda image: image.split, spec)
    plant_corruption(images, spec)
    return images


def _class_counts(spec: RenderSpec) -> dict[str, dict[str, int]]:
    """Images per part and class."""
    if spec.images < FEWEST:
        raise UserError(f"render.images = {spec.images}: RaabinWBC and LISC need at least {FEWEST}; raise it")
    counts = {}
    totals = apportion(spec.images, list(SHARES.values()))
    for column, (part, total) in enumerate(zip(FOLDERS, totals, strict=True)):
        real = {label: row[column] for label, row in COUNTS.items() if row[column]}
        weights = np.array(list(real.values())) / sum(real.values())
        if part not in OTHER_SMEARS:
            weights = (weights + 1 / len(weights)) / 2
        counts[part] = dict(zip(real, apportion(total, weights.tolist(), least=1), strict=True))
    return counts


def _planned(part: str, label: str, smear: int) -> PlannedImage:
    """An image that has no name yet."""
    return PlannedImage("", "", part, "", label, label, smear, (SIDE, SIDE))


def _same_smears(spec: RenderSpec, counts: dict[str, dict[str, int]], rng: np.random.Generator) -> list[PlannedImage]:
    """Train's and TestA's images: the smears' cells, of which each class is split at random."""
    both = {label: counts["Train"][label] + counts["TestA"][label] for label in counts["Train"]}
    if sum(both.values()) < spec.patients:
        raise UserError(
            f"render.patients = {spec.patients}: Train and TestA have only {sum(both.values())} images; "
            "lower patients or raise images"
        )
    shares = share_out(both, range(spec.patients), SPREAD, rng)
    images = []
    for label, count in both.items():
        smears = [smear for smear, share in enumerate(shares) for _ in range(share.get(label, 0))]
        parts = rng.permutation(["Train"] * counts["Train"][label] + ["TestA"] * (count - counts["Train"][label]))
        images += [_planned(str(part), label, smear) for part, smear in zip(parts, smears, strict=True)]
    return images


def _name(images: list[PlannedImage], spec: RenderSpec, rng: np.random.Generator) -> None:
    """Gives the images their names: RaabinWBC's after smear, picture and cell in it, LISC's numbers in their class."""
    dates = rng.choice(5 * 30 * 8, spec.patients + OTHER_SMEARS["TestB"], replace=False).tolist()
    smears = [f"95-{5 + date // 240}-{1 + date // 8 % 30}-{1 + date % 8}" for date in dates]
    numbers: Counter[str] = Counter()
    for image in (images[i] for i in rng.permutation(len(images))):
        if image.split == "LISC":
            key = image.given_label
            numbers[key] += 1
            name = str(numbers[key])
        else:
            image.patient = key = smears[image.patient_index + (spec.patients if image.split == "TestB" else 0)]
            numbers[key] += int(rng.integers(1, 9))
            name = f"{key}_{1 + numbers[key] // 3}_{1 + numbers[key] % 3}"
        image.image_id = f"{name}{wbcbench.SUFFIX}"
        image.path = f"{FOLDERS[image.split]}/{image.given_label}/{image.image_id}"


@lru_cache(maxsize=512)
def smear_appearance(part: str, seed: int, smear: int) -> Appearance:
    """The look of one smear.

    Args:
        part: a key of ``FOLDERS``; Train and TestA show the same smears.
        seed: the spec's seed.
        smear: its number in its laboratory.

    Returns:
        An appearance whose light, stain, optics and red cells are the laboratory's.
    """
    laboratory = LABORATORIES[part]
    rng = np.random.default_rng([seed, PATIENT_STREAM, list(LABORATORIES.values()).index(laboratory), smear])
    usual = sample_appearance(rng)
    vectors = stain_vectors(rng, *laboratory.variation) * np.array(laboratory.tint, np.float32)
    red = list(STAINS).index("haemoglobin")
    vectors[red] *= np.array(laboratory.haemoglobin, np.float32) / (np.array(STAINS["haemoglobin"]) * laboratory.tint)
    return replace(
        usual,
        light=np.clip(rng.normal(laboratory.light, laboratory.light_spread), 120, 254).astype(np.float32),
        vectors=vectors.astype(np.float32),
        scale=float(rng.uniform(*laboratory.scale)),
        blur=float(rng.uniform(*laboratory.blur)),
        sharpening=float(rng.uniform(*laboratory.sharpening)),
        noise=float(rng.uniform(*laboratory.noise)),
        quality=int(rng.integers(*laboratory.quality)),
        red_cells=float(rng.uniform(*laboratory.red_cells)),
    )


def draw_cell(part: str, label: str, appearance: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a cell as a part's images show it.

    Args:
        part: a key of ``FOLDERS``.
        label: a key of ``COUNTS``.
        appearance: the smear's look.
        rng: the image's own generator.

    Returns:
        (S, S, 3) uint8 RGB; S is ``SIDE``, and within ``CUT_SIDES`` for LISC.
    """
    drawn_as = DRAWN_AS[label][int(rng.integers(len(DRAWN_AS[label])))]
    side = SIDE
    if part == "LISC":
        share = rng.uniform(*CELL_SHARE)
        diameter = sample_morphology(drawn_as, deepcopy(rng)).diameter  # of the cell that is about to be drawn
        side = int(np.clip(diameter * appearance.scale / share, *CUT_SIDES))
    return draw_image(drawn_as, appearance, rng, (side, side))


def draw(image: PlannedImage, index: int, seed: int) -> bytes:
    """Draws one planned image; see ``wbcbench.draw``. Returns the JPEG file's bytes."""
    appearance = smear_appearance(image.split, seed, image.patient_index)
    rng = np.random.default_rng([seed, IMAGE_STREAM, index])
    return encode(draw_cell(image.split, image.true_label, appearance, rng), appearance.quality)


def encode(pixels: NDArray[np.uint8], quality: int = 85) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as JPEG."""
    return wbcbench.encode(pixels, quality)


def write_lists(root: Path, images: list[PlannedImage]) -> None:
    """Writes nothing: folders and names tell the classes and the smears."""
