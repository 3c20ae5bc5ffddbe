"""CutMix and MixUp: images of a batch are mixed with each other, and so are their labels."""

from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup

from leukofold.config import MixingConfig
from leukofold.errors import UserError


class Mixer:
    """Mixes batches with timm's ``Mixup``; a batch gets CutMix, MixUp or neither.

    CutMix (Yun et al. 2019) pastes a box of another image, its area drawn from Beta(alpha, alpha);
    MixUp (Zhang et al. 2018) adds two images in shares drawn from Beta(alpha, alpha). Targets are mixed
    in the same shares. Srivastava et al. 2026 takes each with probability .15 per batch.

    Args:
        config: Probabilities and parameters.
        classes: K.
        smoothing: Label smoothing of the targets.
        batch_size: Images that one process mixes at a time.

    Raises:
        UserError: That number is odd; timm mixes pairs.
    """

    def __init__(self, config: MixingConfig, classes: int, smoothing: float, batch_size: int) -> None:
        if batch_size % 2:
            raise UserError(
                f"mixing: images are mixed in pairs, but a process gets {batch_size} at a time; "
                "take a training.batch_size that leaves an even number, or switch cutmix and mixup off"
            )
        either = config.cutmix + config.mixup
        self._mixup: Any = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=config.mixup_alpha if config.mixup else 0.0,
            cutmix_alpha=config.cutmix_alpha if config.cutmix else 0.0,
            prob=either,
            switch_prob=config.cutmix / either,
            label_smoothing=smoothing,
            num_classes=classes,
        )

    @staticmethod
    def seed(seed: int) -> None:
        """Fixes what the next batches draw; timm draws from NumPy's global generator."""
        np.random.seed(seed % 2**32)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes a batch.

        Args:
            images: n x 3 x S x S uint8, n even.
            labels: n class indices.

        Returns:
            Images, float32 in 0..255, and n x K float32 targets.
        """
        mixed, targets = self._mixup(images.float(), labels)
        return mixed, targets


def build_mixer(config: MixingConfig, classes: int, smoothing: float, batch_size: int) -> Mixer | None:
    """Builds the mixer that the configuration names; None where nothing is mixed."""
    return Mixer(config, classes, smoothing, batch_size) if config.cutmix + config.mixup else None
