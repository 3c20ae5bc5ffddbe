"""Losses over logits and soft targets."""

import torch
import torch.nn.functional as F
from torch import nn

from leukofold.config import LossConfig


class FocalLoss(nn.Module):
    """Alpha-balanced multi-class focal loss: mean over images of -alpha sum_k t_k (1 - p_k)^gamma log p_k.

    Source: Lin et al. 2017, eq. 5, with softmax probabilities p and (soft) targets t; papers/001
    takes alpha = .25 and gamma = 2. With gamma = 0 and alpha = 1 it is the cross entropy.

    Args:
        gamma: Focusing exponent, >= 0.
        alpha: Factor in (0, 1].
    """

    def __init__(self, gamma: float, alpha: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar.

        Args:
            logits: n x K.
            targets: n x K, each row a distribution over the classes.
        """
        log_p = F.log_softmax(logits, dim=1)
        # 1 - p through expm1: exact near p = 1, where most images end up; the floor keeps the slope finite there
        modulated = (-torch.expm1(log_p)).clamp_min(1e-12) ** self.gamma * log_p
        return -self.alpha * (targets * modulated).sum(dim=1).mean()


def soft_targets(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Turns class indices into distributions.

    Args:
        labels: n indices.
        classes: K.
        smoothing: Share s of the mass spread evenly: t = (1 - s) onehot + s / K.

    Returns:
        n x K float32.
    """
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def build_loss(config: LossConfig) -> nn.Module:
    """Builds the loss that the configuration names; it takes logits and soft targets."""
    return nn.CrossEntropyLoss() if config.kind == "cross_entropy" else FocalLoss(config.gamma, config.alpha)
