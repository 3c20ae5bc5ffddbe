"""Augmenting training images, with albumentations, and torchvision's RandAugment among its transforms.

Every training sample brings its own seed (see ``sampling.EpochSampler``), so neither the number of
workers nor their lifetime changes or repeats an augmentation.
"""

import difflib
import random
import warnings
from collections.abc import Sequence

import albumentations as A
import numpy as np

from leukofold.config import Transform
from leukofold.errors import UserError

OWN = ("HEDJitter", "RandAugment")
"""Transforms that are not albumentations': see ``leukofold.stain_augmentation`` and ``leukofold.rand_augment``."""


class Augmentation:
    """Augments prepared images.

    Args:
        transforms: What is done, in order.

    Raises:
        UserError: A transform is unknown to albumentations or does not take an argument.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.compose = A.Compose([build_transform(spec) for spec in transforms])

    def __call__(self, images: np.ndarray, seed: int) -> np.ndarray:
        """Augments the images of one cell, all in the same way, so that they stay registered.

        Args:
            images: M x S x S x 3 uint8, RGB.
            seed: What the augmentation is drawn from.

        Returns:
            M x S x S x 3 uint8.
        """
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if len(images) == 1:
            return np.asarray(self.compose(image=images[0])["image"])[None]
        return np.asarray(self.compose(images=images)["images"])


def build_transform(spec: Transform) -> A.BasicTransform:
    """Builds one albumentations transform from its name and arguments.

    Args:
        spec: The configuration's entry.

    Returns:
        The transform.

    Raises:
        UserError: It does not exist, or does not take these arguments.
    """
    known = {
        name: kind for name, kind in vars(A).items() if isinstance(kind, type) and issubclass(kind, A.BasicTransform)
    }
    if spec.name == "HEDJitter":
        from leukofold.stain_augmentation import HEDJitter  # here, as scikit-image takes time to load

        known[spec.name] = HEDJitter
    if spec.name == "RandAugment":
        from leukofold.rand_augment import RandAugment  # here, as torchvision does

        known[spec.name] = RandAugment
    if spec.name not in known:
        near = difflib.get_close_matches(spec.name, [*known, *OWN], n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see the albumentations documentation"
        raise UserError(f"image.augment: albumentations {A.__version__} has no transform '{spec.name}'; {hint}")
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (spec.model_extra or {}).items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns of arguments that it ignores
            transform = known[spec.name](**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"image.augment: {spec.name}: {error}") from None
    assert isinstance(transform, A.BasicTransform)
    return transform
