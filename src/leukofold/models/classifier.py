"""The network that is trained: normalisation, a timm backbone and a head, in one module."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from leukofold.config import ImageConfig, ModelConfig
from leukofold.errors import UserError, first_line
from leukofold.models import (
    dinobloom,
    small_cnn,  # noqa: F401  (makes itself known to timm)
    squeezenet,  # noqa: F401  (too)
)
from leukofold.models.freezing import frozen_modules
from leukofold.models.heads import build_head
from leukofold.models.normalisation import freeze_batch_norm, replace_batch_norm
from leukofold.models.pretrained import load_backbone


class Classifier(nn.Module):
    """Classifies uint8 images.

    Mean and deviation are buffers of the network, so that a checkpoint knows its own preprocessing
    and images travel to the device as bytes.

    Args:
        model: Backbone, weights and head.
        image: Input size and normalisation.
        classes: K.

    Raises:
        UserError: The backbone is unknown or its weights cannot be had.
    """

    backbone: Any  # a timm model, with attributes that nn.Module does not declare
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: ModelConfig, image: ImageConfig, classes: int) -> None:
        super().__init__()
        self.side = image.side
        self.backbone = build_backbone(model, image.side)
        if model.normalisation == "group":
            replace_batch_norm(self.backbone, model.norm_groups)
        self.head = build_head(model, self.backbone.head_hidden_size, classes)
        defaults: dict[str, Any] = self.backbone.pretrained_cfg
        for name, given in (("mean", image.mean), ("std", image.std)):
            values = torch.tensor(given if given is not None else defaults[name], dtype=torch.float32)
            self.register_buffer(name, values.view(1, 3, 1, 1))
        self._frozen = frozen_modules(self, model.frozen)
        if model.normalisation == "frozen":
            self._frozen += freeze_batch_norm(self.backbone)

    def train(self, mode: bool = True) -> "Classifier":
        """Sets training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns logits.

        Args:
            inputs: n x 3 x S x S uint8, RGB; or n x D, what ``embed`` returned of images.

        Returns:
            n x K.
        """
        features = inputs if inputs.ndim == 2 else self.embed(inputs)
        logits: torch.Tensor = self.head(features)
        return logits

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the pooled features that the head sees.

        Args:
            images: n x 3 x S x S uint8, RGB.

        Returns:
            n x D.
        """
        features: torch.Tensor = self.backbone(self.normalise(images))
        return features

    def centre(self, images: torch.Tensor) -> torch.Tensor:
        """Cuts out what the network sees of images that are larger than its input (``image.input_size``)."""
        start = (images.shape[-1] - self.side) // 2
        return images[..., start : start + self.side, start : start + self.side] if start > 0 else images

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the backbone's input of n x 3 x S x S uint8 images: their centre, normalised."""
        images = self.centre(images)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def build_backbone(config: ModelConfig, size: int) -> Any:
    """Builds a timm backbone that returns pooled features.

    Args:
        config: Its name, weights, dropout and stochastic depth.
        size: Side of the input, pixels.

    Returns:
        A module from n x 3 x size x size to n x head_hidden_size.

    Raises:
        UserError: The name is unknown, or the weights cannot be fetched or do not fit.
    """
    name = dinobloom.ARCHITECTURES.get(config.backbone, config.backbone)
    backbone = _create(name, config, size)
    if name != config.backbone:  # a DinoBloom network
        if config.pretrained is not False:
            path = _fetched(config) if config.pretrained is True else config.pretrained
            load_backbone(
                backbone,
                path,
                convert=lambda state: dinobloom.convert(state, backbone),
                published=dinobloom.PUBLISHED_SHA256,
            )
    elif isinstance(config.pretrained, Path):
        classifier = backbone.pretrained_cfg.get("classifier") or ()
        load_backbone(backbone, config.pretrained, (classifier,) if isinstance(classifier, str) else tuple(classifier))
    return backbone


def _create(name: str, config: ModelConfig, size: int) -> Any:
    """Creates a timm network without classifier, with the hub's weights where they are asked for."""
    plain = name.split(".")[0]
    if plain not in timm.list_models():
        near = difflib.get_close_matches(plain, [*timm.list_models(), *dinobloom.ARCHITECTURES], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "python -c 'import timm; print(timm.list_models())'"
        raise UserError(f"model.backbone: timm {timm.__version__} has no '{config.backbone}'; {hint}")
    arguments: dict[str, Any] = {"num_classes": 0}
    try:
        defaults = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"model.backbone: {config.backbone}: {first_line(error)}") from None
    if defaults is not None and defaults.fixed_input_size:
        arguments["img_size"] = size
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    if config.backbone_dropout:
        arguments["drop_rate"] = config.backbone_dropout
    from_timm = config.pretrained is True and name == config.backbone
    try:
        return timm.create_model(name, pretrained=from_timm, **arguments)
    except TypeError as error:
        raise UserError(f"model.backbone: {config.backbone} does not take {arguments}: {error}") from None
    except AssertionError as error:
        raise UserError(
            f"image.size, or image.input_size: {config.backbone} does not take {size} pixels: {first_line(error)}"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(config, error) from None


def _fetched(config: ModelConfig) -> Path:
    """Fetches DinoBloom's weights from the hub."""
    try:
        return dinobloom.fetch(config.backbone)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(config, error) from None


def _unreachable(config: ModelConfig, error: Exception) -> UserError:
    """Says what to do where weights cannot be fetched."""
    return UserError(
        f"model.pretrained: the weights of {config.backbone} cannot be fetched ({first_line(error)}); "
        "name a local file with --set model.pretrained=FILE, or train from scratch with model.pretrained=false"
    )
