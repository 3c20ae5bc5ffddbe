"""One WBCBench image: a leukocyte among red cells, from a class, a patient's appearance and a generator."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.rendering import shapes, smear, texture
from leukofold.rendering.morphology import Morphology, sample_morphology
from leukofold.rendering.nucleus import draw_nucleus
from leukofold.rendering.stain import Appearance, optical_density, transmit
from leukofold.rendering.texture import FloatImage

_HAEMOGLOBIN = 0.33  # concentration in a red cell of ordinary thickness
_NUCLEAR_PROTEIN = 0.27  # eosin taken up between the chromatin: makes its gaps pinkish
_NUCLEAR_AZURE = 0.15  # and azure, which keeps them from being mere holes
_RED_RADIUS = 35.0  # of a red cell, in pixels
_ASIDE = np.array([[1, 0, 1.2], [0, 1, 1.2]])  # shift that makes granules stand out in relief
_MARGIN = 10  # pixels around a cell's outline that its patch includes


@dataclass(frozen=True)
class Leukocyte:
    """A drawn cell, ready to be put into an image.

    Attributes:
        density: (S, S, C) float32 optical density inside the cell, a channel for each of the stain vectors'.
        cover: (S, S) float32 in [0, 1]: where the cell hides what is behind it.
        radius: largest distance of the outline from the patch's middle, in pixels.
        neighbours: middles, relative to the patch's middle, of red cells that press into the cell.
    """

    density: FloatImage
    cover: FloatImage
    radius: float
    neighbours: list[tuple[float, float]]


def _outline(
    cell: Morphology, scale: float, rng: np.random.Generator
) -> tuple[shapes.Points, list[tuple[float, float]]]:
    """The cell's outline around the origin and the red cells that press into it."""
    radius = 0.5 * cell.diameter * scale
    outline = shapes.wavy_outline(rng, radius, cell.elongation, cell.irregularity)
    if cell.pseudopods >= 1:
        outline = shapes.protrude(outline, int(cell.pseudopods), cell.pseudopod_reach, rng)
    red_radius = _RED_RADIUS * scale
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(1.1, 2.4, int(cell.pressed)))
    around = np.arctan2(outline[:, 1], outline[:, 0])
    nearest = np.abs(np.exp(1j * around)[None, :] - np.exp(1j * angles)[:, None]).argmin(axis=1)
    edge = np.hypot(outline[nearest, 0], outline[nearest, 1])
    distance = np.maximum(edge, 0.9 * radius) + red_radius * rng.uniform(0.35, 0.75, len(angles))
    neighbours = [(float(d * np.cos(a)), float(d * np.sin(a))) for d, a in zip(distance, angles, strict=True)]
    return shapes.press(outline, neighbours, red_radius + 0.5), neighbours


def _frayed(cover: FloatImage, fray: float, rng: np.random.Generator) -> FloatImage:
    """Softens the cell's edge and, with ``fray`` > 0, lets it run out in fine processes."""
    wide = np.asarray(cv2.GaussianBlur(cover, (0, 0), 1.2 + 5 * fray), dtype=np.float32)
    # noise moves the edge only where there is one: none of it may leave specks outside
    grain = texture.crop(texture.noise_tile(2.0), cover.shape, rng)
    ragged = wide - 0.5 + (4 * fray) * grain * wide * (1 - wide)
    return np.asarray(np.clip(ragged * (1.5 + 7 * fray) + 0.5, 0, 1), dtype=np.float32)


def _hof(depth: float, nucleus: FloatImage) -> FloatImage:
    """Factor that pales the cytoplasm beside the nucleus, on the side of the cell's middle (the Golgi zone)."""
    size = nucleus.shape[0]
    moments = cv2.moments(nucleus)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    dx, dy = size / 2 - x, size / 2 - y
    radius = np.sqrt(moments["m00"] / np.pi)
    reach = 1.05 * radius / max(np.hypot(dx, dy), 1.0)
    across = np.arange(size, dtype=np.float32)
    spread = 0.45 * radius
    gauss_x = np.exp(-(((across - x - reach * dx) / spread) ** 2))
    gauss_y = np.exp(-(((across - y - reach * dy) / spread) ** 2))
    return np.asarray(1 - depth * np.outer(gauss_y, gauss_x), dtype=np.float32)


def _vacuoles(cell: Morphology, size: int, scale: float, rng: np.random.Generator) -> FloatImage:
    """Factor that is 0 inside vacuoles and 1 elsewhere."""
    holes = np.zeros((size, size), np.uint8)
    for _ in range(int(cell.vacuoles)):
        angle, distance = rng.uniform(0, 2 * np.pi), 0.5 * cell.diameter * scale * np.sqrt(rng.uniform(0.1, 0.8))
        x, y = size / 2 + distance * np.cos(angle), size / 2 + distance * np.sin(angle)
        cv2.circle(holes, (round(x * 16), round(y * 16)), round(rng.uniform(1.8, 5.0) * 16), 255, -1, cv2.LINE_AA, 4)
    return np.asarray(1 - cv2.GaussianBlur(holes, (0, 0), 0.8).astype(np.float32) / 255, dtype=np.float32)


