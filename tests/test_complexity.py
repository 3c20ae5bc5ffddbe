"""Parameters and multiply-adds: counts by hand, textbook formulas, and every figure of a paper."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

from leukofold.config import ImageConfig, ModelConfig
from leukofold.models import shufflenet  # noqa: F401  (makes itself known to timm)
from leukofold.models.classifier import Classifier
from leukofold.models.complexity import Complexity, complexity


def cost(name: str, channels: int = 3, outputs: int = 5) -> Complexity:
    """Of a network at 224 pixels."""
    network = timm.create_model(name, in_chans=channels, num_classes=outputs)
    return complexity(network, torch.zeros(1, channels, 224, 224))


class Pooled(nn.Module):
    """A convolution of stride 2 and groups, batch normalisation, ReLU, and either way to pool; then a linear layer."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.normalisation = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1) if layer else None
        self.linear = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.max_pool2d(self.normalisation(self.convolution(images)).relu(), 2)
        pooled: torch.Tensor = maps.mean((2, 3)) if self.pool is None else self.pool(maps).flatten(1)
        logits: torch.Tensor = self.linear(pooled)
        return logits


@pytest.mark.parametrize("layer", [True, False])
def test_a_small_network_counted_by_hand(layer: bool) -> None:
    convolution = 8 * 8 * 6 * (4 // 2) * 3 * 3  # of 16 x 16 pixels
    normalisation = 2 * 8 * 8 * 6
    pooling = 4 * 4 * 6 + 6 if layer else 0
    parameters = 6 * 2 * 9 + 6 + 2 * 6 + 6 * 5 + 5
    assert complexity(Pooled(layer), torch.zeros(1, 4, 16, 16)) == Complexity(
        convolution + normalisation + pooling + 6 * 5, parameters
    )


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_a_vision_transformer_by_the_textbook(name: str) -> None:
    network: Any = timm.create_model(name, num_classes=5)
    side, patch = network.patch_embed.img_size[0], network.patch_embed.patch_size[0]
    depth, width, patches = len(network.blocks), network.embed_dim, (side // patch) ** 2
    tokens, hidden = patches + 1, network.blocks[0].mlp.fc1.out_features
    projections = tokens * (4 * width**2 + 2 * width * hidden)  # queries, keys, values, output; then the MLP
    attention = 2 * tokens**2 * width  # of queries with keys, of weights with values
    embedding = patches * patch**2 * 3 * width
    found = complexity(network, torch.zeros(1, 3, side, side))
    assert found.multiply_adds == embedding + depth * (projections + attention) + 5 * width


def test_attention_in_windows_is_counted() -> None:
    assert cost("swin_tiny_patch4_window7_224", outputs=1000).multiply_adds == pytest.approx(
        4.5e9, rel=0.01
    )  # published


@pytest.mark.parametrize(
    ("name", "single", "early", "late", "mimo"),
    [
        ("shufflenetv2_x1_0", ("147.79", "1.259"), ("172.18", "1.261"), ("591.16", "5.035"), ("172.19", "1.276")),
        ("resnet34", ("3670.75", "21.287"), ("4024.80", "21.315"), ("14683.02", "85.149"), ("4024.80", "21.323")),
    ],
)
def test_the_figures_of_yang_et_al_2022(
    name: str, single: tuple[str, str], early: tuple[str, str], late: tuple[str, str], mimo: tuple[str, str]
) -> None:
    """Table 1, four images of three channels and five classes, in millions; all but four figures are printed so.

    The multiply-adds of early fusion are printed one hundredth lower, 172.17 and 4024.79: rounded down, without the
    classifier, or as MM-MIMO's less the difference that the text names, .02 and .01, which all give the same. No
    arithmetic gives these and late fusion's 14683.02 by rounding. The parameters of late fusion are four times the
    rounded ones of a network there, 5.036 and 85.148.
    """
    one = cost(name)
    assert printed(one) == single
    assert printed(cost(name, channels=12)) == early
    assert printed(one + one + one + one) == late
    assert printed(cost(name, channels=12, outputs=4 * 5)) == mimo


def printed(found: Complexity) -> tuple[str, str]:
    """Millions, as the paper prints them."""
    return f"{found.multiply_adds / 1e6:.2f}", f"{found.parameters / 1e6:.3f}"


@pytest.mark.parametrize(
    ("name", "early", "mimo", "late"),
    [
        ("shufflenetv2_x1_0", 172.17, 172.19, 5.036),
        ("resnet34", 4024.79, 4024.80, 85.148),
    ],
)
def test_how_the_paper_comes_to_its_other_figures(name: str, early: float, mimo: float, late: float) -> None:
    fused, heads = cost(name, channels=12), cost(name, channels=12, outputs=20)
    without = complexity(timm.create_model(name, in_chans=12, num_classes=0), torch.zeros(1, 12, 224, 224))
    assert fused.multiply_adds // 10_000 / 100 == early
    assert round(without.multiply_adds / 1e6, 2) == early
    assert round(mimo - round((heads.multiply_adds - fused.multiply_adds) / 1e6, 2), 2) == early
    assert round(4 * round(cost(name).parameters / 1e6, 3), 3) == late


def test_the_classifier_of_bytes_costs_its_backbone_and_head() -> None:
    network = Classifier(ModelConfig(backbone="test_resnet", pretrained=False), ImageConfig(size=64), classes=3)
    backbone = complexity(network.backbone, torch.zeros(1, 3, 64, 64))
    head = Complexity(3 * network.backbone.num_features, 3 * network.backbone.num_features + 3)
    assert complexity(network, torch.zeros(1, 3, 64, 64, dtype=torch.uint8)) == backbone + head


def test_the_network_stays_as_it_was_and_its_mode_does_not_matter() -> None:
    network = Pooled(layer=True).train()
    network.linear.requires_grad_(False)
    parameters, before = list(network.parameters()), copy.deepcopy(network.state_dict())
    training = complexity(network, torch.zeros(1, 4, 16, 16))
    assert [module.training for module in network.modules()] == [True] * 5
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == [True] * 4 + [False] * 2
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert complexity(network.eval(), torch.zeros(1, 4, 16, 16)) == training
    assert not any(module.training for module in network.modules())


def test_shared_weights_are_counted_once_but_work_each_time() -> None:
    shared = nn.Linear(7, 7, bias=False)
    assert complexity(nn.Sequential(shared, shared), torch.zeros(1, 7)) == Complexity(2 * 49, 49)
