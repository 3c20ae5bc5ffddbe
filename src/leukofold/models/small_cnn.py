"""A small convolutional network to train from scratch, known to timm under the name ``small_cnn``.

It is the baseline that a pretrained network has to beat (Kochhar et al. 2025, Table V, "Simple CNN", of which the paper
says no more): four blocks of convolution, batch normalisation, ReLU and maximum pooling.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from leukofold.models.pooled import PooledNetwork

WIDTHS = (32, 64, 128, 256)

default_cfgs = generate_default_cfgs({"small_cnn": {"input_size": (3, 224, 224), "first_conv": "blocks.0.0"}})
"""What timm looks for beside a model's function: there are no pretrained weights."""


class SmallCNN(PooledNetwork):
    """Four blocks, each halving the image, then the mean over all places; .39 million parameters.

    Args:
        num_classes: Of the classifier; 0: the pooled features come out.
        in_chans: Channels of the input.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``, or "" for none.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
    ) -> None:
        super().__init__(WIDTHS[-1], num_classes, drop_rate, global_pool)
        blocks, width = [], in_chans
        for wider in WIDTHS:
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(width, wider, 3, padding=1, bias=False),
                    nn.BatchNorm2d(wider),
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(2),
                )
            )
            width = wider
        self.blocks = nn.Sequential(*blocks)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Tells timm which stage a parameter belongs to; the first block is the stem."""
        return {"blocks": r"^blocks\.(\d+)"}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map, n x 256 x S/16 x S/16."""
        maps: torch.Tensor = self.blocks(images)
        return maps


@register_model
def small_cnn(pretrained: bool = False, **arguments: Any) -> SmallCNN:
    """Builds the network; timm's ``create_model`` calls this."""
    return build_model_with_cfg(SmallCNN, "small_cnn", pretrained, **arguments)
