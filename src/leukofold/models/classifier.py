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
    shufflenet,  # noqa: F401  (too)
    small_cnn,  # noqa: F401  (makes itself known to timm)
    squeezenet,  # noqa: F401  (too)
)
from leukofold.models.freezing import frozen_modules
from leukofold.models.heads import ModalityHeads, build_head
from leukofold.models.normalisation import batch_norms, freeze_batch_norm, replace_batch_norm
from leukofold.models.pretrained import load_backbone, widened


class Classifier(nn.Module):
    """Classifies uint8 images of cells, one of each cell or several.

    Mean and deviation are buffers of the network, so that a checkpoint knows its own preprocessing
    and images travel to the device as bytes.

    Args:
        model: Backbone, weights and head.
        image: Input size and normalisation.
        classes: K.
        modalities: M, images of a cell; the network sees their colours side by side.

    Raises:
        UserError: The backbone is unknown or its weights cannot be had.
    """

    backbone: Any  # a timm model, with attributes that nn.Module does not declare
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: ModelConfig, image: ImageConfig, classes: int, modalities: int = 1) -> None:
        super().__init__()
        self.side = image.side
        if model.fusion == "mimo" and modalities == 1:
            raise UserError("model.fusion: mimo is for several images of a cell, and there is one; take early")
        self.backbone = build_backbone(model, image.side, 3 * modalities)
        if model.normalisation == "group":
            replace_batch_norm(self.backbone, model.norm_groups)
        width = self.backbone.head_hidden_size
        if model.fusion == "mimo":
            self.head: nn.Module = ModalityHeads([build_head(model, width, classes) for _ in range(modalities)])
        else:
            self.head = build_head(model, width, classes)
        defaults: dict[str, Any] = self.backbone.pretrained_cfg
        for name, given in (("mean", image.mean), ("std", image.std)):
            values = torch.tensor(given if given is not None else defaults[name], dtype=torch.float32)
            self.register_buffer(name, values.repeat(modalities).view(1, 3 * modalities, 1, 1))
        self._frozen = frozen_modules(self, model.frozen)
        if model.normalisation == "frozen":
            self._frozen += freeze_batch_norm(self.backbone)
        if model.channels_last or (model.channels_last is None and batch_norms(self.backbone)):
            for parameter in self.parameters():
                if parameter.ndim == 4:  # some networks have kernels of three dimensions too, for which there is none
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    @property
    def channels(self) -> int:
        """C of the input: three for each image of a cell."""
        return self.mean.shape[1]

    def train(self, mode: bool = True) -> "Classifier":
        """Sets training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns logits.

        Args:
            inputs: n x 3M x S x S uint8, RGB of each modality; or n x D, what ``embed`` returned of images.

        Returns:
            n x K; of a head for each modality n x M x K in training.
        """
        features = inputs if inputs.ndim == 2 else self.embed(inputs)
        logits: torch.Tensor = self.head(features)
        return logits

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the pooled features that the head sees.

        Args:
            images: n x 3M x S x S uint8, RGB of each modality.

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
        """Returns the backbone's input of n x 3M x S x S uint8 images: their centre, normalised."""
        images = self.centre(images)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def build_backbone(config: ModelConfig, size: int, channels: int = 3) -> Any:
    """Builds a timm backbone that returns pooled features.

    Weights for three channels are widened to more as timm does: each kernel of the first convolution is repeated and
    scaled by 3 / channels, so that equal images give what one of them gave.

    Args:
        config: Its name, weights, dropout and stochastic depth.
        size: Side of the input, pixels.
        channels: C, three for each image of a cell.

    Returns:
        A module from n x C x size x size to n x head_hidden_size.

    Raises:
        UserError: The name is unknown, or the weights cannot be fetched or do not fit.
    """
    name = dinobloom.ARCHITECTURES.get(config.backbone, config.backbone)
    backbone = _create(name, config, size, channels)
    if name != config.backbone:  # a DinoBloom network
        if config.pretrained is not False:
            path = _fetched(config) if config.pretrained is True else config.pretrained
            load_backbone(
                backbone,
                path,
                convert=lambda state: dinobloom.convert(widened(state, ("patch_embed.proj",), channels), backbone),
                published=dinobloom.PUBLISHED_SHA256,
            )
    elif isinstance(config.pretrained, Path):
        classifier = backbone.pretrained_cfg.get("classifier") or ()
        layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        first = backbone.pretrained_cfg.get("first_conv") or ()
        stems = (first,) if isinstance(first, str) else tuple(first)
        load_backbone(backbone, config.pretrained, layers, lambda state: widened(state, stems, channels))
    return backbone


def _create(name: str, config: ModelConfig, size: int, channels: int) -> Any:
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
    if channels != 3:
        arguments["in_chans"] = channels
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
