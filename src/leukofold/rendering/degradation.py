"""WBCBench phase 2's degradations: uneven light, defocus and sensor noise at four severities."""

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.rendering import texture

MAX_SEVERITY = 4

BLUR_SIGMA = (0.0, 0.8, 1.4, 2.1, 3.0)
"""Largest standard deviation of the blur in pixels, by severity."""

NOISE_SIGMA = (0.0, 6.0, 11.0, 18.0, 27.0)
"""Largest standard deviation of the noise in grey levels, by severity."""

LIGHT_SHIFT = (0.0, 0.07, 0.13, 0.20, 0.28)
"""Largest relative change of the light, by severity."""


def degrade(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Degrades an image the way a worse microscope would: light first, then optics, then sensor.

    Each of the three gets a random share, between 45 and 100 %, of the severity's largest value, so that
    images of one severity differ in which fault dominates.

    Args:
        image: (H, W, 3) uint8 RGB.
        severity: 0 (unchanged) to 4.
        rng: source of shares, directions and noise.

    Returns:
        (H, W, 3) uint8 RGB; the same array when severity is 0.

    Raises:
        ValueError: severity is outside 0 to 4.
    """
    if not 0 <= severity <= MAX_SEVERITY:
        raise ValueError(f"severity must be 0 to {MAX_SEVERITY}, not {severity}")
    if severity == 0:
        return image
    shares = rng.uniform(0.45, 1.0, 3)
    height, width = image.shape[:2]
    shift = LIGHT_SHIFT[severity] * shares[0]
    gain = 1 + shift * (rng.choice([-1.0, 0.6]) + 0.25 * rng.normal(0, 0.5, 3))  # brightness and colour cast
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(0.6 * shift * np.cos(angle))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(0.6 * shift * np.sin(angle))
    field = 1 + x + y
    lit = cv2.merge([image[:, :, channel] * (field * np.float32(gain[channel])) for channel in range(3)])
    blurred = cv2.GaussianBlur(lit, (0, 0), BLUR_SIGMA[severity] * shares[1])
    white = texture.noise_tile(0.0)
    noise = cv2.merge([texture.crop(white, (height, width), rng) for _ in range(3)])
    noisy = cv2.addWeighted(blurred, 1, noise, NOISE_SIGMA[severity] * shares[2], 0.5)
    return np.clip(noisy, 0, 255).astype(np.uint8)
