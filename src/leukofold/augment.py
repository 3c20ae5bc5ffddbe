"""From a decoded image to the network's uint8 input, with albumentations.

Every training sample brings its own seed (see ``loaders.EpochSampler``), so neither the number of
workers nor their lifetime changes or repeats an augmentation.
"""

import difflib
import random
import warnings
from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np

from leukofold.config import ImageConfig, Transform
from leukofold.errors import UserError


class ImagePipeline:
    """Crops, resizes and, in training, augments.

    Args:
        config: Crop, size and the list of transforms.
        training: Whether to augment.
        preprocess: The competition's own first step, HWC uint8 to HWC uint8.

    Raises:
        UserError: A transform is unknown to albumentations or does not take an argument.
    """

    def __init__(self, config: ImageConfig, training: bool, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
        self.preprocess = preprocess
        steps: list[A.BasicTransform] = []
        if config.crop is not None:
            steps.append(A.CenterCrop(config.crop, config.crop, pad_if_needed=True))
        steps.append(A.Resize(config.size, config.size, interpolation=cv2.INTER_AREA))
        if training:
            steps += [build_transform(spec) for spec in config.augment]
        self.compose = A.Compose(steps)

    def __call__(self, image: np.ndarray, seed: int = 0) -> np.ndarray:
        """Transforms one image.

        Args:
            image: H x W x 3 uint8, RGB.
            seed: What its augmentation is drawn from.

        Returns:
            3 x size x size uint8.
        """
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result = self.compose(image=self.preprocess(image))["image"]
        return np.ascontiguousarray(result.transpose(2, 0, 1))


def build_transform(spec: Transform) -> A.BasicTransform:
    """Builds one albumentations transform from its name and arguments.

    Args:
        spec: The configuration's entry.

    Returns:
        The transform.

    Raises:
        UserError: It does not exist, or does not take these arguments.
    """
    known = [name for name, kind in vars(A).items() if isinstance(kind, type) and issubclass(kind, A.BasicTransform)]
    if spec.name not in known:
        near = difflib.get_close_matches(spec.name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see the albumentations documentation"
        raise UserError(f"image.augment: albumentations {A.__version__} has no transform '{spec.name}'; {hint}")
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in (spec.model_extra or {}).items()
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns of arguments that it ignores
            transform = getattr(A, spec.name)(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        raise UserError(f"image.augment: {spec.name}: {error}") from None
    assert isinstance(transform, A.BasicTransform)
    return transform
