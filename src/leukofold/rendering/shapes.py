"""Outlines of cells and nuclei, and their filling into soft masks.

Two families suffice: a wavy closed polar curve (cells, round nuclei) and a chain of discs along a bent axis.
The chain runs without a break from round over indented, kidney-shaped and band-shaped to lobed nuclei joined
by filaments, which is how granulocytes mature.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.rendering.texture import FloatImage

_SHIFT = 4  # cv2 draws with coordinates in 1/16 pixel
_SUB = 1 << _SHIFT

Points = NDArray[np.float64]


def wavy_outline(
    rng: np.random.Generator, radius: float, elongation: float, irregularity: float, orders: int = 6, count: int = 72
) -> Points:
    """A closed outline around the origin: an ellipse with smooth random waves.

    Args:
        rng: source of orientation and waves.
        radius: radius in pixels of the circle of the same area (but for the waves).
        elongation: ratio of the axes, at least 1.
        irregularity: relative amplitude of the waves; 0.02 is smooth, 0.1 ragged.
        orders: highest number of waves around the outline.
        count: number of points.

    Returns:
        (count, 2) x and y in pixels.
    """
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    order = np.arange(2, orders + 1)
    amplitude = irregularity * rng.normal(0, 1, len(order)) / np.sqrt(order - 1)
    phase = rng.uniform(0, 2 * np.pi, len(order))
    waves = 1 + (amplitude[:, None] * np.cos(order[:, None] * angle + phase[:, None])).sum(axis=0)
    stretch = np.sqrt(elongation)
    points = np.stack([stretch * np.cos(angle), np.sin(angle) / stretch], axis=1) * (radius * waves)[:, None]
    return rotate(points, rng.uniform(0, 2 * np.pi))


def press(outline: Points, centres: Sequence[tuple[float, float]], radius: float) -> Points:
    """Indents an outline where round neighbours press into it (a variant lymphocyte skirting red cells).

    Args:
        outline: (n, 2) points.
        centres: middles of the neighbours.
        radius: their radius in pixels.

    Returns:
        (n, 2) points, none of them inside a neighbour.
    """
    pressed = outline.copy()
    for centre in centres:
        offset = pressed - np.asarray(centre)
        distance = np.maximum(np.hypot(offset[:, 0], offset[:, 1]), 1e-6)
        inside = distance < radius
        pressed[inside] = np.asarray(centre) + offset[inside] * (radius / distance[inside])[:, None]
    return pressed


def protrude(outline: Points, number: int, reach: float, rng: np.random.Generator) -> Points:
    """Draws processes out of an outline: broad pseudopods or narrow blebs.

    Args:
        outline: (n, 2) points around the origin.
        number: how many processes.
        reach: mean length of a process over the cell's radius; long ones are broad.
        rng: source of places, lengths and widths.

    Returns:
        (n, 2) points.
    """
    angle = np.arctan2(outline[:, 1], outline[:, 0])
    factor = np.ones(len(outline))
    for _ in range(number):
        length = reach * rng.uniform(0.4, 1.6)
        width = (0.1 + 1.1 * length) * rng.uniform(0.7, 1.4)
        away = np.abs((angle - rng.uniform(-np.pi, np.pi) + np.pi) % (2 * np.pi) - np.pi)
        factor += length * np.exp(-((away / width) ** 2))
    return np.asarray(outline * factor[:, None])


def rotate(points: Points, angle: float) -> Points:
    """Turns points around the origin by ``angle`` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cosine, sine], [-sine, cosine]]))


