"""Grad-CAM: the paper's equations, a planted case, and every kind of backbone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leukofold.config import ImageConfig, ModelConfig
from leukofold.errors import UserError
from leukofold.gradcam import grad_cam
from leukofold.models.classifier import Classifier

SIZE = 96


def make_network(backbone: str, classes: int = 3, size: int = SIZE, **model: Any) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, pretrained=False, **model)
    return Classifier(config, ImageConfig(size=size), classes).eval()


def make_images(count: int, size: int = SIZE) -> np.ndarray:
    """Noise with a bright square of another place and colour in each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (count, size, size, 3), dtype=np.uint8)
    for image in images:
        y, x = rng.integers(0, size // 2, 2)
        image[y : y + size // 2, x : x + size // 2] = rng.integers(0, 256, 3)
    return images


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def by_hand(network: Classifier, image: np.ndarray, target: int) -> np.ndarray:
    """Selvaraju et al. 2017, eq. 1 and 2, for the logit minus the mean logit; enlarged and scaled to [0, 1]."""
    maps = network.backbone.forward_features(network.normalise(as_batch(image[None]))).detach().requires_grad_()
    logits = network.head(network.backbone.forward_head(maps))[0]
    (logits[target] - logits.sum() / len(logits)).backward()
    assert maps.grad is not None
    alpha = maps.grad.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((alpha * maps.detach()).sum(dim=1, keepdim=True))
    if not heat.any():
        return np.zeros(image.shape[:2], np.float32)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    side = network.normalise(as_batch(image[None])).shape[-1]
    large = F.interpolate(heat, (side, side), mode="bilinear", align_corners=False)[0, 0]
    return ((large - large.min()) / (large.max() - large.min())).numpy()


def test_heat_of_a_convolutional_network_is_what_the_papers_equations_give() -> None:
    network, images = make_network("test_resnet"), make_images(2).repeat(3, axis=0)
    targets = np.array([2, 0, 1, 0, 1, 2])
    heats = grad_cam(network, images, targets)
    assert heats.shape == (6, SIZE, SIZE)
    assert (heats.reshape(6, -1).max(axis=1) > 0.99).any()
    for heat, image, target in zip(heats, images, targets, strict=True):
        assert heat == pytest.approx(by_hand(network, image, int(target)), abs=1e-4)


def test_batches_change_nothing() -> None:
    network, images = make_network("test_resnet"), make_images(18)
    targets = np.arange(18) % 3
    alone = np.concatenate([grad_cam(network, images[i : i + 1], targets[i : i + 1]) for i in (0, 16, 17)])
    assert grad_cam(network, images, targets)[[0, 16, 17]] == pytest.approx(alone, abs=1e-4)


class Brightness(nn.Module):
    """A backbone whose only feature maps are the image, averaged over patches of 8, and its negative."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))  # a network's features always follow from weights

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        grey = self.scale * F.avg_pool2d(images.mean(dim=1, keepdim=True), 8)
        return torch.cat([grey, -grey], dim=1)

    def forward_head(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[:, :, :4, :4].mean(dim=(2, 3))  # the upper left corner alone decides


def test_heat_is_where_the_class_is_decided() -> None:
    network = make_network("test_resnet", classes=2)
    network.backbone, network.head = Brightness(), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # class 0: bright, class 1: dark
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    images[:, :32, :32] = 255
    bright, dark = grad_cam(network, images, np.array([0, 1]))
    assert bright[:24, :24].min() > 0.99
    assert bright[40:, :].max() == bright[:, 40:].max() == 0
    assert dark[:24, :24].max() == 0


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext2", "test_vit2", "test_vit3", "test_mambaout"])
def test_every_kind_of_backbone_has_heat_of_the_images_size_and_keeps_its_answers(backbone: str) -> None:
    network, images = make_network(backbone), make_images(2).repeat(3, axis=0)
    with torch.no_grad():
        before = network(as_batch(images))
    heats = grad_cam(network, images, np.array([0, 1, 2, 0, 1, 2]))
    assert heats.shape == (6, SIZE, SIZE)
    assert heats.dtype == np.float32
    assert heats.min() >= 0
    assert heats.max() <= 1
    of_image = heats.reshape(2, 3, -1)
    assert (of_image.max(axis=(1, 2)) > 0.99).all()  # what is against one class is for another
    assert (of_image.std(axis=2).max(axis=1) > 0.01).all()
    with torch.no_grad():
        assert torch.equal(network(as_batch(images)), before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_swin_transformers_keep_their_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    network, images = make_network("test_resnet"), make_images(2, 64)
    torch.manual_seed(0)
    swin: Any = SwinTransformerV2(
        img_size=64, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=0
    )
    network.backbone, network.head = swin.eval(), nn.Linear(24, 3)
    assert swin.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 8, 24)
    heats = grad_cam(network, images, np.array([0, 2]))
    assert heats.max() > 0.99
    plain = swin.forward_features
    monkeypatch.setattr(swin, "forward_features", lambda images: plain(images).permute(0, 3, 1, 2))
    pool = swin.forward_head
    monkeypatch.setattr(swin, "forward_head", lambda maps: pool(maps.permute(0, 2, 3, 1)))
    assert heats == pytest.approx(grad_cam(network, images, np.array([0, 2])), abs=1e-5)


def test_a_transformers_heat_lies_on_the_patches_that_move_its_answer() -> None:
    network, images = make_network("test_vit2", size=96), make_images(1)
    tokens: list[torch.Tensor] = []
    handle = network.backbone.blocks[-1].norm1.register_forward_hook(lambda *given: tokens.append(given[2]))
    logits = network(as_batch(images))[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[1] - logits.mean(), tokens[0])
    inside, slope = tokens[0].detach()[0, 1:], gradient[0, 1:]
    assert slope.abs().max() > 0
    heat = F.relu(inside @ slope.mean(dim=0)).reshape(6, 6)
    found = grad_cam(network, images, np.array([1]))[0]
    patches = found.reshape(6, 16, 6, 16).mean(axis=(1, 3))  # enlarging smooths, so patches agree in the main
    assert np.corrcoef(patches.ravel(), heat.numpy().ravel())[0, 1] > 0.9


def test_a_network_with_one_logit_is_explained_like_one_with_two() -> None:
    images, targets = make_images(2), np.array([0, 1])
    single = make_network("test_resnet", classes=2, one_logit=True)
    double = make_network("test_resnet", classes=2)
    double.backbone.load_state_dict(single.backbone.state_dict())
    linear, wide = (network.get_submodule("head.1") for network in (single, double))
    assert isinstance(linear, nn.Linear)
    assert isinstance(wide, nn.Linear)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([-linear.weight / 2, linear.weight / 2]))
        wide.bias.copy_(torch.cat([-linear.bias / 2, linear.bias / 2]))
    heats = grad_cam(single, images, targets)
    assert heats == pytest.approx(grad_cam(double, images, targets), abs=1e-4)
    both = grad_cam(single, images.repeat(2, axis=0), np.array([0, 1, 0, 1])).reshape(2, 2, -1)
    assert (both.max(axis=(1, 2)) > 0.99).all()  # also where class 0, whose logit is 0, is what the image shows


def test_a_backbone_of_an_unknown_kind_is_refused_by_name() -> None:
    network = make_network("test_vit2")
    network.backbone.blocks = None
    network.backbone.forward_features = lambda images: torch.zeros(len(images), 37, 64)
    with pytest.raises(UserError, match="Grad-CAM cannot look into VisionTransformer"):
        grad_cam(network, make_images(1), np.array([0]))
