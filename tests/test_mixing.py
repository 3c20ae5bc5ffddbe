"""CutMix and MixUp: each batch gets one, the other or none, and labels are mixed in the shares of the pixels."""

import numpy as np
import pytest
import torch

from leukofold.config import MixingConfig
from leukofold.errors import UserError
from leukofold.training.mixing import Mixer, build_mixer


def batch(n: int = 8, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one grey level each, so that every pixel tells whose it is."""
    levels = torch.arange(n, dtype=torch.uint8) * 10
    return levels.view(n, 1, 1, 1).expand(n, 3, side, side).clone(), torch.arange(n) % 4


def kind(images: torch.Tensor) -> str:
    """What happened to a batch of one-coloured images."""
    plain, _ = batch()
    if torch.equal(images, plain.float()):
        return "none"
    return "cutmix" if len(np.unique(images[0].numpy())) == 2 else "mixup"


def test_each_has_its_own_probability_per_batch() -> None:
    mixer = Mixer(MixingConfig(cutmix=0.15, mixup=0.25), 4, 0.0, 8)
    mixer.seed(7)
    kinds = [kind(mixer(*batch())[0]) for _ in range(4000)]
    for name, probability in (("cutmix", 0.15), ("mixup", 0.25), ("none", 0.6)):
        # a box may be empty and a share 1: both look like none
        assert kinds.count(name) / 4000 == pytest.approx(probability, abs=0.03)


def test_mixup_adds_images_and_labels_in_the_same_shares() -> None:
    mixer = Mixer(MixingConfig(mixup=1.0), 4, 0.0, 8)
    mixer.seed(0)
    images, targets = mixer(*batch())
    share = 1 - images[0, 0, 0, 0].item() / 70  # image 0 is black, its partner, the last one, is 70
    assert 0 < share < 1
    assert (images[0] == images[0, 0, 0, 0]).all()
    assert targets[0].tolist() == pytest.approx([share, 0, 0, 1 - share], abs=1e-6)  # classes 0 and 7 % 4
    assert images[2, 0, 0, 0].item() == pytest.approx(20 * share + 50 * (1 - share), rel=1e-5)


def test_cutmix_pastes_a_box_and_labels_get_its_area() -> None:
    mixer = Mixer(MixingConfig(cutmix=1.0), 4, 0.0, 8)
    mixer.seed(3)
    images, targets = mixer(*batch())
    pasted = (images[0, 0] == 70).float().mean().item()
    assert 0 < pasted < 1
    assert targets[0].tolist() == pytest.approx([1 - pasted, 0, 0, pasted], abs=1e-6)
    rows, columns = np.nonzero((images[0, 0] == 70).numpy())
    assert pasted * 256 == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one box


def test_smoothed_targets_still_add_up_to_one() -> None:
    mixer = Mixer(MixingConfig(mixup=0.5, cutmix=0.5), 4, 0.2, 8)
    targets = mixer(*batch())[1]
    assert targets.sum(dim=1).tolist() == pytest.approx([1] * 8)
    assert targets.min().item() == pytest.approx(0.05)


def test_a_seed_decides_what_is_drawn() -> None:
    mixer = Mixer(MixingConfig(mixup=0.5, cutmix=0.5), 4, 0.0, 8)
    drawn = []
    for seed in (3, 3, 4):
        mixer.seed(seed)
        drawn.append(torch.stack([mixer(*batch())[0] for _ in range(5)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_odd_batch_is_refused_and_nothing_is_built_where_nothing_is_mixed() -> None:
    with pytest.raises(UserError, match=r"mixing: images are mixed in pairs, but a process gets 7 at a time"):
        build_mixer(MixingConfig(mixup=0.1), 4, 0.0, 7)
    assert build_mixer(MixingConfig(), 4, 0.0, 7) is None