def bent_chain(
    rng: np.random.Generator, area: float, length: float, bend: float, lobes: int, constriction: float
) -> tuple[Points, NDArray[np.float64], NDArray[np.intp]]:
    """Discs along a bent axis whose union is a granulocyte's nucleus.

    Args:
        rng: source of orientation and irregularity.
        area: wanted area in square pixels (approximate).
        length: length of the axis in half-widths: 0.3 round, 2 kidney, 4.5 band, 6 segmented.
        bend: angle in radians that the axis turns through: 2 kidney, 3 horseshoe, 4 nearly a ring.
        lobes: number of lobes; only matters with a constriction.
        constriction: depth of the narrowing between lobes: 0 none, 0.5 band with waists, 0.9 filaments.

    Returns:
        Centres (n, 2), their mean at the origin, radii (n,) in pixels, and the lobe (n,) that each disc belongs to.
    """
    count = max(8, int(8 * length))
    at = np.linspace(0, 1, count)
    width = np.ones(count)
    curvature = np.full(count, bend) * (1 + 0.25 * np.sin(2 * np.pi * at + rng.uniform(0, 6.3)))
    if length > 4.5:  # long nuclei turn in corners with straight pieces between them; some are bent into an S
        curvature *= 1 + 0.8 * np.cos(2 * np.pi * (at * rng.uniform(1.2, 2.2) + rng.random()))
        if rng.random() < 0.25:
            curvature *= 1.3 * np.tanh(8 * (rng.uniform(0.4, 0.6) - at))
    lobe = np.zeros(count, np.intp)
    for waist in range(1, lobes):
        place = waist / lobes + rng.normal(0, 0.05)
        lobe += at > place
        near = np.exp(-(((at - place) * lobes / 0.5) ** 2) * 2)
        width *= 1 - constriction * near
        # lobes fold against each other at their filaments, so the axis kinks there
        curvature += constriction * rng.normal(0, 0.9) * near * lobes
    curvature *= min(1.0, 4.4 / max(abs(float(curvature.mean())), 1e-6))  # not bent into a closed ring
    width *= 1 + 0.08 * np.sin(2 * np.pi * (at * rng.uniform(0.6, 1.6) + rng.random()))
    half_width = np.sqrt(area / (2 * length * width.mean() + np.pi))
    direction = np.cumsum(curvature) / count
    step = length * half_width / count
    centres = np.cumsum(np.stack([np.cos(direction), np.sin(direction)], axis=1) * step, axis=0)
    weight = width[:, None] ** 2
    centres -= (centres * weight).sum(axis=0) / weight.sum()
    return rotate(centres, rng.uniform(0, 2 * np.pi)), np.maximum(half_width * width, 1.7), lobe


def fill_outline(outline: Points, size: int, centre: tuple[float, float]) -> FloatImage:
    """Fills an outline into a square mask with a soft edge.

    Args:
        outline: (n, 2) points around the origin.
        size: side of the mask in pixels.
        centre: x and y of the origin in the mask.

    Returns:
        (size, size) float32 in [0, 1].
    """
    mask = np.zeros((size, size), np.uint8)
    points = np.rint((outline + np.asarray(centre)) * _SUB).astype(np.int32)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) * np.float32(1 / 255)


def fill_discs(centres: Points, radii: NDArray[np.float64], size: int, centre: tuple[float, float]) -> FloatImage:
    """Fills the union of discs into a square mask.

    Args:
        centres: (n, 2) middles around the origin.
        radii: (n,) in pixels.
        size: side of the mask in pixels.
        centre: x and y of the origin in the mask.

    Returns:
        (size, size) float32 in [0, 1].
    """
    mask = np.zeros((size, size), np.uint8)
    places = np.rint((centres + np.asarray(centre)) * _SUB).astype(int).tolist()
    for (x, y), radius in zip(places, np.rint(radii * _SUB).astype(int).tolist(), strict=True):
        cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_8, _SHIFT)
    return mask.astype(np.float32) * np.float32(1 / 255)


def soften(mask: FloatImage, sigma: float) -> FloatImage:
    """Rounds a mask's outline: blurs it and steepens the edge again to about a pixel's width."""
    blurred = cv2.GaussianBlur(mask, (0, 0), sigma)
    return np.asarray(np.clip((blurred - 0.5) * (1.2 * sigma) + 0.5, 0, 1), dtype=np.float32)
