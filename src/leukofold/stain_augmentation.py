"""Stain augmentation: the amount of each stain varies from image to image, as between laboratories.

Source: Tellez et al. 2018 (IEEE Transactions on Medical Imaging 37), section III: colour deconvolution after Ruifrok
and Johnston 2001, each stain scaled and shifted at random. albumentations' own ``HEStain`` is not fit for blood: its
presets paint smears with the colours of H&E, and its fitted methods turn nuclei green or stop at a blank image.
"""

from typing import Annotated, Any

import albumentations as A
import cv2
import numpy as np
from pydantic import Field
from skimage.color import hed_from_rgb, rgb_from_hed

_DENSITY = -np.log(np.maximum(np.arange(256) / 255, 1e-6)).astype(np.float32)
"""Optical density of each grey level; black is scikit-image's."""


class HEDJitter(A.ImageOnlyTransform):
    """Scales and shifts the haematoxylin, eosin and residual of an image at random.

    In optical densities that is one affine map of the colours, so any image passes, and without jitter it comes back as
    it was. (scikit-image's ``rgb2hed`` cuts negative amounts off, which alone changes the colours of blood.)

    Args:
        sigma: Each stain's amount is multiplied by U(1 - sigma, 1 + sigma), 0 <= sigma < 1.
        bias: U(-bias, bias) is then added to it, >= 0, optical density (natural logarithm).
        p: Probability of the transform.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        """What albumentations checks the arguments by."""

        sigma: Annotated[float, Field(ge=0, lt=1)]
        bias: Annotated[float, Field(ge=0)]

    def __init__(self, sigma: float = 0.05, bias: float = 0.05, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.sigma = sigma
        self.bias = bias

    def apply(self, img: np.ndarray, scale: np.ndarray, shift: np.ndarray, **_: Any) -> np.ndarray:
        """Changes one image.

        Args:
            img: H x W x 3 uint8, RGB.
            scale: Factors of the three stains.
            shift: What is added to them, optical density.

        Returns:
            The same.
        """
        matrix = np.column_stack([(hed_from_rgb * scale @ rgb_from_hed).T, shift @ rgb_from_hed])
        density = cv2.transform(_DENSITY[img], matrix)
        return np.asarray(np.clip(np.rint(255 * np.exp(-density)), 0, 255), dtype=np.uint8)

    def get_params(self) -> dict[str, Any]:
        """Draws an image's factors and shifts."""
        return {
            "scale": self.random_generator.uniform(1 - self.sigma, 1 + self.sigma, 3),
            "shift": self.random_generator.uniform(-self.bias, self.bias, 3),
        }
