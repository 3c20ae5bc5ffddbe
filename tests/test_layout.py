"""Channels last and fused optimisers: who gets them, and that numbers stay what they were; freed memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leukofold.config import ImageConfig, ModelConfig, OptimizerConfig
from leukofold.models.classifier import Classifier
from leukofold.models.weights import load_weights, save_weights
from leukofold.processes import keep_freed_memory
from leukofold.training.optimizing import build_optimizer


def build(backbone: str, channels_last: bool | None = None, **model: object) -> Classifier:
    """A small network with weights that are always the same."""
    torch.manual_seed(0)
    settings = {"backbone": backbone, "pretrained": False, "channels_last": channels_last, **model}
    return Classifier(ModelConfig.model_validate(settings), ImageConfig(size=32), 4)


def is_channels_last(network: Classifier) -> bool:
    """Whether the kernels of larger convolutions lie as channels last has them."""
    kernels = [value for value in network.parameters() if value.ndim == 4 and min(value.shape[1:]) > 1]
    found = {kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(
    ("backbone", "given", "model", "expected"),
    [
        ("test_resnet", None, {}, True),
        ("test_resnet", False, {}, False),
        ("test_resnet", None, {"normalisation": "frozen"}, True),
        ("test_resnet", None, {"normalisation": "group"}, False),
        ("test_convnext2", None, {}, False),
        ("test_convnext2", True, {}, True),
        ("test_vit2", None, {}, False),
    ],
)
def test_networks_with_batch_normalisation_are_laid_out_channels_last(
    backbone: str, given: bool | None, model: dict[str, object], expected: bool
) -> None:
    assert is_channels_last(build(backbone, given, **model)) is expected


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext2"])
def test_the_layout_changes_no_logit_and_no_gradient_but_for_rounding(backbone: str) -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain, together = (build(backbone, layout).double() for layout in (False, True))
    logits = []
    for network in (plain, together):
        network.train()
        torch.manual_seed(2)  # of the dropout
        logits.append(network(images))
        logits[-1].square().sum().backward()
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-9, atol=1e-9)
    for one, other in zip(plain.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9, check_stride=False)


def test_saved_weights_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    plain, together = build("test_resnet", False), build("test_resnet", True)
    save_weights(plain, tmp_path / "plain")
    save_weights(together, tmp_path / "together")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "together").read_bytes()
    load_weights(together, tmp_path / "plain")
    assert is_channels_last(together)
    assert all(torch.equal(value, together.state_dict()[key]) for key, value in load_file(tmp_path / "plain").items())


@pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("adam", True), ("sgd", True), ("lamb", False)])
def test_optimisers_of_torch_are_fused(name: str, fused: bool) -> None:
    optimizer = build_optimizer(build("test_resnet"), OptimizerConfig(name=name))
    assert {bool(group.get("fused")) for group in optimizer.param_groups} == {fused}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_step_is_the_plain_step(name: str) -> None:
    network, other = build("test_resnet"), build("test_resnet")
    config = OptimizerConfig(name=name, lr=1e-2, weight_decay=0.05)
    optimizers = [build_optimizer(network, config), build_optimizer(other, config)]
    for group in optimizers[1].param_groups:
        group["fused"] = False
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        network.eval()(images).square().sum().backward()
        for one, same in zip(network.parameters(), other.parameters(), strict=True):
            # the kernel of a fused step goes through memory without a look at strides
            assert one.grad is not None
            steps = [place for place, size in enumerate(one.shape) if size > 1]  # along one element there is no step
            assert [one.grad.stride(place) for place in steps] == [one.stride(place) for place in steps]
            same.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, same in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept_and_used_again() -> None:
    program = """
import resource, sys
if "keep" in sys.argv:
    from leukofold.processes import keep_freed_memory
    keep_freed_memory()
for _ in range(20):
    b'x' * 2**26  # 64 MB: written to once each time
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""

    def faults(*arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return int(done.stdout)

    kept, usual = faults("keep"), faults()
    assert usual - kept > 15 * 2**26 // 2**21 * 0.9  # pages touched for the first time, of 2 MB at the most


def test_keeping_memory_is_nothing_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    asked: list[object] = []
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    keep_freed_memory()
    assert not asked  # there may be no C library of that kind
