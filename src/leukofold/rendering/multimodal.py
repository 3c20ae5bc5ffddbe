"""Rendered multimodal cells: four registered pictures of each leukocyte, one fluorescent and three bright-field.

After a data set of five classes whose cells were taken under acridine orange (AO) fluorescence and, unstained, under
three bright-field light sources (its pictures are not public). Files are
``<modality>/<class>/<cell_id>.png`` and ``cells.csv``, a row per cell. A class has the mean of its published share and
of a fifth, so that each can be learnt from a few hundred cells. The wavelengths are not published; ours are violet,
green and red.

A cell is drawn once, as density in seven channels: what AO makes shine in red, green and blue, what absorbs violet,
green and red light, and what delays light. The last gives unstained cells their edges, as a microscope slightly out of
focus shows them. Light, optics and noise are each modality's own.

The classes' marks are spread over the modalities on purpose. All show a cell's size and outline. The nucleus' shape is
best seen under fluorescence, eosinophil granules in Color1, basophil and azurophil ones in Color2, the chromatin's
texture and the amount of cytoplasm in Color3; elsewhere the same marks are faint. So each modality alone leaves some
pairs of classes ambiguous, and all together do not. How faint was settled by looking at cells and by logistic
regressions on simple features. This was designed so that fusion can win: scores on these drawings are no evidence for
fusion.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering import texture
from leukofold.rendering.cell import draw_density
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
from leukofold.rendering.raabin import DRAWN_AS, SPREAD
from leukofold.rendering.spec import RenderSpec
from leukofold.rendering.stain import STAINS, Appearance, sample_appearance
from leukofold.rendering.texture import FloatImage

COUNTS = {"Neutrophil": 9616, "Lymphocyte": 4448, "Eosinophil": 677, "Monocyte": 124, "Basophil": 47}
"""Published cells per class."""

CONFUSED_WITH = {
    "Neutrophil": ("Eosinophil", "Monocyte"), "Lymphocyte": ("Monocyte", "Basophil"),
    "Eosinophil": ("Neutrophil", "Basophil"), "Monocyte": ("Lymphocyte", "Neutrophil"),
    "Basophil": ("Lymphocyte", "Eosinophil"),
}  # fmt: skip
"""What a wrong label says."""

SIDE = 160
"""Side of the images in pixels."""

_FINER = 2  # cells are drawn this much larger: their textures have a fixed size in pixels
_SMALLER = 0.95  # factor on the usual magnification: the largest monocytes take about 110 pixels

SUFFIX = ".png"

# What a unit of each stain's concentration emits in red, green and blue under AO; absorbs of violet, green and red
# light without it; and adds to the path of light
_CHANNELS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], float]] = {
    "chromatin": ((0.120, 1.300, 0.030), (0.007, 0.008, 0.022), 0.03),
    "basophilic": ((0.620, 0.180, 0.010), (0.130, 0.110, 0.160), 0.55),
    "acidophilic": ((0.620, 0.180, 0.010), (0.130, 0.110, 0.090), 0.55),
    "specific": ((0.150, 0.040, 0.000), (0.050, 0.030, 0.020), 0.10),
    "azurophil": ((0.060, 0.015, 0.000), (0.006, 0.060, 0.006), 0.02),
    "eosinophil": ((0.150, 0.040, 0.000), (0.270, 0.035, 0.035), 0.06),
    "basophil": ((0.040, 0.010, 0.000), (0.010, 0.070, 0.010), 0.01),
    "haemoglobin": ((0.000, 0.000, 0.000), (1.500, 0.360, 0.120), 0.50),
}  # fmt: skip
_VECTORS = np.array([[*_CHANNELS[name][0], *_CHANNELS[name][1], _CHANNELS[name][2]] for name in STAINS])


@dataclass(frozen=True)
class Optics:
    """Light and camera of one modality.

    Attributes:
        light: grey level of the empty field, or of the brightest emission under fluorescence.
        blur: standard deviation in pixels of the optical blur.
        noise: standard deviation in grey levels of the noise at ``light``.
        defocus: change of light per unit of the path's curvature (transport of intensity): a dark rim in a bright halo.
    """

    light: float
    blur: float
    noise: float
    defocus: float = 0.0


MODALITIES = {
    "Fluorescent": Optics(light=220, blur=2.2, noise=26),
    "Color1": Optics(light=188, blur=0.9, noise=4.4, defocus=0.6),
    "Color2": Optics(light=202, blur=0.8, noise=4.0, defocus=0.7),
    "Color3": Optics(light=196, blur=0.7, noise=3.6, defocus=0.8),
}
"""The modalities by the names of their folders, which are also columns of ``cells.csv``."""


@dataclass(frozen=True)
class Look:
    """How one patient's cells look.

    Attributes:
        appearance: magnification, red cells and, as its vectors, (number of stains, 7) densities.
        optics: each modality's on the day of the patient.
    """

    appearance: Appearance
    optics: dict[str, Optics]


def plan_images(spec: RenderSpec) -> list[PlannedImage]:
    """Plans every image of the folder; ``images`` are cells, ``test_images`` has no meaning.

    Args:
        spec: size, seed and plants. Wrong labels and duplicates are of whole cells, damaged files are single.

    Returns:
        The images, sorted by cell; the four of a cell follow each other in the order of ``MODALITIES``.

    Raises:
        UserError: too few cells for the classes or the patients, or too many plants.
    """
    if spec.images < len(COUNTS):
        raise UserError(
            f"render.images = {spec.images}: multimodal needs at least {len(COUNTS)} cells, one per class; raise it"
        )
    if spec.images < spec.patients:
        raise UserError(
            f"render.patients = {spec.patients}: there are only {spec.images} cells; lower patients or raise images"
        )
    rng = np.random.default_rng([spec.seed, PLAN_STREAM])
    cells = _plan_cells(spec, rng)

    def mistake(cell: PlannedImage) -> None:
        choices = CONFUSED_WITH[cell.true_label]
        cell.given_label = choices[int(rng.integers(len(choices)))]

    plant_wrong_labels(cells, mistake, spec)
    plant_duplicates(cells, lambda cell: cell.patient, spec)
    label_of = {cell.image_id: cell.given_label for cell in cells}

    def path(modality: str, name: str) -> str:
        return f"{modality}/{label_of[name]}/{name}{SUFFIX}" if name else ""

    images = [
        replace(cell, path=path(modality, cell.image_id), duplicate_of=path(modality, cell.duplicate_of))
        for cell in cells
        for modality in MODALITIES
    ]
    plant_corruption(images, spec)
    return images


def _plan_cells(spec: RenderSpec, rng: np.random.Generator) -> list[PlannedImage]:
    """The cells, sorted by their numbers, which stand for the paths for the time being."""
    weights = np.array(list(COUNTS.values())) / sum(COUNTS.values())
    shares = apportion(spec.images, ((weights + 1 / len(weights)) / 2).tolist(), least=1)
    counts = dict(zip(COUNTS, shares, strict=True))
    numbers = iter((100_000 + rng.choice(900_000, spec.images, replace=False)).tolist())
    cells = []
    for patient, share in enumerate(share_out(counts, range(spec.patients), SPREAD, rng)):
        for label in (label for label, count in share.items() for _ in range(count)):
            name = str(next(numbers))
            cells.append(PlannedImage(name, name, "train", f"P{patient:04d}", label, label, patient, (SIDE, SIDE)))
    return sorted(cells, key=lambda cell: cell.image_id)


@lru_cache(maxsize=512)
def patient_look(seed: int, patient: int) -> Look:
    """Draws how one patient's cells look.

    Args:
        seed: the spec's seed.
        patient: the patient's number.

    Returns:
        Magnification, red cells, uptake of the dye, light and focus.
    """
    rng = np.random.default_rng([seed, PATIENT_STREAM, patient])
    usual = sample_appearance(rng)
    vectors = _VECTORS * np.exp(rng.normal(0, 0.06, _VECTORS.shape))
    optics = {
        name: replace(
            optics,
            light=optics.light * float(np.exp(rng.normal(0, 0.03))),
            blur=optics.blur * float(np.exp(rng.normal(0, 0.10))),
            defocus=optics.defocus * float(np.exp(rng.normal(0, 0.20))),
        )
        for name, optics in MODALITIES.items()
    }
    scale = _SMALLER * usual.scale
    return Look(replace(usual, vectors=vectors.astype(np.float32), scale=scale), optics)


def draw_scene(label: str, look: Look, rng: np.random.Generator) -> FloatImage:
    """Draws a cell and what lies around it, which all its pictures show.

    Args:
        label: a key of ``COUNTS``.
        look: the patient's.
        rng: the cell's own generator.

    Returns:
        (SIDE, SIDE, 7) float32: emission in red, green and blue, absorption in the three bands, path of light.
    """
    drawn_as = DRAWN_AS[label][int(rng.integers(len(DRAWN_AS[label])))]
    uptake = np.exp(rng.normal(0, 0.30, (len(STAINS), 1))).astype(np.float32)
    appearance = replace(look.appearance, vectors=look.appearance.vectors * uptake)
    density = draw_density(drawn_as, appearance, rng, (_FINER * SIDE, _FINER * SIDE))
    return np.asarray(cv2.resize(density, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.float32)


def take_picture(modality: str, scene: FloatImage, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Takes one modality's picture of a scene.

    Args:
        modality: a key of ``MODALITIES``.
        scene: from ``draw_scene``.
        look: the patient's.
        rng: source of the noise.

    Returns:
        (SIDE, SIDE, 3) uint8 RGB; its channels are equal but under fluorescence.
    """
    optics = look.optics[modality]
    if modality == "Fluorescent":
        return _fluorescence(scene[:, :, :3], optics, rng)
    absorbed = scene[:, :, 2 + list(MODALITIES).index(modality)]
    curvature = cv2.Laplacian(cv2.GaussianBlur(scene[:, :, 6], (0, 0), 1.3), cv2.CV_32F)
    passed = optics.light * (cv2.exp(-absorbed) + optics.defocus * curvature)
    grain = optics.noise * texture.crop(texture.noise_tile(0.6), (SIDE, SIDE), rng)
    grey = np.rint(cv2.GaussianBlur(passed, (0, 0), optics.blur) + grain).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.merge([grey, grey, grey]), dtype=np.uint8)


