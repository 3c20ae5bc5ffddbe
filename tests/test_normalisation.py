"""Batch normalisation replaced by group normalisation, or held still, in networks of many families."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.norm_act import BatchNormAct2d, GroupNormAct, freeze_batch_norm_2d
from torch import nn

from leukofold.errors import UserError
from leukofold.models import small_cnn  # noqa: F401  (makes itself known to timm)
from leukofold.models.freezing import frozen_modules
from leukofold.models.normalisation import batch_norms, freeze_batch_norm, replace_batch_norm

FAMILIES = [
    "test_resnet",
    "resnet18",
    "test_efficientnet",
    "mobilenetv2_050",
    "densenet121",
    "test_byobnet",
    "ghostnet_050",
    "repvgg_a0",
    "vgg11_bn",
    "small_cnn",
]
LAST_16 = [
    "backbone.layer3.4.conv1.weight",
    "backbone.layer3.4.conv2.weight",
    "backbone.layer3.4.conv3.weight",
    "backbone.layer3.5.conv1.weight",
    "backbone.layer3.5.conv2.weight",
    "backbone.layer3.5.conv3.weight",
    "backbone.layer4.0.conv1.weight",
    "backbone.layer4.0.conv2.weight",
    "backbone.layer4.0.conv3.weight",
    "backbone.layer4.0.downsample.0.weight",
    "backbone.layer4.1.conv1.weight",
    "backbone.layer4.1.conv2.weight",
    "backbone.layer4.1.conv3.weight",
    "backbone.layer4.2.conv1.weight",
    "backbone.layer4.2.conv2.weight",
    "backbone.layer4.2.conv3.weight",
]


class Net(nn.Module):
    """A backbone and a head, and modules that training mode passes by, as in ``Classifier``."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 3)
        self.still: list[nn.Module] = []

    def train(self, mode: bool = True) -> "Net":
        super().train(mode)
        for module in self.still:
            module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


def create(name: str) -> nn.Module:
    """A network whose scales and shifts are not the ones and zeros they begin with."""
    small: dict[str, Any] = {"mlp_ratio": 0.01} if name == "vgg11_bn" else {}  # its head alone has 100 million weights
    network: nn.Module = timm.create_model(name, num_classes=0, drop_rate=0.0, **small)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_group_normalisation_takes_every_place_in_networks_of_many_families(name: str) -> None:
    torch.manual_seed(0)
    network = create(name)
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        shape = network.eval()(images).shape
    old = {place: layer for place, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    affine = {place: (layer.weight.clone(), layer.bias.clone(), layer.eps) for place, layer in old.items()}

    assert replace_batch_norm(network, 32) == len(old) > 0

    new = {place: layer for place, layer in network.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert list(new) == list(old)
    assert not any("BatchNorm" in type(layer).__name__ for layer in network.modules())
    assert not any("running" in key or "num_batches" in key for key in network.state_dict())
    for place, layer in new.items():
        assert isinstance(layer, GroupNormAct) is isinstance(old[place], BatchNormAct2d)
        assert layer.num_groups == max(count for count in range(1, 33) if layer.num_channels % count == 0)
        assert torch.equal(layer.weight, affine[place][0])
        assert torch.equal(layer.bias, affine[place][1])
        assert layer.eps == affine[place][2]

    features = network.train()(images)
    assert features.shape == shape
    assert features.isfinite().all()
    for position in range(3):  # whatever the batch an image is in
        assert torch.allclose(network(images[position : position + 1])[0], features[position], rtol=1e-3, atol=1e-4)
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    built_alike = create(name)
    replace_batch_norm(built_alike, 32)
    built_alike.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(built_alike.eval()(images), network.eval()(images))


def test_one_layer_is_group_normalisation_by_hand() -> None:
    torch.manual_seed(1)
    network: Any = nn.Sequential(nn.BatchNorm2d(12, eps=1e-3))
    nn.init.uniform_(network[0].weight, -2, 2)
    nn.init.uniform_(network[0].bias, -2, 2)
    weight, bias = (tensor.detach().numpy()[None, :, None, None] for tensor in (network[0].weight, network[0].bias))
    maps = torch.randn(2, 12, 5, 4) * 3 + 1
    replace_batch_norm(network, 8)  # 6 groups of 2: 8 does not divide 12, nor does 7
    grouped = maps.numpy().astype(np.float64).reshape(2, 6, 2 * 5 * 4)
    scaled = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-3)
    expected = scaled.reshape(2, 12, 5, 4) * weight + bias
    assert network(maps).detach().numpy() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_number_of_groups_is_the_largest_that_divides_the_channels(channels: int, groups: int) -> None:
    network: Any = nn.Sequential(nn.BatchNorm2d(channels))
    replace_batch_norm(network, groups)
    count = network[0].num_groups
    assert channels % count == 0
    assert count <= groups
    assert all(channels % larger for larger in range(count + 1, min(groups, channels) + 1))


def test_activation_and_dropout_inside_a_layer_stay() -> None:
    inside: Any = BatchNormAct2d(8, act_layer=nn.PReLU, drop_layer=nn.Dropout2d, inplace=False)
    network: Any = nn.Sequential(inside).eval()
    replace_batch_norm(network, 4)
    norm = network[0]
    assert norm.act is inside.act
    assert norm.drop is inside.drop
    assert not norm.training
    maps = torch.randn(2, 8, 3, 3)
    expected = nn.functional.prelu(nn.functional.group_norm(maps, 4), inside.act.weight)
    assert torch.allclose(norm(maps), expected, atol=1e-6)


def test_type_device_need_of_gradients_and_lack_of_scale_stay() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(4, dtype=torch.bfloat16),
        nn.BatchNorm2d(4, device="meta").requires_grad_(False),
        nn.BatchNorm2d(4, affine=False),
        nn.SyncBatchNorm(4),
        nn.BatchNorm1d(4),
    )
    assert replace_batch_norm(network, 2) == 4
    assert network[0].weight.dtype == network[0].bias.dtype == torch.bfloat16
    assert network[1].weight.device.type == "meta"
    assert not network[1].bias.requires_grad
    assert network[2].weight is None
    assert [type(layer) for layer in network] == [nn.GroupNorm] * 4 + [nn.BatchNorm1d]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_frozen_layers_of_timm_are_replaced_as_the_others_are(name: str) -> None:
    torch.manual_seed(2)
    network = create(name)
    frozen = timm.create_model(name, num_classes=0)
    frozen.load_state_dict(network.state_dict())
    frozen = freeze_batch_norm_2d(frozen)  # type: ignore[no-untyped-call]
    assert replace_batch_norm(frozen, 16) == replace_batch_norm(network, 16)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(frozen(images), network(images))
    assert sorted(name for name, _ in frozen.named_parameters()) == sorted(n for n, _ in network.named_parameters())


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_networks_without_batch_normalisation_are_refused(name: str) -> None:
    network = timm.create_model(name, num_classes=0)
    with pytest.raises(UserError, match=r"^model\.normalisation: .* no batch normalisation to replace; .*$"):
        replace_batch_norm(network, 32)
    with pytest.raises(UserError, match=r"^model\.normalisation: .* no batch normalisation to freeze; .*$"):
        freeze_batch_norm(network)


