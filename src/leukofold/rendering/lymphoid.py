"""One C-NMC image: a segmented lymphoid cell, centred on pure black.

The cells fill their mask almost wholly with nucleus and are seen softly, at about twice WBCBench's magnification.
Classes differ little (a leukaemic blast is larger, its chromatin finer, its nucleoli visible), subjects differ
much: stain, light, texture and size belong to the subject, as in the real data.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.rendering import shapes, texture
from leukofold.rendering.texture import FloatImage

SIDE = 450
"""Height and width of an ordinary image in pixels."""

LARGE_SIDE = 600
"""Height and width of the few larger images of the final phase."""

_HALF = 2  # the interior is drawn at half size and enlarged: the real cells hold no finer detail


@dataclass(frozen=True)
class Lymphoid:
    """Mean measures of one class; lengths in pixels of a 450-pixel image, concentrations as optical density."""

    diameter: float
    chromatin: float
    clumps: float
    network: float
    nucleoli: float
    crescent: float


LYMPHOIDS: dict[str, Lymphoid] = {
    "hem": Lymphoid(diameter=183, chromatin=1.87, clumps=0.115, network=0.016, nucleoli=0.35, crescent=0.5),
    "all": Lymphoid(diameter=211, chromatin=1.88, clumps=0.07, network=0.026, nucleoli=1.9, crescent=0.3),
}
"""Normal B-lymphoid precursors and leukaemic blasts."""

_CHROMATIN = np.array([0.60, 1.00, 0.43])
_CYTOPLASM = np.array([0.92, 0.86, 0.34])
_EDGE_LOSS = np.array([0.66, 0.66, 0.76], dtype=np.float32)
_RED_CELL = np.array([112.0, 78.0, 84.0])
_LIGHT = np.array([204.0, 176.0, 172.0])


@dataclass(frozen=True)
class SubjectAppearance:
    """How one subject's cells look, whatever their class.

    Attributes:
        light: (3,) incident light in RGB.
        vectors: (2, 3) optical density per unit of chromatin and cytoplasm stain.
        size: factor on the diameter.
        contrast: factor on the chromatin's contrast.
        grain: factor on the chromatin's grain size.
        weave: relative contrast of the chromatin's strands.
        irregularity: relative amplitude of the outline's waves.
        noise: standard deviation of the sensor noise in grey levels.
    """

    light: NDArray[np.float64]
    vectors: NDArray[np.float64]
    size: float
    contrast: float
    grain: float
    weave: float
    irregularity: float
    noise: float


def sample_subject(rng: np.random.Generator) -> SubjectAppearance:
    """Draws the look of one subject's cells."""
    vectors = np.stack([_CHROMATIN, _CYTOPLASM])
    vectors = vectors * np.exp(rng.normal(0, 0.025, 3) + rng.normal(0, 0.012, (2, 3))) * np.exp(rng.normal(0, 0.07))
    return SubjectAppearance(
        light=_LIGHT * np.exp(rng.normal(0, 0.04) + rng.normal(0, 0.012, 3)),
        vectors=vectors,
        size=float(np.exp(rng.normal(0, 0.055))),
        contrast=float(np.exp(rng.normal(0, 0.22))),
        grain=float(np.exp(rng.normal(0, 0.15))),
        weave=float(min(rng.exponential(0.014), 0.04)),
        irregularity=float(rng.uniform(0.02, 0.05)),
        noise=float(rng.uniform(0.7, 1.5)),
    )


