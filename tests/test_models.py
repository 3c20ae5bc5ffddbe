"""Networks: normalisation inside, heads, and weights from local files."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from leukofold.config import ImageConfig, ModelConfig
from leukofold.errors import UserError
from leukofold.models.classifier import Classifier, build_backbone
from leukofold.models.heads import build_head

SMALL: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False}


def test_the_classifier_normalises_bytes_as_its_backbone_expects() -> None:
    torch.manual_seed(0)
    network = Classifier(ModelConfig(**SMALL, dropout=0.0), ImageConfig(size=32), classes=5).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    cfg = network.backbone.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    expected = network.head(network.backbone((images / 255.0 - mean) / std))
    assert torch.allclose(network(images), expected, atol=1e-6)
    assert network(images).shape == (2, 5)


def test_mean_and_std_of_the_configuration_win_and_travel_with_the_weights() -> None:
    image = ImageConfig(size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    state = Classifier(ModelConfig(**SMALL), image, classes=2).state_dict()
    assert state["mean"].tolist() == [[[[0.0]], [[0.0]], [[0.0]]]]
    assert state["std"].flatten().tolist() == [1.0, 1.0, 1.0]


def test_the_mlp_head_is_four_blocks_of_linear_relu_dropout() -> None:
    head = build_head(ModelConfig(head="mlp", dropout=0.1), features=768, classes=13)
    assert isinstance(head, nn.Sequential)
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout"] * 4 + ["Linear"]
    widths = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)]
    assert widths == [(768, 512), (512, 512), (512, 512), (512, 512), (512, 13)]


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext2", "test_efficientnet", "test_mambaout"])
def test_backbones_of_every_kind_take_the_configured_size(backbone: str) -> None:
    network = Classifier(ModelConfig(backbone=backbone, pretrained=False), ImageConfig(size=64), classes=3)
    assert network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file_without_its_classifier(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    donor = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / f"weights{suffix}"
    save_file(donor.state_dict(), path) if suffix == ".safetensors" else torch.save(
        {"state_dict": donor.state_dict()}, path
    )
    backbone = build_backbone(ModelConfig(backbone="test_resnet", pretrained=path), 32)
    donated = donor.state_dict()
    assert all(torch.equal(value, donated[key]) for key, value in backbone.state_dict().items())


def test_weights_of_another_architecture_are_refused_naming_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(UserError, match=r"vit.safetensors is of another architecture: it lacks "):
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=path), 32)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02K\x01."])
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"model.pretrained: .*w\."):
            build_backbone(ModelConfig(backbone="test_resnet", pretrained=tmp_path / name), 32)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.pth: no such file"):
        build_backbone(ModelConfig(backbone="test_resnet", pretrained=tmp_path / "nowhere.pth"), 32)


def test_an_unknown_backbone_is_named_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"has no 'convnextv2_tinny'; did you mean convnextv2_tiny"):
        build_backbone(ModelConfig(backbone="convnextv2_tinny", pretrained=False), 224)