def test_freezing_takes_scale_and_shift_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.PReLU), nn.BatchNorm1d(4))
    assert freeze_batch_norm(network) == [network[1], network[2]] == batch_norms(network)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"0.weight", "0.bias", "1.act.weight"}


def step(network: Net) -> tuple[set[str], set[str]]:
    """Takes a step of training; returns the names of the parameters and of the statistics that moved."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    loss = nn.functional.cross_entropy(network.train()(torch.rand(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, _ in network.named_parameters()}
    return moved & parameters, moved - parameters


@pytest.fixture
def resnet50() -> Net:
    """ResNet-50, random weights; the last scale of a block is not 0, which would hold back the block's gradients."""
    torch.manual_seed(3)
    return Net(timm.create_model("resnet50", num_classes=0, zero_init_last=False), 2048)


def test_a_step_moves_every_parameter_and_statistic_of_an_untouched_network(resnet50: Net) -> None:
    parameters, statistics = step(resnet50)
    assert parameters == {name for name, _ in resnet50.named_parameters()}
    assert statistics == {name for name, _ in resnet50.named_buffers()}
    assert len(statistics) == 3 * 53  # mean, variance and number of batches


def test_a_step_moves_everything_but_frozen_batch_normalisation(resnet50: Net) -> None:
    resnet50.still = freeze_batch_norm(resnet50.backbone)
    assert len(resnet50.still) == 53
    parameters, statistics = step(resnet50)
    convolutions = {f"{name}.weight" for name, layer in resnet50.named_modules() if isinstance(layer, nn.Conv2d)}
    assert len(convolutions) == 53
    assert parameters == convolutions | {"head.weight", "head.bias"}
    assert statistics == set()


def test_a_step_moves_the_last_16_convolutions_alone_as_in_paper_000(resnet50: Net) -> None:
    patterns = ["backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2", "backbone.layer3.[0-3]"]
    resnet50.still = frozen_modules(resnet50, patterns) + freeze_batch_norm(resnet50.backbone)
    parameters, statistics = step(resnet50)
    assert sorted(parameters - {"head.weight", "head.bias"}) == LAST_16
    assert len(parameters) == 18
    assert statistics == set()
