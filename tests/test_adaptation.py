"""Batch statistics of the images to be predicted, against NumPy and against torch's own batch normalisation."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn

from leukofold.config import ImageConfig, ModelConfig
from leukofold.errors import UserError
from leukofold.models.adaptation import adapt_batch_statistics
from leukofold.models.classifier import Classifier
from leukofold.models.normalisation import batch_norms, replace_batch_norm

STATISTICS = ("running_mean", "running_var")


def one_layer() -> Any:
    """A network of one layer of three channels with source statistics."""
    layer = nn.BatchNorm2d(3)
    layer.running_mean = torch.tensor([1.0, -2.0, 0.5])
    layer.running_var = torch.tensor([4.0, 0.25, 9.0])
    return nn.Sequential(layer)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 100), st.integers(0, 2**31))
def test_one_layer_gets_the_mean_and_variance_of_all_pixels_mixed_with_the_source(
    sizes: list[int], prior: float, seed: int
) -> None:
    torch.manual_seed(seed)
    batches = [torch.randn(size, 3, 4, 5) * (1 + position) + 3 * position for position, size in enumerate(sizes)]
    network = one_layer()
    adapt_batch_statistics(network, batches, prior)
    pixels = torch.cat(batches).double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    count = sum(sizes)
    mean = (prior * np.array([1.0, -2.0, 0.5]) + count * pixels.mean(1)) / (prior + count)
    variance = (prior * np.array([4.0, 0.25, 9.0]) + count * pixels.var(1)) / (prior + count)
    assert network[0].running_mean.numpy() == pytest.approx(mean, rel=1e-4, abs=1e-4)
    assert network[0].running_var.numpy() == pytest.approx(variance, rel=1e-4, abs=1e-4)


def test_an_endless_prior_keeps_the_source() -> None:
    network, images = one_layer(), torch.randn(5, 3, 4, 4) * 7
    before = network.eval()(images)
    adapt_batch_statistics(network, [images], float("inf"))
    assert torch.equal(network(images), before)
    adapt_batch_statistics(network, [images], 1e12)
    assert torch.allclose(network[0].running_mean, torch.tensor([1.0, -2.0, 0.5]), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet", "small_cnn", "levit_128s"])
def test_a_single_batch_is_normalised_as_in_training(name: str) -> None:
    torch.manual_seed(0)
    size = 224 if name == "levit_128s" else 64  # has batch normalisation of vectors too
    network = timm.create_model(name, num_classes=0).double()
    images = torch.randn(4, 3, size, size).double()
    adapt_batch_statistics(network, [images], 0)
    adapted = network(images)
    for layer in batch_norms(network):  # nothing else: neither dropout nor stochastic depth
        layer.train()
    assert torch.allclose(network(images), adapted, atol=1e-9)


def test_later_batches_meet_deeper_layers_with_what_is_known_by_then() -> None:
    torch.manual_seed(1)
    network: Any = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
    first, second = torch.randn(3, 2, 4, 4), torch.randn(1, 2, 4, 4) * 3 + 2
    adapt_batch_statistics(network, iter([first, second]), prior=2)

    def normalised(images: np.ndarray, known: np.ndarray, weight: float) -> np.ndarray:
        mean = weight * known.mean((0, 2, 3), keepdims=True)
        variance = weight * known.var((0, 2, 3), keepdims=True) + (1 - weight)  # the source: 0 and 1
        return np.asarray(np.maximum((images - mean) / np.sqrt(variance + 1e-5), 0))

    a, b = first.double().numpy(), second.double().numpy()
    both = np.concatenate([a, b])
    deeper = np.concatenate([normalised(a, a, 3 / 5), normalised(b, both, 4 / 6)])
    assert network[2].running_mean.numpy() == pytest.approx(deeper.mean((0, 2, 3)) * 4 / 6, abs=1e-5)
    assert network[2].running_var.numpy() == pytest.approx(deeper.var((0, 2, 3)) * 4 / 6 + 2 / 6, abs=1e-5)


def test_another_brightness_and_contrast_changes_nothing_any_more() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(  # without padding, whose zeros would not change with the brightness
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, eps=0),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4, eps=0),
    ).double()
    images = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    dim = 0.3 * images + 0.4
    source = network.eval()(images)
    assert not torch.allclose(network(dim), source, atol=0.1)
    adapt_batch_statistics(network, images.tensor_split(2), 0)
    adapted = network(images)
    assert not torch.allclose(adapted, source, atol=0.1)
    adapt_batch_statistics(network, dim.tensor_split(2), 0)
    assert torch.allclose(network(dim), adapted, atol=1e-9)


def test_nothing_but_running_statistics_changes_and_dropout_is_off() -> None:
    torch.manual_seed(3)
    model = ModelConfig(
        backbone="test_efficientnet", pretrained=False, dropout=0.9, drop_path=0.5, frozen=("backbone",)
    )
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    states: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        torch.manual_seed(4)
        network = Classifier(model, ImageConfig(size=32), classes=3).train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        torch.rand(len(states))  # would change what dropout drops
        adapt_batch_statistics(network, images.tensor_split(3), prior=5)
        states.append(network.state_dict())
    moved = {name for name, value in states[0].items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.endswith(STATISTICS)} != set()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())


def test_frozen_layers_adapt_as_the_others_do() -> None:
    torch.manual_seed(5)
    network = timm.create_model("test_efficientnet", num_classes=0)
    frozen = timm.create_model("test_efficientnet", num_classes=0)
    frozen.load_state_dict(network.state_dict())
    frozen = freeze_batch_norm_2d(frozen)  # type: ignore[no-untyped-call]
    images = torch.rand(6, 3, 32, 32)
    for each in (network, frozen):
        adapt_batch_statistics(each, images.tensor_split(3), prior=3)
    state = frozen.state_dict()
    for name, value in network.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.allclose(state[name], value, rtol=1e-4, atol=1e-5), name


def test_networks_without_batch_statistics_are_refused() -> None:
    replaced = timm.create_model("test_resnet", num_classes=0)
    replace_batch_norm(replaced, 32)
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    for network in (replaced, timm.create_model("test_vit", num_classes=0), untracked):
        with pytest.raises(
            UserError, match=r"^inference\.batch_statistics: the network has no batch normalisation to adapt; .*$"
        ):
            adapt_batch_statistics(network, [torch.rand(2, 3, 32, 32)], 0)


def test_a_single_pixel_is_no_domain() -> None:
    network, pixel = one_layer(), torch.ones(1, 3, 1, 1)
    with pytest.raises(
        UserError, match=r"^inference\.batch_statistics: a map of one pixel in one image has no variance; .*$"
    ):
        adapt_batch_statistics(network, [pixel], 0)
    assert not network[0]._forward_pre_hooks
    network = one_layer()
    adapt_batch_statistics(network, [pixel], 1)  # half of the source is left
    assert network[0].running_mean.tolist() == [1.0, -0.5, 0.75]
    assert network[0].running_var.tolist() == [2.0, 0.125, 4.5]
