"""ShuffleNetV2 (Ma et al. 2018), which timm finds as ``shufflenetv2_x1_0`` and ``shufflenetv2_x0_5``.

They are made for small machines: 1.25 and .34 million parameters without classifier.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import nn
from torchvision.models import shufflenet_v2_x0_5, shufflenet_v2_x1_0  # type: ignore[import-untyped]

from leukofold.models.pooled import PooledNetwork


def _cfg(file: str) -> dict[str, Any]:
    """Returns what timm asks of torchvision's public weights."""
    return {
        "url": f"https://download.pytorch.org/models/{file}",
        "input_size": (3, 224, 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1.0",
        "classifier": "fc",  # of torchvision's file
    }


default_cfgs = generate_default_cfgs(
    {
        "shufflenetv2_x1_0": _cfg("shufflenetv2_x1-5666bf0f80.pth"),
        "shufflenetv2_x0_5": _cfg("shufflenetv2_x0.5-f707e7126e.pth"),
    }
)
"""What timm looks for beside a model's function."""


class ShuffleNetV2(PooledNetwork):
    """Torchvision's feature maps, then the mean over all places; parameters have torchvision's names.

    Args:
        build: Torchvision's function for a network of this width.
        num_classes: Of the classifier; 0: the pooled features come out.
        in_chans: Channels of the input.
        drop_rate: Dropout before the classifier.
        global_pool: ``fast``, a plain mean as torchvision takes it; ``avg``, the same as a layer; "" for none.
    """

    def __init__(
        self,
        build: Callable[..., Any],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "fast",
    ) -> None:
        theirs = build(weights=None)
        super().__init__(theirs.fc.in_features, num_classes, drop_rate, global_pool)
        self.conv1 = theirs.conv1
        if in_chans != 3:
            first = self.conv1[0]
            self.conv1[0] = nn.Conv2d(in_chans, first.out_channels, 3, stride=2, padding=1, bias=False)
        self.maxpool = theirs.maxpool
        self.stage2, self.stage3, self.stage4 = theirs.stage2, theirs.stage3, theirs.stage4
        self.conv5 = theirs.conv5

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tells timm which stage a parameter belongs to, or which block; the first convolution is the stem."""
        blocks = r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"
        return {"stem": r"^conv1", "blocks": [(blocks, None), (r"^conv5", MATCH_PREV_GROUP)]}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map, n x 1024 x S/32 x S/32."""
        maps = self.maxpool(self.conv1(images))
        last: torch.Tensor = self.conv5(self.stage4(self.stage3(self.stage2(maps))))
        return last


@register_model
def shufflenetv2_x1_0(pretrained: bool = False, **arguments: Any) -> ShuffleNetV2:
    """Builds the network of width 1; timm's ``create_model`` calls this."""
    return build_model_with_cfg(ShuffleNetV2, "shufflenetv2_x1_0", pretrained, build=shufflenet_v2_x1_0, **arguments)


@register_model
def shufflenetv2_x0_5(pretrained: bool = False, **arguments: Any) -> ShuffleNetV2:
    """Builds the network of width 0.5; timm's ``create_model`` calls this."""
    return build_model_with_cfg(ShuffleNetV2, "shufflenetv2_x0_5", pretrained, build=shufflenet_v2_x0_5, **arguments)
