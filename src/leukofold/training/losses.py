"""Losses over logits and soft targets, so that smoothed labels, CutMix and MixUp need no case of their own."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukofold.config import LossConfig
from leukofold.errors import UserError
from leukofold.sampling import effective_number_weights


class FocalLoss(nn.Module):
    """Alpha-balanced multi-class focal loss: mean over images of -alpha sum_k w_k t_k (1 - p_k)^gamma log p_k.

    Source: Lin et al. 2017, eq. 5, with softmax probabilities p and (soft) targets t; Srivastava et al. 2026
    takes alpha = .25, gamma = 2 and no class weights (w = 1). With gamma = 0 and alpha = 1 it is the
    cross entropy; with w_k = 1 / E_k the class-balanced focal loss (Cui et al. 2019, eq. 13).

    Args:
        gamma: Focusing exponent, >= 0.
        alpha: Factor in (0, 1].
        weights: K class weights w; None: 1.
    """

    weights: torch.Tensor | None

    def __init__(self, gamma: float, alpha: float, weights: torch.Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.register_buffer("weights", weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar.

        Args:
            logits: n x K.
            targets: n x K, each row a distribution over the classes.
        """
        log_p = F.log_softmax(logits, dim=1)
        if self.weights is not None:
            targets = targets * self.weights
        # 1 - p through expm1: exact near p = 1, where most images end up; the floor keeps the slope finite there
        modulated = (-torch.expm1(log_p)).clamp_min(1e-12) ** self.gamma * log_p
        return -self.alpha * (targets * modulated).sum(dim=1).mean()


class EachHead(nn.Module):
    """The sum of a loss over the heads of MM-MIMO, each with the labels of its own cells.

    Args:
        loss: Of one head.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the loss, a scalar.

        Args:
            logits: n x M x K.
            targets: n x M x K.
        """
        heads = zip(logits.unbind(1), targets.unbind(1), strict=True)
        return torch.stack([self.loss(own, target) for own, target in heads]).sum()


def soft_targets(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Turns class indices into distributions.

    Args:
        labels: Indices of any shape.
        classes: K.
        smoothing: Share s of the mass spread evenly: t = (1 - s) onehot + s / K.

    Returns:
        float32, of the labels' shape and K.
    """
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def build_loss(config: LossConfig, labels: np.ndarray, classes: int) -> nn.Module:
    """Builds the loss that the configuration names.

    Cross entropy is -sum_k w_k t_k log p_k, mean over images; w = 1 unless ``loss.weights`` says
    otherwise (class-balanced: Cui et al. 2019, eq. 11; inverse frequency: w_k = n_0 / n_k, so that with one logit
    this is the weighted binary cross entropy of Prellberg and Kramer 2019, section 4.1).

    Args:
        config: Kind and parameters.
        labels: Class indices of the training images, for class weights.
        classes: K.

    Returns:
        A module that takes logits and soft targets.

    Raises:
        UserError: A class that is to be weighted by its frequency has no image.
    """
    weights = None
    if config.weights == "effective_number":
        weights = torch.from_numpy(effective_number_weights(labels, classes, config.beta)).float()
    elif config.weights == "inverse_frequency":
        counts = np.bincount(labels, minlength=classes)
        if not counts.all():
            raise UserError(
                f"loss.weights: inverse_frequency: no training image of class {int(counts.argmin())}; take "
                "effective_number"
            )
        weights = torch.from_numpy(counts[0] / counts).float()
    if config.kind == "cross_entropy":
        return nn.CrossEntropyLoss(weight=weights)
    return FocalLoss(config.gamma, config.alpha, weights)
