"""Heads: from a backbone's pooled features to logits."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from leukofold.config import ModelConfig
from leukofold.errors import UserError


class ModalityHeads(nn.Module):
    """A head for each modality: the subnetworks of MM-MIMO share all but these.

    Havasi et al. 2021 (ICLR): in training each head answers for its own input, of another cell than the others'; where
    a cell is scored, all inputs are its own, and the heads' probabilities are averaged.

    Args:
        heads: M modules from n x D to n x K.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def each(self, features: torch.Tensor) -> torch.Tensor:
        """Returns every head's logits, n x M x K."""
        return torch.stack([head(features) for head in self.heads], dim=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns every head's logits in training, n x M x K; else n x K: the logarithm of the mean probabilities."""
        logits = self.each(features)
        if self.training:
            return logits
        return logits.float().log_softmax(dim=2).logsumexp(dim=1) - math.log(len(self.heads))


def build_head(config: ModelConfig, features: int, classes: int) -> nn.Module:
    """Builds the head that the configuration names.

    Args:
        config: ``linear`` is Dropout-Linear; ``mlp`` is blocks of Linear-ReLU-Dropout and a Linear
            (Srivastava et al. 2026: four blocks, dropout .1).
        features: Width of the backbone's pooled features.
        classes: K.

    Returns:
        A module from n x features to n x K.

    Raises:
        UserError: One logit is to tell more than two classes apart.
    """
    if config.one_logit and classes != 2:
        raise UserError(f"model.one_logit: tells two classes apart, the data have {classes}; set it to false")
    layers: list[nn.Module] = []
    if config.head == "linear":
        layers.append(nn.Dropout(config.dropout))
    else:
        for width in config.hidden:
            layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(config.dropout)]
            features = width
    if config.one_logit:
        return nn.Sequential(*layers, nn.Linear(features, 1), BesideZero())
    return nn.Sequential(*layers, nn.Linear(features, classes))


class BesideZero(nn.Module):
    """Makes two logits of one.

    The softmax of (0, z) is the sigmoid of z, so cross entropy over both is binary cross entropy of z, and
    everything behind the head meets two classes.
    """

    def forward(self, logit: torch.Tensor) -> torch.Tensor:
        """From n x 1 to n x 2, the first column 0."""
        return F.pad(logit, (1, 0))
