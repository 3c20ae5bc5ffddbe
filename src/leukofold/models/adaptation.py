"""Batch statistics of another laboratory's images, estimated without labels before they are predicted.

Sources: Li et al. 2016 (AdaBN: statistics of the target in place of the source's); Nado et al. 2020 (those of the batch
that is predicted); Schneider et al. 2020 (both mixed, the source weighted as so many images).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from leukofold.errors import UserError
from leukofold.models.normalisation import batch_norms


def adapt_batch_statistics(network: nn.Module, batches: Iterable[torch.Tensor], prior: float) -> None:
    """Estimates the running mean and variance of every batch normalisation anew.

    Of n images, source and target statistics s and t become (prior * s + n * t) / (prior + n), for the mean and for the
    variance (Schneider et al. 2020, section 3). Target statistics are those of all values of a channel in all images,
    batches joined by the law of total variance; the variance is that by n, with which batch normalisation normalises
    in training.

    It takes one pass. A layer normalises each batch by what is known of the images up to and with that batch: a single
    batch gets exactly the statistics that follow from each other through the layers, and several batches nearly so, as
    deeper layers saw the first of them by less settled statistics. The order of the batches matters that little.

    Args:
        network: Changed in place: running statistics alone; left in evaluation mode. Frozen layers adapt too.
        batches: Unlabelled images as the network takes them, on its device; every process needs all of them.
        prior: Weight of the source statistics, in images, >= 0; 0: the target alone.

    Raises:
        UserError: The network has no batch statistics, or there is too little to estimate them from.
    """
    layers = [_Layer(layer, prior) for layer in need_batch_statistics(network)]
    network.eval()
    hooks = [layer.module.register_forward_pre_hook(layer.adapt) for layer in layers]
    try:
        with torch.no_grad():
            for batch in batches:
                for layer in layers:
                    layer.images += len(batch)
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()


def need_batch_statistics(network: nn.Module) -> list[Any]:
    """Returns the layers of a network that have batch statistics.

    Raises:
        UserError: There are none.
    """
    layers = [layer for layer in batch_norms(network) if layer.running_mean is not None]
    if not layers:
        raise UserError(
            "inference.batch_statistics: the network has no batch normalisation to adapt; set it to training"
        )
    return layers


class _Layer:
    """One batch normalisation, and what is known of its inputs.

    Args:
        module: The layer.
        prior: Weight of its own statistics, in images.
    """

    def __init__(self, module: Any, prior: float) -> None:
        self.module = module
        self.prior = prior
        self.images = 0  # whose first layers at least have been computed
        self.values = 0  # of each channel
        self.source = [statistic.clone() for statistic in (module.running_mean, module.running_var)]
        self.target = [torch.zeros_like(statistic) for statistic in self.source]

    def adapt(self, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Joins a batch to the known, and sets the statistics that the layer is about to normalise it by."""
        self._join(inputs[0])
        if self.values == 1 and not self.prior:
            raise UserError(
                "inference.batch_statistics: a map of one pixel in one image has no variance; give more images, or a "
                "statistics_prior above 0"
            )
        share = self.images / (self.prior + self.images)
        for statistic, source, target in zip(
            (self.module.running_mean, self.module.running_var), self.source, self.target, strict=True
        ):
            statistic.copy_(source.lerp(target, share))

    def _join(self, values: torch.Tensor) -> None:
        """Updates mean and variance of all values so far (law of total variance, as Chan et al. 1979 update it)."""
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values.to(self.source[0].dtype), dim=axes, correction=0)
        count = values.numel() // len(mean)
        self.values += count
        share = count / self.values
        known_mean, known_variance = self.target
        apart = mean - known_mean
        self.target = [
            known_mean + share * apart,
            known_variance + share * (variance - known_variance) + share * (1 - share) * apart.square(),
        ]
