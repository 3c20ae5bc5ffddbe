"""Heads: from a backbone's pooled features to logits."""

from torch import nn

from leukofold.config import ModelConfig


def build_head(config: ModelConfig, features: int, classes: int) -> nn.Module:
    """Builds the head that the configuration names.

    Args:
        config: ``linear`` is Dropout-Linear; ``mlp`` is blocks of Linear-ReLU-Dropout and a Linear
            (Srivastava et al. 2026: four blocks, dropout .1).
        features: Width of the backbone's pooled features.
        classes: K.

    Returns:
        A module from n x features to n x K.
    """
    layers: list[nn.Module] = []
    if config.head == "linear":
        layers.append(nn.Dropout(config.dropout))
    else:
        for width in config.hidden:
            layers += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(config.dropout)]
            features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))
