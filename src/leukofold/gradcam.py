"""Grad-CAM: where in an image the evidence for a class lies, by the library ``pytorch_grad_cam``.

Selvaraju et al. 2017 (ICCV), eq. 1 and 2: the last feature maps A_k of a network are weighted by the mean gradient of
a class's score with respect to each, and what is positive of their sum is the heat. The score here is the class's logit
minus the mean of all logits. Classes compete for one decision, of which only differences of logits tell; and a network
with one logit puts 0 beside it, whose gradient is nought everywhere.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from leukofold.errors import UserError
from leukofold.models.classifier import Classifier

AT_ONCE = 16  # images per backward pass, to bound memory


class UnknownBackboneError(UserError):
    """Grad-CAM does not know where to look in a backbone."""


def grad_cam(network: nn.Module, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes the heat of one class in each image, without test-time augmentation.

    Convolutional networks and Swin-like transformers are asked at their last feature map. In plain vision transformers
    no gradient reaches the last block's patch tokens where the class token alone is pooled: they are asked at what
    that block's attention reads, its first normalisation.

    Args:
        network: In evaluation mode.
        images: n x S x S x C uint8, the network's prepared inputs.
        targets: n class indices.

    Returns:
        n x S x S float32, each from 0 at its lowest to 1 at its highest value, as the library scales them: 0 is where
        an image speaks least for the class, which need not be nothing, and what the network does not see of it. All 0
        where nothing speaks for the class, or everything alike.

    Raises:
        UnknownBackboneError: The backbone hands on tokens from blocks of an unknown kind, or it is no network.
    """
    if not isinstance(network, Classifier):
        raise UnknownBackboneError("Grad-CAM cannot look into a support vector machine: it has no feature maps")
    from pytorch_grad_cam import GradCAM  # here, as it takes seconds

    inputs = network.centre(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))
    beside = images.shape[1] - inputs.shape[2]  # pixels of a side that the network does not see
    explained = _Explained(network).eval()
    layer, to_maps = _feature_layer(explained, inputs[:1].to(network.mean.device))
    cam = GradCAM(explained, [layer], to_maps)
    try:
        with torch.enable_grad():
            heats = [
                cam(inputs[start : start + AT_ONCE], [_Lead(int(k)) for k in targets[start : start + AT_ONCE]])
                for start in range(0, len(inputs), AT_ONCE)
            ]
    finally:
        cam.activations_and_grads.release()
        network.zero_grad(set_to_none=True)
    around = (beside // 2, beside - beside // 2)
    return np.pad(np.concatenate(heats), ((0, 0), around, around))


class _Lead:
    """The score that is explained: how far a class's logit is above the mean of all."""

    def __init__(self, target: int) -> None:
        self.target = target

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.target] - logits.mean()


class _Explained(nn.Module):
    """A classifier whose last features pass a module of their own, which the library can watch."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network
        self.features = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns n x K logits of n x C x S x S uint8, as the classifier does."""
        backbone = self.network.backbone
        features = self.features(backbone.forward_features(self.network.normalise(images)))
        logits: torch.Tensor = self.network.head(backbone.forward_head(features))
        return logits


def _feature_layer(explained: _Explained, image: torch.Tensor) -> tuple[nn.Module, Any]:
    """Chooses the module to watch, and how its output becomes feature maps of n x C x H x W."""
    backbone = explained.network.backbone
    with torch.no_grad():
        shape = backbone.forward_features(explained.network.normalise(image)).shape
    if len(shape) == 4:
        channels_last = shape[1] != backbone.num_features
        return explained.features, (lambda maps: maps.permute(0, 3, 1, 2)) if channels_last else None
    try:
        layer: nn.Module = backbone.blocks[-1].norm1
    except (AttributeError, TypeError, IndexError):
        raise UnknownBackboneError(
            f"Grad-CAM cannot look into {type(backbone).__name__}: it hands on tokens and has no blocks with norm1"
        ) from None
    prefix = getattr(backbone, "num_prefix_tokens", 0)

    def patches(tokens: torch.Tensor) -> torch.Tensor:
        """From n x (prefix + H * W) x C: the class token and registers have no place in the image."""
        inside = tokens[:, prefix:]
        side = round(inside.shape[1] ** 0.5)  # inputs are square
        return inside.reshape(len(inside), side, side, -1).permute(0, 3, 1, 2)

    return layer, patches
