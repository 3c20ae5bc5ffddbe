"""Batch normalisation replaced or held still, for networks that meet images of other laboratories.

Batch normalisation ties a network to the statistics of its training images, and fails where microscope and stain
differ. Group normalisation (Wu and He 2018) needs no statistics of other images; frozen ImageNet statistics do not
learn those of one laboratory. On white blood cells both repair most of the damage (paper 000, Table 2).
"""

from collections.abc import Iterator
from typing import Any

from timm.layers.norm_act import FrozenBatchNormAct2d, GroupNormAct
from torch import nn
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

from leukofold.errors import UserError

_OF_MAPS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNormAct2d, FrozenBatchNorm2d)
_OF_ANYTHING = (*_OF_MAPS, nn.BatchNorm1d)


def batch_norms(network: nn.Module) -> list[Any]:
    """Returns the batch normalisations of a network, timm's with an activation and the frozen ones among them."""
    return [module for module in network.modules() if isinstance(module, _OF_ANYTHING)]


def replace_batch_norm(network: nn.Module, groups: int) -> int:
    """Puts group normalisation in the place of every batch normalisation of feature maps.

    Scale and shift, such as ImageNet's, are taken over with their device, type and need of a gradient; so are epsilon
    and the activation and dropout inside timm's layers. The running statistics are gone. Batch normalisation of
    vectors (``BatchNorm1d``) stays.

    Where the map is one pixel and each group one channel, as in the attention inside ResNeSt, SKNet and ReXNet, nothing
    is left of the input but the shift, and torch refuses a batch of one image.

    Args:
        network: Changed in place; its weights may have been loaded before.
        groups: Groups of channels, >= 1; a layer whose channels they do not divide gets the largest number below that
            does.

    Returns:
        The number of layers replaced.

    Raises:
        UserError: There is none.
    """
    places = list(_places(network))
    for parent, name, layer in places:
        parent.add_module(name, _group_norm(layer, groups))
    if not places:
        raise UserError("model.normalisation: the backbone has no batch normalisation to replace; leave the key out")
    return len(places)


def freeze_batch_norm(network: nn.Module) -> list[nn.Module]:
    """Freezes scale and shift of every batch normalisation.

    The statistics are no parameters: they hold still only as long as the modules stay in evaluation mode.

    Args:
        network: Changed in place: these parameters need no gradient.

    Returns:
        The modules, for the caller to keep in evaluation mode.

    Raises:
        UserError: There is none.
    """
    modules = batch_norms(network)
    for module in modules:
        for parameter in module.parameters(recurse=False):  # an activation inside may have parameters of its own
            parameter.requires_grad_(False)
    if not modules:
        raise UserError("model.normalisation: the backbone has no batch normalisation to freeze; leave the key out")
    return modules


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yields each batch normalisation of feature maps with the module that holds it and its name there."""
    for name, child in module.named_children():
        if isinstance(child, _OF_MAPS):
            yield module, name, child
        else:
            yield from _places(child)


def _group_norm(layer: Any, groups: int) -> nn.GroupNorm:
    """Makes the group normalisation that takes a layer's place."""
    channels = len(layer.running_mean)
    count = next(number for number in range(groups, 0, -1) if channels % number == 0)
    kind = GroupNormAct if hasattr(layer, "act") else nn.GroupNorm
    norm = kind(num_groups=count, num_channels=channels, eps=layer.eps, affine=layer.weight is not None)
    if layer.weight is not None:
        # the very parameters, but for frozen layers, whose scale and shift are buffers
        norm.weight, norm.bias = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.clone())
            for tensor in (layer.weight, layer.bias)
        )
    if hasattr(layer, "act"):
        norm.act, norm.drop = layer.act, layer.drop
    norm.train(layer.training)
    return norm
