"""Perceptual hashes: 256 bits that stay close when an image is encoded again, resized or moved by a pixel."""

import cv2
import numpy as np

HASH_BYTES = 32
HASH_VERSION = 1
"""Raised whenever the same image gives another hash, so that stored hashes count as outdated."""

_SIDE = 64  # pixels of the reduced image
_LOW = 16  # frequencies kept per direction
_NOTHING = 0.5  # coefficients below this, on the scale of grey levels, count as none: blank images hash alike


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hashes what an image looks like (pHash; C. Zauner, *Implementation and Benchmarking of Perceptual Image Hashes*).

    The signs of the 16 x 16 lowest frequencies of the grey image, reduced to 64 x 64 whatever its sides. The signs
    are taken against zero, around which the frequencies above the mean lie, and not against their median as in the
    original: of a cell on black many coefficients are near zero, and a median between them would move with noise.

    Args:
        image: H x W x 3 uint8, RGB.

    Returns:
        32 uint8, 256 bits; the first one, the mean's, is 0.
    """
    height, width = image.shape[0] // 2, image.shape[1] // 2
    if min(height, width) >= 2 * _SIDE:  # an exact half is quick, and leaves a quarter of the pixels to the rest
        image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    bits = cv2.dct(small.astype(np.float32))[:_LOW, :_LOW] > _NOTHING
    bits[0, 0] = False
    return np.packbits(bits)
