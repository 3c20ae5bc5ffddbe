"""Rendered folders of the external data sets: Acevedo-20, Blood 8 classes and CellWiki's prolymphocytes.

Their cells are WBCBench's, of the same size, as another laboratory would show them. What the renderer cannot draw
is drawn as the nearest class that it can (``DRAWN_AS``): platelets and erythroblasts as lymphocytes. In
``rendered_truth.csv``, ``given_label`` is the data set's own class and ``true_label`` Acevedo-20's or WBCBench's.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering import wbcbench
from leukofold.rendering.cell import draw_image
from leukofold.rendering.plan import (
    IMAGE_STREAM,
    PATIENT_STREAM,
    PLAN_STREAM,
    PlannedImage,
    apportion,
    plant_corruption,
    plant_duplicates,
    plant_wrong_labels,
)
from leukofold.rendering.spec import RenderSpec
from leukofold.rendering.stain import Appearance, sample_appearance, stain_vectors

TOP = "PBC_dataset_normal_DIB"

FOLDERS = {
    "basophil": {"BA": 1218},
    "eosinophil": {"EO": 3117},
    "erythroblast": {"ERB": 155},
    "ig": {"IG": 151, "MMY": 1015, "MY": 1137, "PMY": 592},
    "lymphocyte": {"LY": 1214},
    "monocyte": {"MO": 1420},
    "neutrophil": {"BNE": 1633, "NEUTROPHIL": 50, "SNE": 1646},
    "platelet": {"PLATELET": 235},
}
"""Acevedo-20's images per folder and file name's prefix; a tenth of the erythroblasts and platelets."""

FOLDER_OF = {label: folder for folder, labels in FOLDERS.items() for label in labels}

DRAWN_AS = {"ERB": ("LY",), "IG": ("PMY", "MY", "MMY"), "NEUTROPHIL": ("BNE", "SNE"), "PLATELET": ("LY",)}
"""What is drawn for a class that is no WBCBench class."""

MISTAKEN = {
    "BA": ("EO", "PMY"), "BNE": ("SNE", "MMY"), "EO": ("SNE", "BA"), "LY": ("MO",), "MMY": ("MY", "BNE"),
    "MO": ("LY",), "MY": ("MMY", "PMY"), "PMY": ("MY",), "SNE": ("BNE", "EO"),
}  # fmt: skip
"""What a wrong label says, among the classes that Acevedo-20 shares with WBCBench."""

SHAPES = {(363, 360): 0.955, (369, 366): 0.03, (360, 360): 0.015}
"""Sizes (height, width) of Acevedo-20's images and their shares, as counted in a sample of 1,140."""

GREY = ("IG", "NEUTROPHIL")
"""Prefixes of Acevedo-20 whose images have a grey background."""

SMEARS = 24  # looks that the images of one laboratory share

# Another staining than WBCBench's: less red and more blue is absorbed, on a pinker field
LABORATORY = np.array([0.84, 1.04, 1.30], dtype=np.float32)
LIGHT = ((250, 224, 219), (1.0, 1.6, 1.5))  # mean and deviation of the background, RGB
GREY_LIGHT = ((226, 218, 227), (5, 5, 5))