def _density(cell: Lymphoid, subject: SubjectAppearance, cover: FloatImage, rng: np.random.Generator) -> FloatImage:
    """(S, S, 3) optical density of the cell's interior at half size."""
    shape = cover.shape
    depth = cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    contrast = subject.contrast * np.exp(rng.normal(0, 0.15))
    grain = np.clip(4.4 * subject.grain, 2.5, 7.0)
    # clumped chromatin leaves pale gaps: only the upper tail of the noise shows
    gaps = np.maximum(texture.crop(texture.noise_tile(round(2 * grain) / 2), shape, rng) - 0.5, 0)
    pattern = -cell.clumps * gaps + cell.network * texture.crop(texture.noise_tile(2.0), shape, rng)
    pattern -= subject.weave * texture.crop(texture.weave_tile(round(1.3 * grain)), shape, rng)
    pattern = contrast * pattern + 0.09 * texture.crop(texture.noise_tile(14.0), shape, rng)
    size = shape[0]
    spots = np.zeros(shape, np.float32)
    inner = np.flatnonzero(depth > 0.3 * depth.max())
    for index in rng.choice(inner, rng.poisson(cell.nucleoli)):
        outline = shapes.wavy_outline(rng, rng.uniform(3.0, 6.5), 1.25, 0.08, count=32)
        np.maximum(spots, shapes.fill_outline(outline, size, (index % size, index // size)), out=spots)
    pale = cv2.GaussianBlur(spots, (0, 0), 1.8) * rng.uniform(0.12, 0.26)
    # a crescent of cytoplasm on one side, and a thin rim of it all around
    angle = rng.uniform(0, 2 * np.pi)
    across = np.arange(size, dtype=np.float32) - size / 2
    side = (np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None]) / max(float(depth.max()), 1.0)
    crescent = 0.8 * cell.crescent * rng.random() * np.clip((side - 0.62) * 5, 0, 1)
    rim = np.clip(crescent, 0, 1)
    strength = cell.chromatin * np.exp(rng.normal(0, 0.055))
    if rng.random() < 0.14:  # segmented too generously: a strip of bare background comes along
        strength = strength * (1 - 0.5 * np.clip((side - rng.uniform(0.82, 0.9)) * 9, 0, 1))
    chromatin = strength * (1 - 0.8 * rim) * (1 - pale) * (1 + pattern)
    stains = cv2.merge([np.asarray(layer, dtype=np.float32) for layer in (chromatin, 0.58 * strength * rim)])
    density = cv2.transform(stains, subject.vectors.T.astype(np.float32))
    # the cell thins out towards its edge, which lets its outline shine
    thin = np.exp(-depth / 2.6)[:, :, None] * (rng.uniform(0.6, 1.2) * _EDGE_LOSS)
    return np.asarray(density * (1 - thin), dtype=np.float32)


def _segmentation(outline: shapes.Points, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Binary mask of the segmented cell: a slightly ragged edge, sometimes a straight cut or a bite."""
    ragged = outline * (1 + rng.normal(0, 0.003, (len(outline), 1)))
    mask = (shapes.fill_outline(ragged, size, (size / 2, size / 2)) > 0.5).astype(np.uint8)
    radius = float(np.hypot(outline[:, 0], outline[:, 1]).mean())
    for _ in range(rng.poisson(0.35)):
        angle = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-direction[1], direction[0]])
        start = size / 2 + direction * radius * rng.uniform(0.86, 1.0)
        width = radius * rng.uniform(0.15, 0.6)
        corners = [start - across * width, start + across * width]
        corners += [corners[1] + direction * radius, corners[0] + direction * radius]
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 0)
    return mask


def _remnant(outline: shapes.Points, size: int, rng: np.random.Generator) -> FloatImage:
    """(S, S) mask of a piece of a neighbouring red cell that the segmentation left attached."""
    at = outline[int(rng.integers(len(outline)))]
    reach = rng.uniform(13, 36)
    piece = shapes.wavy_outline(rng, reach, rng.uniform(1.2, 2.4), 0.2, count=60) + at * (1 + 0.35 * reach / 100)
    return np.asarray(shapes.fill_outline(piece, size, (size / 2, size / 2)) > 0.5, dtype=np.float32)


def draw_segmented_cell(
    label: str, subject: SubjectAppearance, rng: np.random.Generator, side: int = SIDE
) -> NDArray[np.uint8]:
    """Draws one segmented cell.

    Args:
        label: ``hem`` or ``all``.
        subject: the subject's look.
        rng: the image's own generator.
        side: height and width in pixels; the cell's size does not depend on it.

    Returns:
        (side, side, 3) uint8 RGB, exactly 0 outside the cell, whose bounding box is centred.
    """
    cell = LYMPHOIDS[label]
    diameter = cell.diameter * subject.size * float(np.exp(np.clip(rng.normal(0, 0.09), -0.25, 0.25)))
    elongation = 1 + abs(rng.normal(0, 0.08))
    outline = shapes.wavy_outline(rng, diameter / 2, elongation, subject.irregularity, orders=7, count=120)
    outline = shapes.protrude(outline, rng.poisson(0.5), 0.05, rng)
    size = 2 * (int(np.hypot(outline[:, 0], outline[:, 1]).max()) + 8)
    with_remnant = rng.random() < 0.15
    size += 150 * with_remnant
    small = size // _HALF
    cover = shapes.fill_outline(outline / _HALF, small, (small / 2, small / 2))
    density = cv2.resize(_density(cell, subject, cover, rng), (size, size), interpolation=cv2.INTER_CUBIC)
    image = cv2.exp(-density) * subject.light.astype(np.float32)
    image = image + subject.noise * texture.crop(texture.noise_tile(0.8), (size, size), rng)[:, :, None]
    mask = _segmentation(outline, size, rng)
    if with_remnant:
        remnant = _remnant(outline, size, rng) * (1 - mask)
        image = image * (1 - remnant[:, :, None]) + remnant[:, :, None] * (_RED_CELL * subject.light / _LIGHT)
        mask = np.maximum(mask, remnant.astype(np.uint8))
    # the segmentation blends its outermost pixels into the black
    image *= cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.9)[:, :, None]
    inside = np.clip(image + 0.5, 1, 255).astype(np.uint8) * mask[:, :, None]
    x, y, width, height = cv2.boundingRect(mask)
    canvas = np.zeros((side, side, 3), np.uint8)
    left, top = (side - width) // 2, (side - height) // 2
    canvas[top : top + height, left : left + width] = inside[y : y + height, x : x + width]
    return canvas