def _granules(
    cell: Morphology, cytoplasm: FloatImage, cover: FloatImage, rng: np.random.Generator
) -> dict[str, FloatImage]:
    """Concentration of each kind of granule the cell has."""
    shape = cover.shape
    layers: dict[str, FloatImage] = {}
    patchy = np.clip(0.85 + 0.6 * texture.crop(texture.noise_tile(13.0), shape, rng), 0.1, 1.9)
    if cell.specific > 0.02:
        dots = texture.crop(texture.granule_tile(1.1, 4.2, 0.4), shape, rng)
        layers["specific"] = cytoplasm * cell.specific * dots * (0.5 + 0.5 * patchy)
    if cell.azurophil > 0.02:
        missing = 1 - min(round(20 * cell.azurophil_count), 18) / 20
        dots = texture.crop(texture.granule_tile(1.55, 4.4, missing, 0.7), shape, rng)
        # primary granules lie over the nucleus too
        layers["azurophil"] = (0.7 * cover + 0.3 * cytoplasm) * cell.azurophil * dots * np.sqrt(patchy)
    if cell.eosinophil > 0.02:
        dots = texture.crop(texture.granule_tile(1.75, 3.8, 0.03, 0.35), shape, rng)
        # refraction gives every granule a bright and a dark side
        relief = dots - cv2.warpAffine(dots, _ASIDE, shape[::-1], borderMode=cv2.BORDER_REFLECT)
        filled = np.clip(3.0 * patchy, 0, 1)  # but for a few bare places
        layers["eosinophil"] = cytoplasm * filled * cell.eosinophil * np.maximum(0.50 + 0.5 * dots + 0.3 * relief, 0)
        layers["specific"] = cytoplasm * (0.16 * np.maximum(relief, 0) + 0.08 * patchy)
    if cell.basophil > 0.02:
        dots = texture.crop(texture.granule_tile(2.15, 4.9, 0.08, 1.1), shape, rng)
        layers["basophil"] = (0.75 * cover + 0.25 * cytoplasm) * cell.basophil * dots * np.clip(patchy, 0.5, 1.15)
    return layers


def _skirting(neighbours: list[tuple[float, float]], scale: float, size: int) -> FloatImage | np.float32:
    """Where a red cell presses into the cell: 1 at the red cell's edge, fading over some pixels."""
    near: FloatImage | np.float32 = np.float32(0)
    across = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    for x, y in neighbours:
        distance = cv2.magnitude(*np.meshgrid(across - np.float32(x), across - np.float32(y)))
        near = np.maximum(near, np.exp((_RED_RADIUS * scale - distance) * np.float32(1 / 9)))
    return np.minimum(near, np.float32(1.2))


def _cytoplasm(
    cell: Morphology,
    scale: float,
    cover: FloatImage,
    nucleus: FloatImage,
    neighbours: list[tuple[float, float]],
    rng: np.random.Generator,
) -> tuple[FloatImage, FloatImage]:
    """Relative density of the cytoplasm, and how much darker its blue is towards the edge."""
    depth = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    mottle = texture.crop(texture.noise_tile(1.2), cover.shape, rng)
    clouds = texture.crop(texture.noise_tile(9.0), cover.shape, rng)
    body = cover * (1 - nucleus) * np.maximum(1 + cell.mottle * mottle + 0.16 * clouds, 0.1)
    if cell.hof:
        body = body * _hof(cell.hof, nucleus)
    edge = 1 + np.exp(-depth / 9.0) * cell.skirting + 0.5 * np.exp(-depth / 1.6)
    if neighbours:
        edge = edge + 1.3 * cell.skirting * _skirting(neighbours, scale, cover.shape[0])
    return np.asarray(body, dtype=np.float32), np.asarray(edge, dtype=np.float32)


