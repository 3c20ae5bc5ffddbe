"""Random fields cut from precomputed periodic tiles: noise of several grain sizes and scattered granules.

Filtering noise anew for every cell would cost more than everything else together; a random crop of a fixed
tile, randomly flipped and transposed, looks as random and costs a copy.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]

TILE = 512
"""Side of a tile in pixels; a crop must fit into it."""

_TILE_SEED = 20_260_226  # tiles are part of the renderer, not of a spec


@lru_cache(maxsize=64)
def noise_tile(sigma: float) -> FloatImage:
    """Periodic Gaussian-filtered white noise.

    Args:
        sigma: standard deviation of the filter in pixels; sets the grain size.

    Returns:
        (TILE, TILE) float32 of zero mean and unit variance.
    """
    rng = np.random.default_rng([_TILE_SEED, 0, round(sigma * 100)])
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    spectrum *= np.exp(-2 * (np.pi * sigma) ** 2 * (fx**2 + fy**2))
    spectrum[0, 0] = 0
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.asarray(tile / tile.std(), dtype=np.float32)


@lru_cache(maxsize=64)
def weave_tile(wavelength: float) -> FloatImage:
    """Interwoven dark and pale worms: strands of chromatin and the gaps between them.

    Noise of a single wavelength has no blobs: where it changes sign it forms a labyrinth.

    Args:
        wavelength: distance in pixels from one strand to the next.

    Returns:
        (TILE, TILE) float32 of zero mean and unit variance, positive in the gaps.
    """
    rng = np.random.default_rng([_TILE_SEED, 2, round(wavelength * 100)])
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :]
    away = np.hypot(fx, fy) * wavelength - 1
    spectrum *= np.exp(-((away / np.where(away > 0, 0.32, 1.0)) ** 2))  # irregular, but nothing finer than a strand
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.asarray(tile / tile.std(), dtype=np.float32)


@lru_cache(maxsize=64)
def granule_tile(radius: float, spacing: float, missing: float, ragged: float = 0.0) -> FloatImage:
    """Granules scattered more evenly than by pure chance, as they are in cytoplasm.

    Args:
        radius: mean granule radius in pixels (individual radii vary by a third).
        spacing: side in pixels of the grid cell that holds one jittered granule.
        missing: share of grid cells left empty; 0 packs densely, 0.5 looks scattered.
        ragged: by how many pixels outlines are distorted; 0 leaves round granules.

    Returns:
        (TILE, TILE) float32 in [0, 1]; 1 in the middle of a granule.
    """
    rng = np.random.default_rng([_TILE_SEED, 1, *(round(100 * number) for number in (radius, spacing, missing))])
    scale = 3  # drawn enlarged, for sub-pixel sizes
    tile = np.zeros((TILE * scale, TILE * scale), np.uint8)
    grid = np.arange(0, TILE, spacing)
    centres = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    centres = centres[rng.random(len(centres)) >= missing]
    centres = centres + rng.uniform(-0.7, 0.7, centres.shape) * spacing
    radii = radius * np.clip(rng.normal(1.0, 0.33, len(centres)), 0.35, 1.8)
    for (x, y), r in zip(centres * scale, radii * scale, strict=True):
        cv2.circle(tile, (round(x * 16), round(y * 16)), round(r * 16), 255, -1, cv2.LINE_AA, 4)
    if ragged:
        y, x = np.indices(tile.shape, dtype=np.float32)
        waves = cv2.resize(noise_tile(1.4), tile.shape, interpolation=cv2.INTER_LINEAR) * np.float32(ragged * scale)
        moved = cv2.remap(tile, x + waves, y + waves.T, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        tile = np.asarray(moved, dtype=np.uint8)
    soft = cv2.resize(tile.astype(np.float32) / 255, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(soft, (0, 0), 0.35 + 0.2 * radius), dtype=np.float32)


def crop(tile: FloatImage, shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """Cuts a random window from a tile, randomly flipped and transposed.

    Args:
        tile: (TILE, TILE) periodic array.
        shape: (height, width); larger than TILE, the tile repeats without a seam.
        rng: source of the three random choices.

    Returns:
        A float32 view of shape ``shape``; do not write into it.
    """
    height, width = shape
    if max(shape) > TILE:
        tile = np.tile(tile, (1 + height // TILE, 1 + width // TILE))
    bits = int(rng.integers(8))
    if bits & 1 and tile.shape[0] == tile.shape[1]:
        tile = tile.T
    y = int(rng.integers(tile.shape[0] - height + 1))
    x = int(rng.integers(tile.shape[1] - width + 1))
    window = tile[y : y + height, x : x + width]
    return window[:: -1 if bits & 2 else 1, :: -1 if bits & 4 else 1]
