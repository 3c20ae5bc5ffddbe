"""Pictures of what training does to images: every augmentation of a configuration, CutMix and MixUp."""

from collections.abc import Sequence

import numpy as np
import torch

from leukofold.augment import Augmentation
from leukofold.config import Config, MixingConfig, Transform
from leukofold.experiment import modalities_seen
from leukofold.images.preparing import Preparation
from leukofold.loaders import as_channels
from leukofold.rendering import multimodal
from leukofold.rendering.cell import draw_image
from leukofold.rendering.contact_sheet import labelled_row
from leukofold.rendering.plan import IMAGE_STREAM, PATIENT_STREAM
from leukofold.rendering.stain import sample_appearance
from leukofold.training.mixing import Mixer

LABELS = ("SNE", "LY", "MO", "EO", "BL", "BNE", "MY", "PLY")  # one rendered cell per column
MULTIMODAL = (
    "Eosinophil",
    "Neutrophil",
    "Basophil",
    "Monocyte",
    "Lymphocyte",
)  # cells of several images, as many as fit
COLUMNS = 8
SIDE = 145  # of a cell in the picture, pixels: the middle of the network's input, at its own scale


def augmentation_sheet(config: Config, seed: int = 0) -> np.ndarray:
    """Draws one row per augmentation of a configuration, each at its full probability.

    Args:
        config: Whose ``image.augment`` and ``mixing`` are drawn.
        seed: Of cells and augmentations.

    Returns:
        H x W x 3 uint8 RGB; the first row are the cells as they are, the last one all together. Several images of a
        cell stand side by side.
    """
    prepare = Preparation(config.image.model_copy(update={"denoise": None}), lambda image: image)
    cells = [np.stack([prepare(image) for image in images]) for images in _cells(modalities_seen(config), seed)]
    rows = [_row("as it is", "rendered cells", cells)]
    for spec in config.image.augment:
        always = Transform.model_validate({**spec.model_dump(), "p": 1.0})
        probability = f"p = {(spec.model_extra or {}).get('p', 0.5)}"
        rows.append(_row(_short(spec.name), probability, _augmented([always], cells, seed)))
    for name, share in (("cutmix", config.mixing.cutmix), ("mixup", config.mixing.mixup)):
        if share:
            rows.append(_row(name, f"p = {share} per batch", _mixed(name, config.mixing, cells)))
    rows.append(_row("together", "but for mixing", _augmented(config.image.augment, cells, seed)))
    return np.vstack(rows)


def _row(title: str, subtitle: str, cells: list[np.ndarray]) -> np.ndarray:
    """Puts the middles of all images of cells, M x S x S x 3 each, side by side behind a legend."""
    images = [image for cell in cells for image in cell]
    start = max(0, (images[0].shape[0] - SIDE) // 2)
    return labelled_row(title, subtitle, [image[start : start + SIDE, start : start + SIDE] for image in images], SIDE)


def _cells(seen: Sequence[str], seed: int) -> list[list[np.ndarray]]:
    """Draws the images of some cells: one of each, or those that are seen."""
    drawn = [name for name in seen if name in multimodal.MODALITIES]
    if not drawn:
        return [[_cell(label, column, seed)] for column, label in enumerate(LABELS)]
    cells = []
    for number in range(max(2, COLUMNS // len(drawn))):
        look, rng = multimodal.patient_look(seed, number), np.random.default_rng([seed, IMAGE_STREAM, number])
        scene = multimodal.draw_scene(MULTIMODAL[number % len(MULTIMODAL)], look, rng)
        cells.append([multimodal.take_picture(name, scene, look, rng) for name in drawn])
    return cells


def _cell(label: str, patient: int, seed: int) -> np.ndarray:
    """Draws one cell."""
    appearance = sample_appearance(np.random.default_rng([seed, PATIENT_STREAM, patient]))
    return draw_image(label, appearance, np.random.default_rng([seed, IMAGE_STREAM, patient]))


def _augmented(specs: Sequence[Transform], cells: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Augments each cell with a seed of its own."""
    augmentation = Augmentation(specs)
    return [augmentation(cell, seed + column) for column, cell in enumerate(cells)]


def _mixed(name: str, config: MixingConfig, cells: list[np.ndarray]) -> list[np.ndarray]:
    """Mixes the cells with each other, in pairs with shares of their own so that the range is seen."""
    always = config.model_copy(update={"cutmix": float(name == "cutmix"), "mixup": float(name == "mixup")})
    mixer = Mixer(always, len(cells), 0.0, 2)
    mixer.seed(5)
    mixed: list[np.ndarray] = []
    for first in range(0, len(cells) - len(cells) % 2, 2):
        batch = torch.stack([as_channels(cell) for cell in cells[first : first + 2]])
        images, _ = mixer(batch, torch.tensor([first, first + 1]))
        parts = images.round().to(torch.uint8).unflatten(1, (-1, 3))  # type: ignore[no-untyped-call]
        mixed += list(parts.permute(0, 1, 3, 4, 2).numpy())
    return mixed


def _short(name: str) -> str:
    """Breaks albumentations' long names to the width of the legend."""
    return {"RandomBrightnessContrast": "Brightness..."}.get(name, name)
