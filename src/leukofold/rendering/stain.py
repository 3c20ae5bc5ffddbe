"""Romanowsky stains in optical density, and how they differ from patient to patient.

Light through a stained cell follows Beer-Lambert: intensity = light * exp(-sum_k concentration_k * vector_k).
Every structure is drawn as a concentration map of one stain, so overlaps darken as they do under a microscope
(Ruifrok and Johnston 2001 use the same model the other way round).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leukofold.rendering.texture import FloatImage

STAINS: dict[str, tuple[float, float, float]] = {
    "chromatin": (0.54, 1.00, 0.125),  # azure-eosin complex on DNA: purple
    "basophilic": (1.00, 0.95, 0.22),  # methylene blue and azure on RNA: blue cytoplasm
    "acidophilic": (0.50, 1.00, 0.50),  # eosin on protein: pink cytoplasm
    "specific": (0.62, 1.00, 0.30),  # neutrophil granules: lilac
    "azurophil": (0.43, 1.00, 0.27),  # primary granules: reddish purple
    "eosinophil": (0.33, 1.00, 0.70),  # eosinophil granules: orange-red
    "basophil": (0.56, 1.00, 0.18),  # basophil granules: dark purple
    "haemoglobin": (0.66, 1.00, 0.56),  # red cells
}
"""Optical density per unit concentration in red, green and blue; the strongest channel is 1."""

_INDEX = {name: index for index, name in enumerate(STAINS)}


@dataclass(frozen=True)
class Appearance:
    """How one patient's smear looks: stain, light, optics and red cells.

    Attributes:
        light: (3,) background colour in RGB, 0 to 255.
        vectors: (number of stains, 3) optical density per unit concentration, strength included.
        scale: magnification relative to the standard (1 = about 9 pixels per micrometre in 368 pixels).
        blur: standard deviation of the optical blur in pixels.
        sharpening: strength of the camera's unsharp mask.
        noise: standard deviation of the sensor noise in grey levels.
        vignette: relative loss of light towards the corners.
        tilt: (2,) relative gradient of light across the image, in x and y.
        quality: JPEG quality.
        red_cells: expected number of red cells per image.
        pallor: mean depth of the red cells' central pallor, 0 to 1.
        crenation: share of crenated red cells, 0 to 1.
        stacking: share of red cells that lie against or on another one, 0 to 1.
    """

    light: NDArray[np.float32]
    vectors: NDArray[np.float32]
    scale: float
    blur: float
    sharpening: float
    noise: float
    vignette: float
    tilt: tuple[float, float]
    quality: int
    red_cells: float
    pallor: float
    crenation: float
    stacking: float


def stain_vectors(rng: np.random.Generator, hue: float, strength: float) -> NDArray[np.float32]:
    """Stain vectors of one patient: each stain's strength and hue vary, together and on their own.

    Args:
        rng: source of the variation.
        hue: relative standard deviation of a vector's components.
        strength: relative standard deviation of the overall and the single strengths.

    Returns:
        (number of stains, 3) float32.
    """
    vectors = np.array(list(STAINS.values()))
    shared_hue = rng.normal(0, hue, 3)  # pH of the buffer shifts all stains alike
    vectors = vectors * np.exp(shared_hue + rng.normal(0, hue / 2, vectors.shape))
    overall = rng.normal(0, strength)
    vectors *= np.exp(overall + rng.normal(0, strength, (len(vectors), 1)))
    return vectors.astype(np.float32)


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Draws the look of one patient's smear.

    Args:
        rng: the patient's own generator.

    Returns:
        An appearance; three quarters of the patients have a cream background, the others a cool one.
    """
    cream = rng.random() < 0.75
    mean, spread = ((252, 228, 203), (1.0, 1.5, 4.0)) if cream else ((231, 225, 232), (3, 2.5, 3))
    brightness = 1 + rng.normal(0, 0.012)
    return Appearance(
        light=np.clip(brightness * rng.normal(mean, spread), 190, 254).astype(np.float32),
        vectors=stain_vectors(rng, hue=0.035, strength=0.06),
        scale=float(np.clip(rng.normal(1.0, 0.035), 0.9, 1.1)),
        blur=float(rng.uniform(0.45, 0.80)),
        sharpening=float(rng.uniform(0.25, 0.80)),
        noise=float(rng.uniform(0.6, 1.6)),
        vignette=float(rng.uniform(0.0, 0.06)),
        tilt=(float(rng.normal(0, 0.015)), float(rng.normal(0, 0.015))),
        quality=int(rng.integers(88, 96)),
        red_cells=float(np.clip(rng.normal(20, 5), 8, 32)),
        pallor=float(np.clip(rng.normal(0.58, 0.15), 0.1, 0.85)),
        crenation=float(np.clip(rng.exponential(0.05), 0, 0.5)),
        stacking=float(np.clip(rng.exponential(0.08), 0, 0.3)),
    )


def optical_density(layers: Mapping[str, FloatImage], appearance: Appearance) -> FloatImage:
    """Adds up what the stains absorb.

    Args:
        layers: concentration map (H, W) of each stain by its name in ``STAINS``.
        appearance: the patient's stain vectors.

    Returns:
        (H, W, 3) float32 optical density.
    """
    vectors = appearance.vectors[[_INDEX[name] for name in layers]]
    # not a matrix product: BLAS would start threads in every worker process
    return np.asarray(cv2.transform(cv2.merge(list(layers.values())), vectors.T), dtype=np.float32)


def transmit(density: NDArray[Any], light: NDArray[np.float32]) -> FloatImage:
    """Light that comes through stained material (Beer-Lambert).

    Args:
        density: (H, W, 3) float32 optical density.
        light: (3,) or (H, W, 3) incident light, 0 to 255.

    Returns:
        (H, W, 3) float32 intensity.
    """
    return np.multiply(cv2.exp(-density), light, dtype=np.float32)
