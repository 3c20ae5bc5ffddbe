"""Where the cell is in an image, and where its nucleus.

Thresholds are Otsu's, of two classes (Otsu 1979) or of three (Liao et al. 2001), of how much more green than blue light
a pixel takes away: chromatin takes nearly all the green, red cells take both, whatever the exposure and the light.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.filters import threshold_multiotsu, threshold_otsu

# Lengths over the image's side
_BLUR = 1 / 120  # deviation of the smoothing: chromatin's grain and noise are finer, a nucleus's lobes are not
_SPECK = 1 / 100  # radius of what is too small to belong to a nucleus, and of the gaps in one that are closed
_GAP = 1 / 30  # half the distance between two lobes of one nucleus
_CENTRE = 1 / 5  # deviation of the weight that finds the nucleus of the cell in the middle
# Lengths over the nucleus's radius
_NECKS = (0.25, 0.4, 0.6)  # half the widths of bridges between touching cells that are cut
_REACH = 1.6  # how far the cytoplasm may extend from the nucleus


@dataclass(frozen=True)
class CellMasks:
    """What belongs to the cell in the middle of an image.

    Attributes:
        cell: S x S bool.
        nucleus: S x S bool, inside the cell; several parts where it is lobed.
    """

    cell: np.ndarray
    nucleus: np.ndarray


def cell_masks(image: np.ndarray) -> CellMasks:
    """Segments the cell in the middle of an image, and its nucleus.

    Of a cell that is segmented already, on pure black as in C-NMC, all that is not black is the cell (its largest
    piece, holes filled), and its more deeply stained part the nucleus. In a smear the nucleus is the most deeply
    stained of three classes, its parts nearest the middle; the cell is what is darker than the background around it,
    cut off at the necks to the cells that it touches.

    Args:
        image: S x S x 3 uint8, RGB.

    Returns:
        The masks; both are empty where nothing stands out.
    """
    if np.median(_border(image)) == 0:
        return _segmented(image)
    return _in_smear(image)


def _segmented(image: np.ndarray) -> CellMasks:
    """Segments a cell on pure black."""
    cell = _largest_filled((image[:, :, 0] | image[:, :, 1] | image[:, :, 2]) > 0)
    if not cell.any():
        return CellMasks(cell, cell)
    stain = _stain(*_smooth(image))
    threshold = threshold_otsu(stain[cell])  # type: ignore[no-untyped-call]
    return CellMasks(cell, _largest_filled(_opened(cell & (stain > threshold), len(image) * _SPECK)) & cell)


def _in_smear(image: np.ndarray) -> CellMasks:
    """Segments the cell in the middle of a smear."""
    green, blue = _smooth(image)
    nucleus = _nucleus_in_the_middle(_highest_class(_stain(green, blue), classes_below=2))
    if not nucleus.any():
        return CellMasks(nucleus, nucleus)
    foreground = _highest_class((255 - green).astype(np.uint8), classes_below=1) | nucleus
    return CellMasks(_around(nucleus, foreground), nucleus)


def _border(image: np.ndarray) -> np.ndarray:
    """Returns the brightest channel of the outermost pixels."""
    return np.asarray(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).max(axis=1))


def _smooth(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image's green and blue light, smoothed, each S x S float32."""
    green, blue = (cv2.GaussianBlur(image[:, :, k].astype(np.float32), (0, 0), len(image) * _BLUR) for k in (1, 2))
    return np.asarray(green), np.asarray(blue)


def _stain(green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Returns S x S uint8: the share by which green falls short of blue, 255 where there is no green."""
    return np.asarray(np.clip(255 - 255 * green / np.maximum(blue, 1), 0, 255), dtype=np.uint8)


def _highest_class(values: np.ndarray, classes_below: int) -> np.ndarray:
    """Tells which of S x S uint8 values lie above the first or second threshold of three classes."""
    if np.count_nonzero(np.bincount(values.ravel())) < 3:
        return np.zeros(values.shape, dtype=bool)
    thresholds = threshold_multiotsu(values, classes=3)  # type: ignore[no-untyped-call]
    return np.asarray(values > thresholds[classes_below - 1])


def _nucleus_in_the_middle(stained: np.ndarray) -> np.ndarray:
    """Keeps the parts, near each other, that have the most weight around the image's middle."""
    side = len(stained)
    closed = cv2.morphologyEx(stained.astype(np.uint8), cv2.MORPH_CLOSE, _disk(side * _SPECK))
    mask = _opened(_filled(closed.astype(bool)), side * _SPECK)
    _, parts = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), _disk(side * _GAP)))
    near = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (side * _CENTRE)) ** 2) for n in mask.shape]
    weight = np.bincount(parts[mask], weights=np.outer(*near)[mask])
    return mask & (parts == weight.argmax()) if len(weight) else mask


def _around(nucleus: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Returns the part of the foreground that belongs to the nucleus and to no other cell."""
    radius = float(np.sqrt(nucleus.sum() / np.pi))
    window = _window(nucleus, _REACH * radius)
    own = _small_holes_filled(foreground, nucleus.sum())[window]
    cell, nucleus = np.zeros_like(nucleus), nucleus[window]
    for neck in _NECKS:
        own = _cut_off(own, nucleus, neck * radius)
    own &= _distance_inside(~nucleus) < _REACH * radius
    _, pieces = cv2.connectedComponents((_opened(own, len(cell) * _SPECK) | nucleus).astype(np.uint8))
    cell[window] = _filled(np.isin(pieces, pieces[nucleus]))
    return cell


def _window(mask: np.ndarray, margin: float) -> tuple[slice, slice]:
    """Returns the rows and columns of a mask's bounding box and a margin in pixels around it."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    wide = int(margin) + 1
    return slice(max(y - wide, 0), y + height + wide), slice(max(x - wide, 0), x + width + wide)


def _cut_off(mask: np.ndarray, nucleus: np.ndarray, neck: float) -> np.ndarray:
    """Cuts off other cells, in the middle of bridges narrower than two necks.

    An erosion leaves the middles of cells; those apart from the nucleus, dilated again, are other cells.
    """
    eroded = _distance_inside(mask) > neck
    _, labels = cv2.connectedComponents((eroded | nucleus).astype(np.uint8))
    with_nucleus = np.isin(labels, labels[nucleus])
    from_others = _distance_inside(~(eroded & ~with_nucleus))
    return np.asarray(mask & ~((from_others <= neck) & (from_others < _distance_inside(~(eroded & with_nucleus)))))


def _distance_inside(mask: np.ndarray) -> np.ndarray:
    """Returns each pixel's distance from what is not in the mask, in pixels."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3))


def _small_holes_filled(mask: np.ndarray, area: float) -> np.ndarray:
    """Fills the holes below an area in pixels: pale middles of red cells, not what a ring of them encloses."""
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    return np.asarray(mask | (stats[:, cv2.CC_STAT_AREA] < area)[holes])


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Removes specks and threads that a disk of a radius in pixels does not fit into."""
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disk(radius)).astype(bool)


def _disk(radius: float) -> np.ndarray:
    """Returns a disk of a radius in pixels, at least 1, as a structuring element."""
    side = 2 * max(1, round(radius)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fills the holes of a mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return _drawn(mask, contours)


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    """Keeps the largest piece of a mask, and fills its holes."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return _drawn(mask, sorted(contours, key=cv2.contourArea)[-1:])


def _drawn(mask: np.ndarray, contours: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a mask of the shape of another, with all that contours enclose."""
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED).astype(bool)