def draw_leukocyte(cell: Morphology, appearance: Appearance, rng: np.random.Generator) -> Leukocyte:
    """Draws one leukocyte as optical density.

    Args:
        cell: its measures.
        appearance: the patient's stain and magnification.
        rng: source of everything random in it.

    Returns:
        The cell in a square patch just large enough.
    """
    scale = appearance.scale
    outline, neighbours = _outline(cell, scale, rng)
    radius = float(np.hypot(outline[:, 0], outline[:, 1]).max())
    size = 2 * (int(radius) + _MARGIN)
    cover = _frayed(shapes.fill_outline(outline, size, (size / 2, size / 2)), cell.fray, rng)
    nucleus = draw_nucleus(cell, scale, cover, rng)
    body, edge = _cytoplasm(cell, scale, cover, nucleus.mask, neighbours, rng)
    holes = _vacuoles(cell, size, scale, rng) if cell.vacuoles else np.float32(1)
    body = np.asarray(body * holes, dtype=np.float32)
    granules = _granules(cell, cover * (1 - nucleus.mask) * holes, cover, rng)
    chromatin = np.asarray(nucleus.chromatin * (0.25 + 0.75 * holes), dtype=np.float32)
    for name in ("azurophil", "basophil"):
        if name in granules:  # a granule is seen in its own colour whatever lies under it
            clear = 1 - 0.6 * np.minimum(granules[name], 1)
            chromatin, body = (np.asarray(layer * clear, dtype=np.float32) for layer in (chromatin, body))
    basophilic = cell.basophilia * body * edge + _NUCLEAR_AZURE * nucleus.mask
    if nucleus.nucleoli is not None:
        basophilic = basophilic + 0.12 * nucleus.nucleoli
    layers = {
        "basophilic": basophilic,
        "acidophilic": cell.acidophilia * body + _NUCLEAR_PROTEIN * nucleus.mask,
        "chromatin": chromatin,
        **granules,
    }
    return Leukocyte(optical_density(layers, appearance), cover, radius, neighbours)


def _illumination(shape: tuple[int, int], appearance: Appearance) -> FloatImage:
    """(H, W, 3) incident light: colour, tilt and vignette."""
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    field = 1 + appearance.tilt[0] * x + appearance.tilt[1] * y - 0.5 * appearance.vignette * (x * x + y * y)
    return np.asarray(cv2.merge([field * channel for channel in appearance.light]), dtype=np.float32)


def draw_density(label: str, appearance: Appearance, rng: np.random.Generator, shape: tuple[int, int]) -> FloatImage:
    """Draws a cell in its smear as optical density, before any light falls on it.

    Args:
        label: a WBCBench class.
        appearance: the patient's look; its vectors may have any number of channels C from 2 on.
        rng: the image's own generator; what is taken from it does not depend on the vectors.
        shape: (height, width) in pixels.

    Returns:
        (height, width, C) float32.
    """
    cell = draw_leukocyte(sample_morphology(label, rng), appearance, rng)
    half = cell.cover.shape[0] // 2
    x, y = (np.array(shape[::-1]) / 2 + np.clip(rng.normal(0, 2.5, 2), -6, 6)).astype(int).tolist()
    neighbours = [(x + dx, y + dy) for dx, dy in cell.neighbours]
    red = smear.red_cells(shape, (x, y), cell.radius, neighbours, appearance, rng)
    purple = np.zeros(shape, np.float32)
    smear.platelets(purple, (x, y), cell.radius, rng)
    density = optical_density({"haemoglobin": _HAEMOGLOBIN * red, "azurophil": purple}, appearance)
    x0, y0 = max(x - half, 0), max(y - half, 0)
    x1, y1 = min(x + half, shape[1]), min(y + half, shape[0])
    inside = (slice(y0 - y + half, y1 - y + half), slice(x0 - x + half, x1 - x + half))
    window = density[y0:y1, x0:x1]
    window *= (1 - cell.cover[inside])[:, :, None]
    window += cell.density[inside]
    return density


def draw_image(
    label: str, appearance: Appearance, rng: np.random.Generator, shape: tuple[int, int] = (368, 368)
) -> NDArray[np.uint8]:
    """Draws one pristine image of a cell in its smear.

    Args:
        label: a WBCBench class.
        appearance: the patient's look.
        rng: the image's own generator.
        shape: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    density = draw_density(label, appearance, rng, shape)
    return expose(transmit(density, _illumination(shape, appearance)), appearance, rng)


def expose(light: FloatImage, appearance: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera: optical blur, sensor noise, quantisation, sharpening.

    Args:
        light: (H, W, 3) float32 intensity, 0 to 255.
        appearance: blur, noise and sharpening.
        rng: source of the noise.

    Returns:
        (H, W, 3) uint8.
    """
    blurred = cv2.GaussianBlur(light, (0, 0), appearance.blur)
    grain = appearance.noise * texture.crop(texture.noise_tile(0.6), light.shape[:2], rng)
    noisy = cv2.add(blurred, cv2.merge([grain, grain, grain]))
    smooth = cv2.GaussianBlur(noisy, (0, 0), 1.4)
    sharp = cv2.addWeighted(noisy, 1 + appearance.sharpening, smooth, -appearance.sharpening, 0, dtype=cv2.CV_8U)
    return np.asarray(sharp, dtype=np.uint8)
