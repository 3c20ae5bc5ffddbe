"""DinoBloom: DINOv2 networks that were trained on single blood cells (Koch et al., MICCAI 2024; Apache-2.0).

The networks are timm's DINOv2 ones at 224 pixels. Weights come from timm's port on the Hugging Face hub, or
from the official files (Zenodo 10908163), which hold the whole teacher: its heads are left out.

DinoBloom was trained on RaabinWBC and LISC among others: images of those sets are not unseen by it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn

ARCHITECTURES = {
    "dinobloom_small": "vit_small_patch14_dinov2",
    "dinobloom_base": "vit_base_patch14_dinov2",
    "dinobloom_large": "vit_large_patch14_dinov2",
    "dinobloom_giant": "vit_giant_patch14_dinov2",
}
"""Our names, for ``model.backbone``, and timm's of the same network."""

PUBLISHED_SHA256 = {"DinoBloom-S.pth": "c2f7990b003e89bcece80e379fb8fe0ba2ec392ce19b286e8a294abd99568e44"}
"""Digests of official files, by their name."""


SEEN = "was pre-trained on images of RaabinWBC and LISC: none of these laboratories is unseen by it"
"""What has to be said of its scores on them."""


def has_seen(backbone: str, competition: str) -> bool:
    """Tells whether a network was pre-trained on a competition's images."""
    return backbone in ARCHITECTURES and competition == "raabin"


def fetch(backbone: str) -> Path:
    """Fetches a network's weights from the Hugging Face hub, or finds them in its cache.

    Args:
        backbone: A key of ``ARCHITECTURES``.

    Returns:
        A safetensors file with timm's key names.

    Raises:
        OSError: The hub cannot be reached and the file is not in its cache.
    """
    from huggingface_hub import hf_hub_download  # late: only those who fetch need it

    size = backbone.removeprefix("dinobloom_")
    return Path(hf_hub_download(f"1aurent/vit_{size}_patch14_224.dinobloom", "model.safetensors"))


def convert(state: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """Brings an official checkpoint's keys to timm's; timm's own pass unchanged.

    Args:
        state: The teacher's tensors: ``backbone.*`` beside ``dino_head.*`` and ``ibot_head.*``.
        network: The timm network they are for; position embeddings are brought to its size.

    Returns:
        The backbone's tensors.
    """
    kept = {key: value for key, value in state.items() if not key.startswith(("dino_head", "ibot_head"))}
    renamed = {
        # a network trained in chunks of blocks names them blocks.<chunk>.<block>
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix("backbone.")): value
        for key, value in kept.items()
    }
    return dict(checkpoint_filter_fn(renamed, network))