class AcevedoLayout:
    """Acevedo-20: coarse folders, fine classes in the file names."""

    def plan_images(self, spec: RenderSpec) -> list[PlannedImage]:
        """Plans every image of the folder; ``patients`` and ``test_images`` have no meaning here.

        Args:
            spec: size, seed and plants.

        Returns:
            The images, sorted by path.

        Raises:
            UserError: too few images for all classes, or too many plants.
        """
        if spec.images < len(FOLDER_OF):
            raise UserError(
                f"render.images = {spec.images}: Acevedo-20 needs at least {len(FOLDER_OF)}, one per class; raise it"
            )
        rng = np.random.default_rng([spec.seed, PLAN_STREAM])
        images: list[PlannedImage] = []
        shares = [FOLDERS[folder][label] for label, folder in FOLDER_OF.items()]
        for label, count in zip(FOLDER_OF, apportion(spec.images, shares, least=1), strict=True):
            for _ in range(count):
                shape = list(SHAPES)[int(rng.choice(len(SHAPES), p=list(SHAPES.values())))]
                images.append(PlannedImage("", "", "acevedo", "", label, label, int(rng.integers(SMEARS)), shape))

        def mistake(image: PlannedImage) -> None:
            choices = MISTAKEN[image.true_label]
            image.given_label = choices[int(rng.integers(len(choices)))]

        plant_wrong_labels([image for image in images if image.true_label in MISTAKEN], mistake, spec)
        for image, number in zip(images, rng.choice(900_000, len(images), replace=False).tolist(), strict=True):
            image.image_id = f"{image.given_label}_{100_000 + number}{wbcbench.SUFFIX}"
            image.path = f"{TOP}/{FOLDER_OF[image.given_label]}/{image.image_id}"
        images.sort(key=lambda image: image.path)
        _plant_copies_and_corruption(images, spec)
        return images

    def draw(self, image: PlannedImage, index: int, seed: int) -> bytes:
        """Draws one planned image; see ``wbcbench.draw``. Returns the JPEG file's bytes."""
        rng = np.random.default_rng([seed, IMAGE_STREAM, index])
        choices = DRAWN_AS.get(image.true_label, (image.true_label,))
        appearance = _laboratory(seed, image.patient_index, image.true_label in GREY)
        pixels = draw_image(choices[int(rng.integers(len(choices)))], appearance, rng, image.shape)
        return self.encode(pixels, appearance.quality)

    def encode(self, pixels: NDArray[np.uint8], quality: int = 85) -> bytes:
        """Encodes (H, W, 3) uint8 RGB as JPEG."""
        return wbcbench.encode(pixels, quality)

    def write_lists(self, root: Path, images: list[PlannedImage]) -> None:
        """Writes nothing: folders and names tell the classes."""


class Blood8Layout(AcevedoLayout):
    """Blood 8 classes: Acevedo-20's very images under its folders, immature granulocytes called plasma cells.

    With the same spec, every file has the bytes of one that the Acevedo-20 layout holds.
    """

    def plan_images(self, spec: RenderSpec) -> list[PlannedImage]:
        """Plans every image of the folder; see ``AcevedoLayout.plan_images``."""
        images = super().plan_images(spec)  # in the same order: the number in the plan sets the pixels
        moved = {}
        for image in images:
            folder = FOLDER_OF[image.given_label]
            folder = "plasma cell" if folder == "ig" else folder
            moved[image.path] = image.path = f"{folder}/{image.image_id}"
            image.split, image.given_label = "blood8", folder
            image.planted = image.planted or ("wrong_label" if folder == "plasma cell" else "")
        for image in images:
            image.duplicate_of = moved.get(image.duplicate_of, "")
        return images


class CellWikiLayout(AcevedoLayout):
    """CellWiki: prolymphocytes in one flat folder, each from another laboratory and of another size."""

    def plan_images(self, spec: RenderSpec) -> list[PlannedImage]:
        """Plans every image of the folder; see ``AcevedoLayout.plan_images``."""
        rng = np.random.default_rng([spec.seed, PLAN_STREAM])
        images = []
        for number in range(spec.images):
            name = f"prolymphocyte_{number + 1:03d}{wbcbench.SUFFIX}"
            shape = (int(rng.integers(200, 480)), int(rng.integers(200, 480)))
            images.append(PlannedImage(name, name, "cellwiki", "", "PLY", "prolymphocyte", number, shape))

        def mistake(image: PlannedImage) -> None:
            image.true_label = str(rng.choice(wbcbench.CONFUSED_WITH["PLY"]))

        plant_wrong_labels(images, mistake, spec)
        _plant_copies_and_corruption(images, spec)
        return images

    def draw(self, image: PlannedImage, index: int, seed: int) -> bytes:
        """Draws one planned image; see ``wbcbench.draw``. Returns the JPEG file's bytes."""
        rng = np.random.default_rng([seed, IMAGE_STREAM, index])
        appearance = replace(sample_appearance(rng), vectors=stain_vectors(rng, hue=0.10, strength=0.10))
        return self.encode(draw_image(image.true_label, appearance, rng, image.shape), appearance.quality)


def _plant_copies_and_corruption(images: list[PlannedImage], spec: RenderSpec) -> None:
    """Chooses the images that become copies or are damaged; any place will do for a copy."""
    plant_duplicates(images, lambda image: image.path, spec)
    plant_corruption(images, spec)


@lru_cache(maxsize=512)
def _laboratory(seed: int, smear: int, grey: bool) -> Appearance:
    """The look of one of the laboratory's smears."""
    rng = np.random.default_rng([seed, PATIENT_STREAM, smear])
    usual = sample_appearance(rng)
    mean, spread = GREY_LIGHT if grey else LIGHT
    light = np.clip(rng.normal(mean, spread), 190, 254).astype(np.float32)
    return replace(usual, light=light, vectors=usual.vectors * LABORATORY)
