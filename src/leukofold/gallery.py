"""Pictures of what training does to images: every augmentation of a configuration, CutMix and MixUp."""

from collections.abc import Sequence

import numpy as np
import torch

from leukofold.augment import Augmentation
from leukofold.config import Config, MixingConfig, Transform
from leukofold.images.preparing import Preparation
from leukofold.rendering.cell import draw_image
from leukofold.rendering.contact_sheet import labelled_row
from leukofold.rendering.plan import IMAGE_STREAM, PATIENT_STREAM
from leukofold.rendering.stain import sample_appearance
from leukofold.training.mixing import Mixer

LABELS = ("SNE", "LY", "MO", "EO", "BL", "BNE", "MY", "PLY")  # one rendered cell per column
SIDE = 145  # of a cell in the picture, pixels: the middle of the network's input, at its own scale


def augmentation_sheet(config: Config, seed: int = 0) -> np.ndarray:
    """Draws one row per augmentation of a configuration, each at its full probability.

    Args:
        config: Whose ``image.augment`` and ``mixing`` are drawn.
        seed: Of cells and augmentations.

    Returns:
        H x W x 3 uint8 RGB; the first row are the cells as they are, the last one all together.
    """
    prepare = Preparation(config.image.model_copy(update={"denoise": None}), lambda image: image)
    cells = [prepare(_cell(label, column, seed)) for column, label in enumerate(LABELS)]
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
    """Puts the middles of images side by side behind a legend."""
    start = max(0, (cells[0].shape[0] - SIDE) // 2)
    return labelled_row(title, subtitle, [cell[start : start + SIDE, start : start + SIDE] for cell in cells], SIDE)


def _cell(label: str, patient: int, seed: int) -> np.ndarray:
    """Draws one cell."""
    appearance = sample_appearance(np.random.default_rng([seed, PATIENT_STREAM, patient]))
    return draw_image(label, appearance, np.random.default_rng([seed, IMAGE_STREAM, patient]))


def _augmented(specs: Sequence[Transform], cells: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Augments each cell with a seed of its own."""
    augmentation = Augmentation(specs)
    return [augmentation(cell[None], seed + column)[0] for column, cell in enumerate(cells)]


def _mixed(name: str, config: MixingConfig, cells: list[np.ndarray]) -> list[np.ndarray]:
    """Mixes the cells with each other, in pairs with shares of their own so that the range is seen."""
    always = config.model_copy(update={"cutmix": float(name == "cutmix"), "mixup": float(name == "mixup")})
    mixer = Mixer(always, len(LABELS), 0.0, 2)
    mixer.seed(5)
    mixed: list[np.ndarray] = []
    for first in range(0, len(cells), 2):
        batch = torch.from_numpy(np.stack(cells[first : first + 2])).permute(0, 3, 1, 2)
        images, _ = mixer(batch, torch.tensor([first, first + 1]))
        mixed += list(images.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return mixed


def _short(name: str) -> str:
    """Breaks albumentations' long names to the width of the legend."""
    return {"RandomBrightnessContrast": "Brightness..."}.get(name, name)
