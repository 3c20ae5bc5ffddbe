"""The nucleus of a leukocyte: its place and shape, folds and overlapping lobes, chromatin and nucleoli."""

from dataclasses import dataclass

import cv2
import numpy as np

from leukofold.rendering import shapes, texture
from leukofold.rendering.morphology import Morphology
from leukofold.rendering.texture import FloatImage

_ROUND = 0.8  # nuclei shorter than this are drawn as an outline, longer ones as a chain of discs


@dataclass(frozen=True)
class Nucleus:
    """A drawn nucleus.

    Attributes:
        mask: (S, S) float32 in [0, 1].
        chromatin: (S, S) float32 concentration of nuclear stain.
        nucleoli: (S, S) float32 in [0, 1], or None without any.
    """

    mask: FloatImage
    chromatin: FloatImage
    nucleoli: FloatImage | None


def draw_nucleus(cell: Morphology, scale: float, cover: FloatImage, rng: np.random.Generator) -> Nucleus:
    """Draws a cell's nucleus, shifted off the middle as far as the class wants and the cell allows.

    Args:
        cell: the cell's measures.
        scale: magnification.
        cover: (S, S) mask of the cell.
        rng: source of shape, place and texture.

    Returns:
        The nucleus, inside the cell.
    """
    mask, creases = _shape(cell, scale, cover.shape[0], rng)
    if cell.constriction < 0.5:  # where there are no filaments to lose
        wide = np.asarray(cv2.GaussianBlur(mask, (0, 0), 3.0), dtype=np.float32)
        grain = texture.crop(texture.noise_tile(6.0), mask.shape, rng)
        mask = np.clip((wide - 0.5 + cell.lumps * grain * wide * (1 - wide)) * 4 + 0.5, 0, 1)
    mask = np.asarray(mask * cv2.erode(cover, np.ones((3, 3), np.uint8)), dtype=np.float32)
    depth = np.asarray(cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3), dtype=np.float32)
    if cell.folds >= 1:
        creases += _folds(int(cell.folds), depth, rng)
    chromatin = _chromatin(cell, mask, depth, creases, rng)
    nucleoli = _nucleoli(cell, depth, rng)
    if nucleoli is not None:  # a smooth, paler disc; chromatin gathers around it
        around = 1 + 0.8 * nucleoli * (1 - nucleoli)
        chromatin = chromatin * (1 - 0.85 * nucleoli) * around + 0.45 * cell.chromatin * nucleoli * mask
    return Nucleus(mask, chromatin, nucleoli)


def _shape(cell: Morphology, scale: float, size: int, rng: np.random.Generator) -> tuple[FloatImage, FloatImage]:
    """Mask of the nucleus, and the relative darkening where its lobes overlap."""
    radius = 0.5 * cell.diameter * scale
    area = cell.nucleus_area * np.pi * radius**2
    angle = rng.uniform(0, 2 * np.pi)
    if cell.length < _ROUND:
        waves = 0.022 + 0.3 * cell.irregularity
        outline = shapes.wavy_outline(rng, np.sqrt(area / np.pi), 1 + 0.3 * cell.length, waves)
        reach = float(np.hypot(outline[:, 0], outline[:, 1]).max())
        shift = cell.eccentricity * max(radius * 0.97 - reach, 0.0)
        centre = (size / 2 + shift * np.cos(angle), size / 2 + shift * np.sin(angle))
        return shapes.fill_outline(outline, size, centre), np.zeros((size, size), np.float32)
    centres, radii, lobe = shapes.bent_chain(rng, area, cell.length, cell.bend, int(cell.lobes), cell.constriction)
    reach = float((np.hypot(centres[:, 0], centres[:, 1]) + radii).max())
    shrink = min(1.0, 0.93 * radius / reach)
    centres, radii, reach = centres * shrink, radii * shrink, reach * shrink
    shift = cell.eccentricity * max(radius * 0.97 - reach, 0.0)
    centre = (size / 2 + shift * np.cos(angle), size / 2 + shift * np.sin(angle))
    if cell.constriction < 0.5:
        union = shapes.fill_discs(centres, radii, size, centre)
        return shapes.soften(union, 1.5), np.zeros_like(union)
    lobes = [shapes.fill_discs(centres[lobe == k], radii[lobe == k], size, centre) for k in range(lobe[-1] + 1)]
    union, overlap = lobes[0], np.zeros_like(lobes[0])
    for single in lobes[1:]:
        overlap = np.maximum(overlap, np.minimum(union, single))
        union = np.maximum(union, single)
    overlap = np.asarray(cv2.GaussianBlur(overlap, (0, 0), 1.0), dtype=np.float32)
    return shapes.soften(union, 1.5), np.asarray(0.10 * overlap + 0.5 * overlap * (1 - overlap), dtype=np.float32)


