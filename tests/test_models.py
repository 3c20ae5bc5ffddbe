"""Networks: normalisation inside, heads, and weights from local files."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from leukofold.config import CONFIG_FOLDER, ImageConfig, ModelConfig, load_config
from leukofold.errors import UserError
from leukofold.models import dinobloom
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
    assert widths == [(768, 512), (512, 256), (256, 128), (128, 64), (64, 13)]


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


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_one_logit_beside_zero_is_a_binary_network(head: str) -> None:
    torch.manual_seed(0)
    built = build_head(ModelConfig.model_validate({"head": head, "one_logit": True}), features=24, classes=2).eval()
    assert [layer.out_features for layer in built.modules() if isinstance(layer, nn.Linear)][-1] == 1
    features, targets = torch.randn(9, 24), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    logits = built(features)
    assert logits.shape == (9, 2)
    assert (logits[:, 0] == 0).all()
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1], logits[:, 1].sigmoid())
    binary = nn.functional.binary_cross_entropy_with_logits(logits[:, 1], targets.float())
    torch.testing.assert_close(nn.functional.cross_entropy(logits, targets), binary)


def test_one_logit_for_many_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.one_logit: tells two classes apart, the data have 13; set it to false"):
        build_head(ModelConfig(one_logit=True), features=24, classes=13)


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


@pytest.mark.parametrize(
    ("name", "millions"), [("swinv2_tiny", 28.1), ("convnextv2_tiny", 28.4), ("dinobloom_small", 22.0)]
)
def test_paper001_networks_have_the_papers_number_of_parameters(name: str, millions: float) -> None:
    # Srivastava et al. 2026 says 28.1 M, 28.4 M and 23 M; at 224 pixels DinoBloom-S itself has 21.6 M
    path = CONFIG_FOLDER / "wbcbench" / "paper001" / f"{name}.yaml"
    config = load_config([path], ["model.pretrained=false"])
    with torch.device("meta"):  # shapes only
        network = Classifier(config.model, config.image, 13)
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 1) == millions


@pytest.fixture
def small_dinobloom(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets dinobloom_small be a network of DINOv2's kind with a fiftieth of its size; returns its maker."""
    create = timm.create_model
    arguments: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}

    def make(**more: Any) -> Any:
        return create("vit_small_patch14_dinov2", num_classes=0, img_size=28, **arguments, **more)

    monkeypatch.setattr(
        "leukofold.models.classifier.timm.create_model",
        lambda name, pretrained=False, **given: create(
            name, pretrained=pretrained, **({**arguments, **given} if "dinov2" in name else given)
        ),
    )
    return make


def official(network: nn.Module, chunked: bool) -> dict[str, Any]:
    """A checkpoint as DinoBloom's authors publish it: the teacher, with the heads of its training."""
    teacher = {}
    for key, value in network.state_dict().items():
        block = key.split(".")[1] if key.startswith("blocks.") else ""
        teacher[f"backbone.{key.replace('blocks.', f'blocks.{block}.', 1) if chunked else key}"] = value
    teacher["backbone.mask_token"] = torch.zeros(1, 24)
    teacher["dino_head.mlp.0.weight"] = teacher["ibot_head.last_layer.weight"] = torch.zeros(3, 3)
    return {"teacher": teacher}


@pytest.mark.parametrize("chunked", [False, True])
def test_dinobloom_loads_from_the_official_file_without_its_heads(
    small_dinobloom: Any, tmp_path: Path, chunked: bool
) -> None:
    torch.manual_seed(2)
    donor = small_dinobloom().eval()
    torch.save(official(donor, chunked), tmp_path / "mine.pth")
    backbone = build_backbone(ModelConfig(backbone="dinobloom_small", pretrained=tmp_path / "mine.pth"), 28).eval()
    images = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(backbone(images), donor(images))


def test_dinobloom_loads_from_timms_own_file_at_another_size(small_dinobloom: Any, tmp_path: Path) -> None:
    donor = small_dinobloom()
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    config = ModelConfig(backbone="dinobloom_small", pretrained=tmp_path / "model.safetensors")
    backbone = build_backbone(config, 56)
    assert backbone.pos_embed.shape == (1, 1 + 16, 24)  # 2 x 2 patches brought to 4 x 4
    assert torch.equal(backbone.blocks[1].attn.qkv.weight, donor.blocks[1].attn.qkv.weight)


def test_a_file_of_an_official_name_must_have_the_official_digest(small_dinobloom: Any, tmp_path: Path) -> None:
    torch.save(official(small_dinobloom(), False), tmp_path / "DinoBloom-S.pth")
    with pytest.raises(UserError, match=r"DinoBloom-S.pth: its SHA-256 is not that of the official DinoBloom-S.pth"):
        build_backbone(ModelConfig(backbone="dinobloom_small", pretrained=tmp_path / "DinoBloom-S.pth"), 28)


def test_weights_of_another_network_are_no_dinobloom(small_dinobloom: Any, tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    config = ModelConfig(backbone="dinobloom_small", pretrained=tmp_path / "resnet.safetensors")
    with pytest.raises(
        UserError, match=r"of another architecture: it lacks blocks.0.*it has, and the backbone has not"
    ):
        build_backbone(config, 28)
    deeper = small_dinobloom(mlp_ratio=2.0)
    save_file(deeper.state_dict(), tmp_path / "narrow.safetensors")
    config = ModelConfig(backbone="dinobloom_small", pretrained=tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"it has in another shape blocks.0.mlp.fc1.bias"):
        build_backbone(config, 28)


def test_dinobloom_comes_from_the_hub_where_it_is_asked_for(
    small_dinobloom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = small_dinobloom()
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    backbone = build_backbone(ModelConfig(backbone="dinobloom_small", pretrained=True), 28)
    assert asked == [("1aurent/vit_small_patch14_224.dinobloom", "model.safetensors")]
    assert torch.equal(backbone.cls_token, donor.cls_token)

    def unreachable(repository: str, name: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(
        UserError, match=r"weights of dinobloom_small cannot be fetched \(no route to host\); name a local"
    ):
        build_backbone(ModelConfig(backbone="dinobloom_small", pretrained=True), 28)


def test_every_dinobloom_is_known_to_timm() -> None:
    assert set(dinobloom.ARCHITECTURES.values()) <= set(timm.list_models("vit_*_dinov2"))
    with pytest.raises(UserError, match=r"has no 'dinobloom_smal'; did you mean dinobloom_small"):
        build_backbone(ModelConfig(backbone="dinobloom_smal", pretrained=False), 224)


def test_the_small_network_is_a_timm_model_like_any_other() -> None:
    network = Classifier(ModelConfig(backbone="small_cnn", pretrained=False), ImageConfig(size=64), classes=2)
    assert network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 2)
    convolutions = sum(9 * a * b for a, b in ((3, 32), (32, 64), (64, 128), (128, 256)))
    assert sum(p.numel() for p in network.backbone.parameters()) == convolutions + 2 * (32 + 64 + 128 + 256)
    maps = network.backbone.forward_features(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 256, 4, 4)  # Grad-CAM looks at these
    with pytest.raises(UserError, match=r"model\.pretrained: the weights of small_cnn cannot be fetched"):
        build_backbone(ModelConfig(backbone="small_cnn"), 64)


def test_features_go_through_the_head_as_the_images_would() -> None:
    network = Classifier(ModelConfig(**SMALL, dropout=0.0), ImageConfig(size=32), classes=3).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(network(network.embed(images)), network(images))
