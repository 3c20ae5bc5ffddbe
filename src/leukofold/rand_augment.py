"""RandAugment (Cubuk et al. 2020), torchvision's for albumentations: random operations, all at one magnitude."""

from typing import Annotated, Any

import albumentations as A
import numpy as np
import torch
from pydantic import Field
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.tv_tensors import Video  # type: ignore[import-untyped]

BINS = 31
"""How many magnitudes there are: 0 to 30, as published."""


class RandAugment(A.ImageOnlyTransform):
    """Draws ``num_ops`` of 14 operations, of colour and of geometry, and does one after the other.

    Several images of one cell get the same operations in the same directions. Those that adapt to an image (contrast,
    equalise) adapt to each on its own. What geometry brings in from outside is black.

    Args:
        num_ops: N, at least 1.
        magnitude: M of all operations, 0 to 30.
        p: Probability of the transform.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        """What albumentations checks the arguments by."""

        num_ops: Annotated[int, Field(ge=1)]
        magnitude: Annotated[int, Field(ge=0, lt=BINS)]

    def __init__(self, num_ops: int = 2, magnitude: int = 9, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.num_ops = num_ops
        self.magnitude = magnitude
        self._transform = v2.RandAugment(num_ops, magnitude, BINS)

    def apply(self, img: np.ndarray, seed: int, **_: Any) -> np.ndarray:
        """Changes one image.

        Args:
            img: H x W x 3 uint8, RGB.
            seed: What the operations are drawn from.

        Returns:
            The same.
        """
        changed: np.ndarray = self.apply_to_images(img[None], seed)[0]
        return changed

    def apply_to_images(self, images: np.ndarray, seed: int, **_: Any) -> np.ndarray:
        """Changes several images alike.

        Args:
            images: N x H x W x 3 uint8, RGB.
            seed: What the operations are drawn from.

        Returns:
            The same.
        """
        frames = Video(torch.tensor(images).permute(0, 3, 1, 2))  # a copy, as an image may be read-only
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator, as training does
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the generators of GPUs too
            changed = self._transform(frames)
        return np.asarray(changed.permute(0, 2, 3, 1).numpy())

    def get_params(self) -> dict[str, Any]:
        """Draws the seed of a call's operations."""
        return {"seed": int(self.random_generator.integers(2**63))}
