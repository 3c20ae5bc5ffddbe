"""Stain normalisation: each image on its own is brought to the colours of a fixed reference.

Sources: Reinhard et al. 2001 (mean and deviation of each colour channel); Macenko et al. 2009 (two stains found in the
optical densities of the image).

Macenko's method was made for haematoxylin and eosin. On Romanowsky stains three of its habits fail, and are changed
here: densities are relative to the image's own background, not to a white that no microscope promises; a pixel counts
as stained if it absorbs any colour, as nuclei hardly absorb blue, not if it absorbs every one; and the stain of nuclei
is the one that absorbs less blue, as red cells may absorb as much red.
"""

from functools import reduce
from typing import Literal

import cv2
import numpy as np

WHITE = 240.0
"""Grey level of the background where it is brought to white; Macenko et al.'s transmitted light."""

NUCLEAR, OTHER = (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)
"""Reference of Macenko's method, published with its code: haematoxylin's and eosin's densities in red, green, blue."""

STRENGTHS = (1.9705, 1.0308)
"""The same for their concentrations: 99th percentiles."""

LAB_MEAN, LAB_DEVIATION = (80.0, 9.0, 5.0), (15.0, 10.0, 13.0)
"""Reference of Reinhard's method, CIELAB, chosen here: about a cell among red cells before the cream background of a
May-Gruenwald-Giemsa smear."""

_BRIGHTEST = 90
"""Percentile of brightness above which pixels are background."""

_DARK = 100
"""A background with less than this in a channel, in grey levels, is none that light shines through."""

_FAINT = 0.15
"""Densities below this, natural logarithm, are no stain (Macenko et al.'s beta)."""

_RARE = 0.01
"""A smaller share of stained pixels tells nothing of the stains."""

_ALIKE = 3.0
"""Deviations of a colour channel, and least angles in degrees between two stains, below which there is nothing to go
by."""


class StainNormalisation:
    """Normalises the colours of images, each on its own.

    An image that shows no stains before a lit background (blank, black, of one colour, or a cell cut out on black)
    comes back unchanged.

    Args:
        method: ``macenko``: nuclei and the rest to the reference's two stains on white; ``reinhard``: mean and
            deviation of the channels in CIELAB to the reference's, so the result depends on how much of the image is
            cell; ``light``: the background to white, which undoes lamp and white balance, and leaves the stains alone.
    """

    def __init__(self, method: Literal["macenko", "reinhard", "light"]) -> None:
        self.method = method

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Normalises an image.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            The same; the very image where there is nothing to go by.
        """
        background = find_background(image)
        if background.min() < _DARK:
            return image
        density = optical_density(image, background)
        stained = reduce(np.maximum, cv2.split(density)) >= _FAINT
        if np.count_nonzero(stained) < max(2, _RARE * stained.size):
            return image
        if self.method == "light":
            return cv2.LUT(image, _rounded(np.arange(256)[:, None] * WHITE / background)[None])
        return reinhard(image) if self.method == "reinhard" else macenko(image, density, density[stained])


def find_background(image: np.ndarray) -> np.ndarray:
    """Finds the colour of the light: the median of the brightest tenth of an H x W x 3 image, 3 grey levels."""
    brightness = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(np.median(image[brightness >= np.percentile(brightness, _BRIGHTEST)], axis=0))


def optical_density(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns what is absorbed of the background's light: ln((background + 1) / (image + 1)), H x W x 3 float32."""
    table = np.log((background + 1) / (np.arange(256)[:, None] + 1)).astype(np.float32)
    return np.asarray(cv2.LUT(image, table[None]))


def reinhard(image: np.ndarray) -> np.ndarray:
    """Brings mean and deviation of each channel to the reference's.

    Args:
        image: H x W x 3 uint8, RGB.

    Returns:
        The same; the very image where a channel does not vary.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    mean, deviation = (moment.ravel() for moment in cv2.meanStdDev(lab))
    if deviation.min() < _ALIKE:
        return image
    factor = np.array(LAB_DEVIATION) / deviation
    normalised = lab * np.float32(factor) + np.float32(LAB_MEAN - mean * factor)
    return _rounded(cv2.cvtColor(normalised, cv2.COLOR_LAB2RGB) * 255)


def macenko(image: np.ndarray, density: np.ndarray, stained: np.ndarray) -> np.ndarray:
    """Brings an image's two stains to the reference's.

    Args:
        image: H x W x 3 uint8, RGB.
        density: Its optical densities, H x W x 3 float32.
        stained: Those of its stained pixels, n x 3.

    Returns:
        The same as the image; the very image where two stains cannot be told apart.
    """
    stains = find_stains(stained)
    if np.degrees(np.arccos(np.clip(stains[:, 0] @ stains[:, 1], -1, 1))) < _ALIKE:
        return image
    unmixing = np.linalg.pinv(stains)
    strengths = np.percentile(stained @ unmixing.T, 99, axis=0)
    if strengths.min() < _FAINT:
        return image
    mixing = np.column_stack([NUCLEAR, OTHER]) * (STRENGTHS / strengths) @ unmixing
    densities = np.maximum(cv2.transform(density, mixing), -1)  # brighter is cut off in any case, and may overflow
    return _rounded(WHITE * np.exp(-densities))


def find_stains(stained: np.ndarray) -> np.ndarray:
    """Finds the two stains of an image (Macenko et al. 2009, section 2).

    Pixels lie between two directions in the plane of their densities' largest eigenvectors; the 1st and 99th percentile
    of their angles are the stains.

    Args:
        stained: Optical densities of stained pixels, n x 3, n >= 2.

    Returns:
        3 x 2, unit columns: the stain of nuclei, and the other.
    """
    plane = np.linalg.eigh(np.cov(stained.T.astype(np.float64)))[1][:, 1:]
    plane *= np.where(stained.sum(axis=0) @ plane < 0, -1, 1)  # towards the pixels: no angle passes 180 degrees
    angles = np.arctan2(*(stained @ plane).T)
    extremes = np.percentile(angles, (1, 99))
    stains = plane @ np.array([np.sin(extremes), np.cos(extremes)])
    return np.asarray(stains[:, np.argsort(stains[2])])


def _rounded(values: np.ndarray) -> np.ndarray:
    """Rounds to uint8, cutting off what lies outside."""
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
