"""What can be measured of a cell and its nucleus: shape, texture and colour.

The kinds of measures are those of Putzu, Caocci and Di Ruberto (Artificial Intelligence in Medicine 62, 2014): shape,
co-occurrence of grey levels (Haralick et al. 1973), statistics of colour; local binary patterns (Ojala et al. 2002) are
added.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.measure import perimeter_crofton, regionprops

from leukofold.handcrafted.masks import CellMasks, cell_masks

_PARTS = ("cell", "nucleus")
_SHAPE = (
    "area",
    "perimeter",
    "equivalent_diameter",
    "eccentricity",
    "solidity",
    "extent",
    "form_factor",
    "major_axis",
    "minor_axis",
)
_LEVELS = 16  # grey levels of the co-occurrence matrices
_DISTANCES = (1, 2, 4)  # pixels
_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_GLCM = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_NEIGHBOURS = 8  # of a local binary pattern, 1 pixel away
_PATTERNS = _NEIGHBOURS + 2  # uniform ones by their number of ones, and all others together
_CHANNELS = ("red", "green", "blue", "lightness", "a", "b")
_FLAT = 1e-3  # a smaller deviation is rounding, of which no skewness can be told
_MOMENTS = ("mean", "deviation", "skewness")

_OF_A_PART = (
    *_SHAPE,
    *(f"glcm_{name}_{distance}" for name in _GLCM for distance in _DISTANCES),
    *(f"lbp_{k}" for k in range(_PATTERNS)),
    *(f"{channel}_{moment}" for moment in _MOMENTS for channel in _CHANNELS),
)
NAMES: tuple[str, ...] = (
    *(f"{part}_{name}" for part in _PARTS for name in _OF_A_PART),
    "nucleus_share",
    "nucleus_offset",
)
"""The measures, in order: those of the cell, those of the nucleus, and two of both.

Areas and lengths are in pixels of the image given; axes are those of the ellipse of the same second moments,
perimeters Crofton's. ``form_factor`` is 4 pi area / perimeter^2, ``extent`` the share of the bounding box,
``solidity`` that of the convex hull. ``glcm_<property>_<distance>`` is the mean over four directions, ``lbp_<k>`` the
share of pixels with that pattern.
Colours are sRGB (0 to 255) and CIE L*a*b*; a skewness is the third standardised moment. ``nucleus_share`` is the
nucleus's area over the cell's, ``nucleus_offset`` the distance of their centres in pixels.
"""


def measure(image: np.ndarray) -> np.ndarray:
    """Measures the cell in the middle of an image.

    Args:
        image: S x S x 3 uint8, RGB.

    Returns:
        D float32, in the order of ``NAMES``; always finite, 0 where there is no cell or no nucleus to measure.
    """
    masks = cell_masks(image)
    if not masks.cell.any():
        return np.zeros(len(NAMES), dtype=np.float32)
    x, y, width, height = cv2.boundingRect(masks.cell.astype(np.uint8))
    window = slice(y, y + height), slice(x, x + width)
    return np.array([*_measures(image[window], CellMasks(masks.cell[window], masks.nucleus[window]))], np.float32)


def _measures(image: np.ndarray, masks: CellMasks) -> Iterator[float]:
    """Yields every measure of a cell that fills its image."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    channels = _channels(image)
    patterns = local_binary_pattern(grey, _NEIGHBOURS, 1, method="uniform")  # type: ignore[no-untyped-call]
    for mask in (masks.cell, masks.nucleus):
        if mask.any():
            yield from _shape(mask)
            yield from _cooccurrence(grey, mask)
            yield from np.bincount(patterns[mask].astype(np.int64), minlength=_PATTERNS) / mask.sum()
            yield from _colour(np.stack([channel[mask] for channel in channels]))
        else:
            yield from np.zeros(len(_OF_A_PART))
    yield masks.nucleus.sum() / masks.cell.sum()
    yield _offset(masks)


def _shape(mask: np.ndarray) -> list[float]:
    """Measures the shape of a mask that is not empty, as one region whatever its parts, in the order of ``_SHAPE``."""
    region = regionprops(mask.astype(np.uint8))[0]  # type: ignore[no-untyped-call]
    perimeter = perimeter_crofton(mask)  # type: ignore[no-untyped-call]
    return [
        region.area,
        perimeter,
        region.equivalent_diameter_area,
        region.eccentricity,
        region.area / _hull_area(mask),
        region.extent,
        4 * np.pi * region.area / perimeter**2,
        region.axis_major_length,
        region.axis_minor_length,
    ]


def _hull_area(mask: np.ndarray) -> float:
    """Counts the pixels whose middles lie in the convex hull of a mask, by Pick's theorem.

    regionprops has it too, but draws the hull, which takes longer than all other measures together.
    """
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(outlines))[:, 0]
    edges = np.roll(hull, -1, axis=0) - hull
    return float(cv2.contourArea(hull) + np.gcd(*np.abs(edges.T)).sum() / 2 + 1)


def _cooccurrence(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Measures the texture of H x W uint8 grey levels inside a mask, property by property, distance by distance.

    Levels are spread from the darkest to the brightest hundredth, so that they tell the pattern and not the stain.
    What lies outside is a level of its own, which is left out of the matrices: only pairs of pixels inside count.
    """
    low, high = np.percentile(grey[mask], (1, 99))
    inside = np.clip((grey - low) / max(high - low, 1) * _LEVELS, 0, _LEVELS - 1).astype(np.uint8)
    levels = np.where(mask, inside + 1, 0).astype(np.uint8)
    matrices = graycomatrix(  # type: ignore[no-untyped-call]
        levels, _DISTANCES, _ANGLES, levels=_LEVELS + 1, symmetric=True
    )
    inner = matrices[1:, 1:]
    return np.concatenate(
        [graycoprops(inner, name).mean(axis=1) for name in _GLCM]  # type: ignore[no-untyped-call]
    )


def _channels(image: np.ndarray) -> list[np.ndarray]:
    """Returns red, green, blue, L*, a* and b* of an image, each H x W."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return [*cv2.split(image), *cv2.split(lab)]


def _colour(channels: np.ndarray) -> np.ndarray:
    """Returns mean, deviation and skewness of 6 channels x n pixels, moment by moment."""
    mean = channels.mean(axis=1)
    centred = channels - mean[:, None]
    squares = centred * centred
    deviation = np.sqrt(squares.mean(axis=1))
    third = (squares * centred).mean(axis=1)
    skewness = np.divide(third, deviation**3, out=np.zeros_like(mean), where=deviation > _FLAT)
    return np.concatenate([mean, deviation, skewness])


def _offset(masks: CellMasks) -> float:
    """Returns the distance between the centres of cell and nucleus in pixels; 0 without nucleus."""
    if not masks.nucleus.any():
        return 0.0
    moments = [cv2.moments(mask.astype(np.uint8), binaryImage=True) for mask in (masks.cell, masks.nucleus)]
    cell, nucleus = (np.array([m["m10"], m["m01"]]) / m["m00"] for m in moments)
    return float(np.linalg.norm(cell - nucleus))
