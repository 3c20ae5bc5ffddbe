"""What a network costs: its parameters, and the multiply-adds of one image."""

import copy
import itertools
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Complexity:
    """The cost of a network; that of several side by side is their sum."""

    multiply_adds: int
    """Of one image in evaluation mode; many papers call them FLOPs."""
    parameters: int

    def __add__(self, other: "Complexity") -> "Complexity":
        """Returns the cost of both networks."""
        return Complexity(self.multiply_adds + other.multiply_adds, self.parameters + other.parameters)


def complexity(network: nn.Module, inputs: torch.Tensor) -> Complexity:
    """Counts a network's parameters and multiply-adds in evaluation mode, without computing anything.

    Convolutions, linear layers and attention have one for each multiplication, biases none. Batch normalisation has two
    for each element, and a layer of adaptive average pooling one for each element that goes in or comes out; a plain
    mean, maximum pooling, activations and other normalisations have none. That is the arithmetic behind Yang et al.
    2022, Table 1, whose ShuffleNetV2 takes a plain mean and whose ResNet-34 has a pooling layer.

    Args:
        network: Left as it is.
        inputs: 1 x C x S x S, of the type that the network takes; its values do not matter.

    Returns:
        The counts.
    """
    shapes = {
        id(tensor): nn.Parameter(tensor.to("meta"), False) if isinstance(tensor, nn.Parameter) else tensor.to("meta")
        for tensor in itertools.chain(network.parameters(), network.buffers())
    }
    outline = copy.deepcopy(network, shapes).eval()
    # In inference mode a pooling layer arrives as such; else it would be a mean like any other.
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_BESIDES) as counter:
        outline(inputs.to("meta"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(counter.get_total_flops() // 2, parameters)


def _batch_norm(images: torch.Size, *_: Any, **__: Any) -> int:
    """Scales and shifts each element; as all of torch's formulas, in units of half a multiply-add."""
    return 2 * 2 * prod(images)


def _average_pooling(images: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    """Adds all elements and divides each sum; as all of torch's formulas, in units of half a multiply-add."""
    return 2 * (prod(images) + prod(out_shape))


_BESIDES = {aten.batch_norm: _batch_norm, aten.adaptive_avg_pool2d: _average_pooling}
"""Formulas that torch's counter lacks."""
