"""What timm asks of a convolutional network of our own: feature maps, their mean over all places, a classifier."""

from abc import ABC, abstractmethod

import torch
from timm.layers.classifier import ClassifierHead
from torch import nn


class PooledNetwork(nn.Module, ABC):
    """A network whose last feature maps are pooled.

    Args:
        width: C, channels of the last feature maps.
        num_classes: Of the classifier; 0: the pooled features come out.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``, or "" for none.
    """

    def __init__(self, width: int, num_classes: int, drop_rate: float, global_pool: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = width
        self.head = ClassifierHead(width, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    @abstractmethod
    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the last feature maps, n x C x H x W."""

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pools feature maps, and classifies unless ``pre_logits``."""
        found: torch.Tensor = self.head(maps, pre_logits=pre_logits)
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns n x num_classes logits, or n x C features."""
        return self.forward_head(self.forward_features(images))
