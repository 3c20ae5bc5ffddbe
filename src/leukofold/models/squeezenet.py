"""SqueezeNet 1.1 (Iandola et al. 2016), torchvision's network known to timm under the name ``squeezenet1_1``.

It is small, and has no normalisation at all: what becomes of a network without batch statistics in another laboratory.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn
from torchvision.models import squeezenet1_1 as torchvision_squeezenet  # type: ignore[import-untyped]

from leukofold.models.pooled import PooledNetwork

WIDTH = 512

default_cfgs = generate_default_cfgs(
    {
        "squeezenet1_1": {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "features.0",
            "classifier": "classifier.1",  # of torchvision's file
        }
    }
)
"""What timm looks for beside a model's function; weights are torchvision's, from a local file."""


class SqueezeNet(PooledNetwork):
    """Torchvision's feature maps, then the mean over all places; .72 million parameters without classifier.

    Args:
        num_classes: Of the classifier; 0: the pooled features come out.
        in_chans: Channels of the input.
        drop_rate: Dropout before the classifier.
        global_pool: ``avg``, or "" for none.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
    ) -> None:
        super().__init__(WIDTH, num_classes, drop_rate, global_pool)
        self.features = torchvision_squeezenet(weights=None).features
        if in_chans != 3:  # torchvision's network has no such argument
            self.features[0] = nn.Conv2d(in_chans, 64, kernel_size=3, stride=2)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Tells timm which stage a parameter belongs to; the first convolution is the stem."""
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map, n x 512 x about S/16 x S/16."""
        maps: torch.Tensor = self.features(images)
        return maps


@register_model
def squeezenet1_1(pretrained: bool = False, **arguments: Any) -> SqueezeNet:
    """Builds the network; timm's ``create_model`` calls this."""
    return build_model_with_cfg(SqueezeNet, "squeezenet1_1", pretrained, **arguments)