def _folds(number: int, depth: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Clefts that run from the edge into the nucleus: a pale line with a dark side."""
    size = depth.shape[0]
    deepest = float(depth.max())
    ys, xs = np.nonzero(depth > 0)
    lines = np.zeros((size, size), np.uint8)
    edge = np.flatnonzero(depth[ys, xs] < 2)
    for start in rng.choice(edge, number):
        x, y = float(xs[start]), float(ys[start])
        heading = np.arctan2(ys.mean() - y, xs.mean() - x) + rng.normal(0, 0.5)
        turns = np.cumsum(rng.normal(0, 0.22) + rng.normal(0, 0.15, 12))
        step = deepest * rng.uniform(0.06, 0.16)
        path = np.cumsum(np.stack([np.cos(heading + turns), np.sin(heading + turns)], axis=1) * step, axis=0)
        points = np.rint((path + np.array([x, y])) * 16).astype(np.int32)
        cv2.polylines(lines, [points], False, 255, 2, cv2.LINE_AA, 4)
    line = lines.astype(np.float32) * np.float32(1 / 255)
    wide = cv2.GaussianBlur(line, (0, 0), 2.6)
    return np.asarray(0.9 * wide - 0.75 * cv2.GaussianBlur(line, (0, 0), 0.7), dtype=np.float32)


def _chromatin(
    cell: Morphology, mask: FloatImage, depth: FloatImage, creases: FloatImage, rng: np.random.Generator
) -> FloatImage:
    """Concentration of nuclear stain: dark strands with pale worm-like gaps, clumps, membrane."""
    shape = mask.shape
    weave = texture.crop(texture.weave_tile(round(2 * cell.weave) / 2), shape, rng)
    patches = texture.crop(texture.noise_tile(6.0), shape, rng)
    # gaps open where the weave is pale, more of them in some places than in others
    gaps = 0.58 * weave + 0.26 * patches + cell.openness
    pattern = 0.12 - cell.gaps * gaps
    pattern += cell.clumps * np.tanh(1.6 * texture.crop(texture.noise_tile(round(2 * cell.clump_size) / 2), shape, rng))
    pattern += 0.05 * texture.crop(texture.noise_tile(1.1), shape, rng)
    if cell.clock_face:
        blocks = texture.crop(texture.weave_tile(13.0), shape, rng)
        pattern -= cell.clock_face * np.tanh(1.8 * blocks) * np.exp(-(((depth - 7) / 8) ** 2))
    membrane = 0.42 * np.exp(-depth / 1.9)
    return np.asarray(
        cell.chromatin * mask * np.clip(0.95 + pattern + membrane + creases, 0.14, 1.16), dtype=np.float32
    )


def _nucleoli(cell: Morphology, depth: FloatImage, rng: np.random.Generator) -> FloatImage | None:
    """Mask of the nucleoli, placed well inside the nucleus; None without any."""
    if cell.nucleoli < 1:
        return None
    # a single large one lies in the middle
    inner = np.flatnonzero(depth > (0.7 if cell.nucleoli < 2 else 0.35) * depth.max())
    size = depth.shape[0]
    spots = np.zeros_like(depth)
    for index in rng.choice(inner, int(cell.nucleoli)):
        outline = shapes.wavy_outline(rng, cell.nucleolus_radius * rng.uniform(0.7, 1.25), 1.2, 0.06, count=32)
        np.maximum(spots, shapes.fill_outline(outline, size, (index % size, index // size)), out=spots)
    return np.asarray(cv2.GaussianBlur(spots, (0, 0), 1.8), dtype=np.float32)