def _fluorescence(density: FloatImage, optics: Optics, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Emission instead of transmission; few photons come, so that noise grows with the root of their number."""
    emitted = optics.light * (1 - cv2.exp(-density))
    # light from above and below the focus lies around the cell
    seen = 0.86 * cv2.GaussianBlur(emitted, (0, 0), optics.blur) + 0.14 * cv2.GaussianBlur(emitted, (0, 0), 9.0)
    tile = texture.noise_tile(0.6)
    grain = cv2.merge([texture.crop(tile, (SIDE, SIDE), rng) for _ in range(3)])
    noisy = seen + optics.noise * np.sqrt(np.maximum(seen, 0) / optics.light + 0.004) * grain
    return np.asarray(np.rint(noisy).clip(0, 255), dtype=np.uint8)


@lru_cache(maxsize=1)  # the four pictures of a cell are drawn one after the other
def _scene(label: str, seed: int, patient: int, number: int) -> FloatImage:
    return draw_scene(label, patient_look(seed, patient), np.random.default_rng([seed, IMAGE_STREAM, number]))


def draw(image: PlannedImage, index: int, seed: int) -> bytes:
    """Draws one planned image; see ``wbcbench.draw``. Returns the PNG file's bytes."""
    number, modality = divmod(index, len(MODALITIES))
    scene = _scene(image.true_label, seed, image.patient_index, number)
    rng = np.random.default_rng([seed, IMAGE_STREAM, number, 1 + modality])
    return encode(take_picture(list(MODALITIES)[modality], scene, patient_look(seed, image.patient_index), rng))


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as PNG, with a single channel where all three are equal."""
    grey = bool((pixels == pixels[:, :, :1]).all())
    content = pixels[:, :, 0] if grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(SUFFIX, np.ascontiguousarray(content), [cv2.IMWRITE_PNG_COMPRESSION, 6])[1])


def write_lists(root: Path, images: list[PlannedImage]) -> None:
    """Writes ``cells.csv``: number, given label, patient and the four files of each cell."""
    every = len(MODALITIES)
    rows = [
        [cell.image_id, cell.given_label, cell.patient, *(image.path for image in images[first : first + every])]
        for first, cell in zip(range(0, len(images), every), images[::every], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["cell_id", "label", "patient", *MODALITIES])
    table.to_csv(root / "cells.csv", index=False, lineterminator="\n")
