"""The losses against hand-computed numbers and torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from leukofold.config import LossConfig
from leukofold.training.losses import FocalLoss, build_loss, soft_targets


def test_focal_loss_of_one_image_by_hand() -> None:
    # Two classes with logits ln 3 and 0: p = .75; alpha (1 - p)^2 (-ln p) = .25 * .0625 * .287682
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = FocalLoss(gamma=2.0, alpha=0.25)(logits, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(0.25 * 0.0625 * -math.log(0.75), rel=1e-6)


def test_focal_loss_of_a_soft_target_by_hand() -> None:
    # A CutMix target: .4 of a class with p = .2 and .6 of one with p = .5
    p = torch.tensor([[0.2, 0.5, 0.3]])
    loss = FocalLoss(gamma=2.0, alpha=1.0)(p.log(), torch.tensor([[0.4, 0.6, 0.0]]))
    expected = -(0.4 * 0.8**2 * math.log(0.2) + 0.6 * 0.5**2 * math.log(0.5))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 2**31 - 1), st.floats(0, 0.5))
def test_focal_loss_without_focusing_is_the_cross_entropy(seed: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 13, generator=generator) * 4
    labels = torch.randint(0, 13, (7,), generator=generator)
    ours = FocalLoss(gamma=0.0, alpha=1.0)(logits, soft_targets(labels, 13, smoothing))
    torchs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_has_finite_slopes_for_certain_predictions(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = FocalLoss(gamma, alpha=0.25)(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(0.25 * 400 / 2, rel=1e-5)  # only the wrong image costs anything


def test_soft_targets_spread_the_smoothed_share_over_all_classes() -> None:
    targets = soft_targets(torch.tensor([2, 0]), 4, smoothing=0.2)
    assert torch.allclose(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_the_configuration_chooses_the_loss() -> None:
    focal = build_loss(LossConfig(kind="focal", gamma=1.5, alpha=0.5))
    assert isinstance(focal, FocalLoss)
    assert (focal.gamma, focal.alpha) == (1.5, 0.5)
    assert isinstance(build_loss(LossConfig(kind="cross_entropy")), torch.nn.CrossEntropyLoss)
