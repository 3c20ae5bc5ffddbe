"""ShuffleNetV2: torchvision's networks and weights under timm's names, for any number of channels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torchvision.models import shufflenet_v2_x0_5, shufflenet_v2_x1_0  # type: ignore[import-untyped]

from leukofold.models import shufflenet
from leukofold.models.pretrained import load_backbone

PAIRS = [("shufflenetv2_x1_0", shufflenet_v2_x1_0), ("shufflenetv2_x0_5", shufflenet_v2_x0_5)]


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def donor(build: Callable[..., Any]) -> Any:
    """Torchvision's network, with random weights and batch statistics."""
    torch.manual_seed(0)
    theirs = build(weights=None).train()
    with torch.no_grad():
        for _ in range(2):
            theirs(torch.randn(4, 3, 64, 64))
    return theirs.eval()


@pytest.mark.parametrize(("name", "build"), PAIRS)
def test_a_local_file_of_torchvision_gives_torchvisions_outputs(
    name: str, build: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = donor(build)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours: Any = timm.create_model(name, num_classes=0).eval()
    load_backbone(ours, tmp_path / "weights.pth", (ours.pretrained_cfg["classifier"],))
    images = torch.randn(2, 3, 96, 96)
    maps = ours.forward_features(images)
    assert maps.shape == (2, 1024, 3, 3)
    assert torch.equal(ours(images), maps.mean((2, 3)))
    assert torch.equal(theirs.fc(ours(images)), theirs(images))


@pytest.mark.parametrize(("name", "build"), PAIRS)
def test_with_a_classifier_it_is_torchvisions_network(name: str, build: Callable[..., Any]) -> None:
    theirs = donor(build)
    ours: Any = timm.create_model(name).eval()
    renamed = {key.replace("fc.", "head.fc.") if key.startswith("fc.") else key for key in theirs.state_dict()}
    assert set(ours.state_dict()) == renamed
    ours.load_state_dict({key.replace("head.", ""): value for key, value in theirs.state_dict().items()}, strict=False)
    ours.head.fc.load_state_dict(theirs.fc.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert ours(images).shape == (2, 1000)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(("name", "build"), PAIRS)
def test_pretrained_kernels_are_repeated_and_rescaled_for_more_channels(
    name: str, build: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = donor(build)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    source = {"file": str(tmp_path / "weights.pth")}
    ours: Any = timm.create_model(
        name, pretrained=True, num_classes=5, in_chans=12, pretrained_cfg_overlay=source
    ).eval()
    assert torch.allclose(ours.conv1[0].weight, theirs.conv1[0].weight.repeat(1, 4, 1, 1) / 4)
    assert torch.equal(ours.conv5[0].weight, theirs.conv5[0].weight)
    images = torch.randn(2, 3, 64, 64)
    features = ours.forward_head(ours.forward_features(images.repeat(1, 4, 1, 1)), pre_logits=True)
    assert torch.allclose(theirs.fc(features), theirs(images), atol=1e-5)
    assert ours(torch.randn(2, 12, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(("name", "width", "parameters"), [("x1_0", 24, 1_253_604), ("x0_5", 24, 341_792)])
def test_the_size_is_the_published_one_and_grows_with_the_channels(name: str, width: int, parameters: int) -> None:
    # torchvision gives 2,278,604 and 1,366,792 with a classifier of 1024 x 1000 weights and 1000 biases
    for channels in (1, 3, 12):
        network = timm.create_model(f"shufflenetv2_{name}", num_classes=0, in_chans=channels)
        expected = parameters + (channels - 3) * width * 9
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_public_weights_are_torchvisions() -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights, ShuffleNet_V2_X1_0_Weights

    for name, weights in (
        ("shufflenetv2_x1_0", ShuffleNet_V2_X1_0_Weights),
        ("shufflenetv2_x0_5", ShuffleNet_V2_X0_5_Weights),
    ):
        theirs = weights.IMAGENET1K_V1
        cfg: Any = timm.get_pretrained_cfg(name)
        assert cfg.url == theirs.url
        preset = theirs.transforms()
        assert (list(cfg.mean), list(cfg.std)) == (preset.mean, preset.std)


def test_parameters_belong_to_stages() -> None:
    network: Any = timm.create_model("shufflenetv2_x1_0", num_classes=0)
    stages = group_parameters(network, network.group_matcher(coarse=True))
    assert {stage: sorted({name.split(".")[0] for name in names}) for stage, names in stages.items()} == {
        0: ["conv1"],
        1: ["stage2"],
        2: ["stage3"],
        3: ["conv5", "stage4"],
    }
    blocks = group_parameters(network, network.group_matcher())
    assert len(blocks) == 1 + (4 + 8 + 4)


@pytest.mark.usefixtures("deterministic")
def test_training_is_deterministic() -> None:
    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        network = timm.create_model("shufflenetv2_x0_5", num_classes=5, in_chans=12)
        loss = nn.functional.cross_entropy(network(torch.randn(4, 12, 64, 64)), torch.arange(4))
        return list(torch.autograd.grad(loss, list(network.parameters())))

    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in first if gradient.ndim == 4)


def test_timm_knows_both() -> None:
    assert timm.list_models("shufflenetv2_*", module=shufflenet.__name__.split(".")[-1]) == [
        "shufflenetv2_x0_5",
        "shufflenetv2_x1_0",
    ]
