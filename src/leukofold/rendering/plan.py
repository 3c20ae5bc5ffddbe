"""The list of images to draw, and the faults planted among them, before anything is drawn."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leukofold.errors import UserError
from leukofold.rendering.spec import RenderSpec

# Generators are default_rng([seed, stream, index]): no image's randomness depends on another's.
PLAN_STREAM, PATIENT_STREAM, IMAGE_STREAM, PLANT_STREAM = range(4)


@dataclass
class PlannedImage:
    """One image file to be written; the columns of ``rendered_truth.csv`` and what drawing needs besides.

    Attributes:
        path: file relative to the rendered folder, with forward slashes.
        image_id: the name the competition's lists use for it.
        split: the competition's split.
        patient: patient or subject under whose name the file lies.
        true_label: class that is drawn.
        given_label: class that the competition's lists state; "" in the test split.
        patient_index: number of the patient's appearance.
        shape: (height, width) in pixels.
        severity: degradation, 0 to 4.
        planted: "", ``wrong_label``, ``exact_duplicate``, ``near_duplicate`` or ``corrupt``.
        duplicate_of: path of the image that this one copies, or "".
    """

    path: str
    image_id: str
    split: str
    patient: str
    true_label: str
    given_label: str
    patient_index: int
    shape: tuple[int, int]
    severity: int = 0
    planted: str = ""
    duplicate_of: str = ""


class Layout(Protocol):
    """What a data set's module or object in this package offers."""

    def plan_images(self, spec: RenderSpec) -> list[PlannedImage]:
        """Plans every image of the folder."""

    def draw(self, image: PlannedImage, index: int, seed: int) -> bytes:
        """Draws one planned image, by its number in the plan, and returns the file's bytes."""

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Encodes (H, W, 3) uint8 RGB in the data set's format."""

    def write_lists(self, root: Path, images: list[PlannedImage]) -> None:
        """Writes what lies beside the images."""


def apportion(total: int, weights: Sequence[float], least: int = 0) -> list[int]:
    """Splits a whole number by weights (largest remainders), giving every share at least ``least``.

    Args:
        total: the number to split, at least ``least`` times the number of shares.
        weights: non-negative, not all zero.
        least: smallest share of a positive weight's owner.

    Returns:
        Shares that sum to ``total``.
    """
    scale = np.asarray(weights, dtype=float)
    quota = scale / scale.sum() * total
    shares = np.maximum(np.floor(quota).astype(int), least)
    while shares.sum() < total:
        shares[np.argmax(quota - shares)] += 1
    while shares.sum() > total:
        surplus = np.where(shares > least, shares - quota, -np.inf)
        shares[np.argmax(surplus)] -= 1
    return [int(share) for share in shares]


def share_out(
    counts: Mapping[str, int], patients: Sequence[int], spread: Mapping[str, float], rng: np.random.Generator
) -> list[dict[str, int]]:
    """Gives each patient of a split its images, class by class.

    Args:
        counts: images per class in the split; their sum is at least the number of patients.
        patients: the patients' numbers; only how many there are matters.
        spread: per class, the shape of the gamma distribution of patients' weights: small values crowd a
            class into few patients, as immature cells and blasts are.
        rng: source of the shares.

    Returns:
        One dictionary of class to count per patient, each with at least one image.
    """
    size = rng.gamma(4.0, 1.0, len(patients))
    shares: list[dict[str, int]] = [{} for _ in patients]
    for label, count in counts.items():
        weight = size * rng.gamma(spread.get(label, 1.0), 1.0, len(patients)) + 1e-9
        for patient, number in enumerate(rng.multinomial(count, weight / weight.sum()).tolist()):
            if number:
                shares[patient][label] = number
    for share in shares:
        if not share:  # everybody gives at least one image: take it from whoever has most
            giver = max(shares, key=lambda other: sum(other.values()))
            label = max(giver, key=lambda name: giver[name])
            giver[label] -= 1
            if not giver[label]:
                del giver[label]
            share[label] = 1
    return shares


def plant_wrong_labels(images: list[PlannedImage], wrong: Callable[[PlannedImage], None], spec: RenderSpec) -> None:
    """Makes the given label of a share of the labelled images wrong.

    Args:
        images: labelled images; changed in place.
        wrong: makes one image's true and given label differ.
        spec: rate and seed.
    """
    rng = np.random.default_rng([spec.seed, PLANT_STREAM, 0])
    count = round(spec.wrong_labels * len(images))
    frequency = Counter(image.true_label for image in images)
    order = rng.permutation(len(images)).tolist()
    # the rarest classes come last, so that no class vanishes at an ordinary rate
    for index in sorted(order, key=lambda i: frequency[images[i].true_label] < 5)[:count]:
        wrong(images[index])
        images[index].planted = "wrong_label"


def plant_duplicates(
    images: list[PlannedImage],
    place: Callable[[PlannedImage], str],
    spec: RenderSpec,
    order: Callable[[PlannedImage], str] = lambda image: "",
) -> None:
    """Chooses the images that become copies of others.

    Original and copy show the same class, lie in different places and take part in no other plant.

    Args:
        images: those that may be copied or replaced; changed in place.
        place: what separates original and copy (the split, or a subject's fold).
        spec: numbers of copies and seed.
        order: which images are taken first; by default all are alike.

    Raises:
        UserError: there are too few pairs.
    """
    rng = np.random.default_rng([spec.seed, PLANT_STREAM, 1])
    free = sorted((images[i] for i in rng.permutation(len(images)) if not images[i].planted), key=order)
    for kind, key in (("exact_duplicate", "exact_duplicates"), ("near_duplicate", "near_duplicates")):
        count = getattr(spec, key)
        for planted in range(count):
            pair = _matching_pair(free, place)
            if pair is None:
                raise UserError(f"render.{key} = {count}: only {planted} fit among {len(images)} images; lower it")
            original, copy = pair
            copy.planted, copy.duplicate_of = kind, original.path
            copy.severity, copy.shape = original.severity, original.shape
            free = [image for image in free if image is not original and image is not copy]


def plant_corruption(images: list[PlannedImage], spec: RenderSpec) -> None:
    """Chooses the images to be damaged.

    Args:
        images: labelled images (test images stay whole, so that a submission stays possible); changed in place.
        spec: number of damaged files and seed.

    Raises:
        UserError: there are too few images that take part in no other plant.
    """
    rng = np.random.default_rng([spec.seed, PLANT_STREAM, 2])
    originals = {image.duplicate_of for image in images}
    free = [images[i] for i in rng.permutation(len(images)) if not images[i].planted]
    free = [image for image in free if image.path not in originals]
    if len(free) < spec.corrupt_files:
        raise UserError(f"render.corrupt_files = {spec.corrupt_files}: only {len(free)} images are left; lower it")
    for image in free[: spec.corrupt_files]:
        image.planted = "corrupt"


def _matching_pair(
    free: list[PlannedImage], place: Callable[[PlannedImage], str]
) -> tuple[PlannedImage, PlannedImage] | None:
    """First two images of one class in different places whose given labels do not conflict, or None."""
    seen: dict[tuple[str, str], PlannedImage] = {}
    for image in free:
        where = place(image)
        for (label, elsewhere), other in seen.items():
            if label == image.true_label and elsewhere != where:
                return other, image
        seen.setdefault((image.true_label, where), image)
    return None
