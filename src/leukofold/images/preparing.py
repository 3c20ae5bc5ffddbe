"""What is done to a decoded image once and for all: the competition's own step, denoising, stain, crop, size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch

from leukofold.config import ImageConfig
from leukofold.images.denoising import Denoising, denoise, denoise_batch
from leukofold.images.stain import StainNormalisation

VERSION = 1
"""Raised whenever the same settings give other pixels, so that caches of an older version count as outdated."""

FORM = {"denoise", "stain", "crop", "crops", "size"}
"""Keys of ``ImageConfig`` that decide a prepared image's pixels: networks that share them can see the same one."""


class Preparation:
    """Brings decoded images to the network's input size; the same for training, validation and test.

    Args:
        config: Denoising, stain, crop and size.
        preprocess: The competition's own first step, HWC uint8 to HWC uint8.
    """

    def __init__(self, config: ImageConfig, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
        self.size = config.size
        self.preprocess = preprocess
        self.denoising = Denoising(**config.denoise.model_dump()) if config.denoise is not None else None
        # Sums come out in another order on a GPU; the last bit of a pixel may differ from a CPU's
        self.device = "cuda" if self.denoising is not None and torch.cuda.is_available() else "cpu"
        self.stain = StainNormalisation(config.stain) if config.stain is not None else None
        self.crop, self.crops = config.crop, dict(config.crops)
        self.geometries = {split: _geometry(crop, config.size) for split, crop in self.crops.items()}
        self.geometry = _geometry(config.crop, config.size)

    def settings(self) -> dict[str, Any]:
        """Returns all that decides the pixels, besides the files and the competition."""
        return {
            "version": VERSION,
            "denoise": vars(self.denoising) if self.denoising is not None else None,
            "device": self.device,
            "crop": self.crop,
            "size": self.size,
            "interpolation": "area",
            # only where they are set: a cache of an older version is still good
            **({"stain": self.stain.method} if self.stain is not None else {}),
            **({"crops": self.crops} if self.crops else {}),
        }

    def __call__(self, image: np.ndarray, split: str = "") -> np.ndarray:
        """Prepares one image.

        Args:
            image: H x W x 3 uint8, RGB.
            split: The split or target domain that it is of, which may have a crop of its own.

        Returns:
            size x size x 3 uint8.
        """
        image = self.preprocess(image)
        return self._finished(denoise(image, self.denoising) if self.denoising is not None else image, split)

    def many(self, images: Sequence[np.ndarray], splits: Sequence[str], pool: Executor) -> list[np.ndarray]:
        """Prepares many images with all cores, and denoises on the GPU where there is one.

        Args:
            images: Each H x W x 3 uint8, RGB.
            splits: The split of each.
            pool: Threads.

        Returns:
            Each size x size x 3 uint8, in the same order.
        """
        if self.denoising is None or self.device == "cpu":
            return list(pool.map(self, images, splits))
        stacks: dict[tuple[int, ...], list[int]] = {}
        cleaned = [self.preprocess(image) for image in images]
        for position, image in enumerate(cleaned):
            stacks.setdefault(image.shape, []).append(position)
        for positions in stacks.values():
            stack = torch.from_numpy(np.stack([cleaned[i] for i in positions])).permute(0, 3, 1, 2)
            result = denoise_batch(stack.to(self.device), self.denoising).permute(0, 2, 3, 1).cpu().numpy()
            for position, image in zip(positions, result, strict=True):
                cleaned[position] = image
        return list(pool.map(self._finished, cleaned, splits))

    def _finished(self, image: np.ndarray, split: str) -> np.ndarray:
        """Normalises the stain, crops and resizes."""
        if self.stain is not None:  # before the crop: the background tells of the light
            image = self.stain(image)
        result: np.ndarray = self.geometries.get(split, self.geometry)(image=image)["image"]
        return result


def _geometry(crop: int | None, size: int) -> A.Compose:
    """Builds crop and resize."""
    steps: list[A.BasicTransform] = []
    if crop is not None:
        steps.append(A.CenterCrop(crop, crop, pad_if_needed=True))
    return A.Compose([*steps, A.Resize(size, size, interpolation=cv2.INTER_AREA)])
