"""The losses against hand-computed numbers and torch's own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from leukofold.config import LossConfig
from leukofold.errors import UserError
from leukofold.sampling import effective_number_weights
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
    labels = np.array([0, 1, 1])
    focal = build_loss(LossConfig(kind="focal", gamma=1.5, alpha=0.5), labels, 2)
    assert isinstance(focal, FocalLoss)
    assert (focal.gamma, focal.alpha) == (1.5, 0.5)
    assert isinstance(build_loss(LossConfig(kind="cross_entropy"), labels, 2), torch.nn.CrossEntropyLoss)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_class_balanced_losses_by_hand(kind: str) -> None:
    # beta = .5: E_1 = 1, E_3 = 1.75; weights 1 and 4 / 7, scaled to a sum of 2: 14 / 11 and 8 / 11
    config = LossConfig.model_validate(
        {"kind": kind, "weights": "effective_number", "beta": 0.5, "gamma": 2, "alpha": 1}
    )
    loss = build_loss(config, np.array([0, 1, 1, 1]), 2)
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    focus = {"cross_entropy": (1.0, 1.0), "focal": (0.2**2, 0.4**2)}[kind]
    expected = -(14 / 11 * focus[0] * math.log(0.8) + 8 / 11 * focus[1] * math.log(0.6)) / 2
    assert loss(p.log(), soft_targets(torch.tensor([0, 1]), 2, 0.0)).item() == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_the_class_balanced_focal_loss_without_focusing_is_the_weighted_cross_entropy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 30)
    logits = torch.from_numpy(rng.normal(size=(30, 5))).float()
    targets = torch.from_numpy(rng.dirichlet(np.ones(5), 30)).float()  # as CutMix and MixUp leave them
    config = LossConfig(kind="focal", gamma=0, alpha=1, weights="effective_number", beta=0.9)
    weights = torch.from_numpy(effective_number_weights(labels, 5, 0.9)).float()
    expected = F.cross_entropy(logits, targets, weight=weights)
    assert build_loss(config, labels, 5)(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_logit_and_inverse_frequency_are_the_weighted_binary_cross_entropy_of_paper_002() -> None:
    # l = -w y ln s(z) - (1 - y) ln(1 - s(z)), w = n_neg / n_pos (Prellberg and Kramer 2019, section 4.1)
    labels = np.array([0] * 3 + [1] * 7)
    z = torch.tensor([0.3, -1.2, 2.0, 0.1, -0.4, 1.5, 0.0, 3.0, -2.0, 0.7], dtype=torch.float64)
    loss = build_loss(LossConfig(kind="cross_entropy", weights="inverse_frequency"), labels, 2)
    logits = torch.stack([torch.zeros_like(z), z], dim=1).float()
    ours = loss(logits, soft_targets(torch.from_numpy(labels), 2, 0.0))
    y = torch.from_numpy(labels).double()
    by_hand = (-3 / 7 * y * torch.log(torch.sigmoid(z)) - (1 - y) * torch.log(1 - torch.sigmoid(z))).mean()
    torchs = F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(3 / 7))
    assert ours.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-6)


def test_a_class_without_images_has_no_frequency() -> None:
    with pytest.raises(UserError, match=r"loss\.weights: inverse_frequency: no training image of class 1"):
        build_loss(LossConfig(weights="inverse_frequency"), np.array([0, 0, 2]), 3)
