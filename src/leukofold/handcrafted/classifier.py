"""A support vector machine where a network is expected: images go in, logits come out."""

import numpy as np
import torch
from torch import nn

from leukofold.handcrafted.measures import measure
from leukofold.handcrafted.svm import SupportVectorMachine


class HandcraftedClassifier(nn.Module):
    """Measures images, on the CPU and one after the other, and classifies them.

    Args:
        machine: What a fold kept.
    """

    def __init__(self, machine: SupportVectorMachine) -> None:
        super().__init__()
        self.machine = machine

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns n x K logits of n x 3 x S x S uint8 images, RGB."""
        return torch.from_numpy(self.machine.logits(_measured(images))).to(images.device)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the n x D features that the machine sees, standardised."""
        return torch.from_numpy(self.machine.standardised(_measured(images))).to(images.device)


def _measured(images: torch.Tensor) -> np.ndarray:
    """Measures n x 3 x S x S uint8 images; n x D."""
    return np.stack([measure(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])
