"""RandAugment: torchvision's operations, the same for all images of a cell, from albumentations' randomness alone."""

import random
from typing import Any
from unittest.mock import patch

import albumentations as A
import numpy as np
import pytest
import torch
from torchvision.transforms import v2  # type: ignore[import-untyped]

from leukofold.rand_augment import RandAugment

SEEDS = range(60)
"""Enough that every operation is drawn."""


def images(number: int = 4, side: int = 24) -> np.ndarray:
    """Smooth random images, so that geometry shows."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, side // 4, side // 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, axis=1).repeat(4, axis=2))


def torchvisions(image: np.ndarray, seed: int, num_ops: int = 2, magnitude: int = 9) -> np.ndarray:
    """What torchvision makes of one image from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = v2.RandAugment(num_ops, magnitude, 31)(torch.from_numpy(image).permute(2, 0, 1))
    return np.asarray(changed.permute(1, 2, 0).numpy())


def augmented(compose: A.Compose, seed: int, **data: Any) -> Any:
    """What a composition makes of data from one seed, as ``Augmentation`` calls it."""
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return compose(**data)


@pytest.mark.parametrize(("num_ops", "magnitude"), [(2, 9), (1, 30), (3, 0), (2, 18)])
def test_each_image_is_what_torchvision_makes_of_it(num_ops: int, magnitude: int) -> None:
    transform = RandAugment(num_ops, magnitude)
    for seed in SEEDS:
        several = transform.apply_to_images(images(), seed)
        assert several.shape == images().shape
        assert several.dtype == np.uint8
        for before, after in zip(images(), several, strict=True):
            assert np.array_equal(after, torchvisions(before, seed, num_ops, magnitude))
            assert np.array_equal(after, transform.apply(before, seed))


def test_every_operation_is_drawn_and_most_change_an_image() -> None:
    with patch.object(
        v2.RandAugment, "_apply_image_or_video_transform", side_effect=lambda image, *_, **__: image
    ) as applied:
        for seed in SEEDS:
            RandAugment().apply(images()[0], seed)
    assert {call.args[1] for call in applied.call_args_list} == set(v2.RandAugment._AUGMENTATION_SPACE)
    changed = [not np.array_equal(RandAugment().apply(images()[0], seed), images()[0]) for seed in SEEDS]
    assert np.mean(changed) > 0.9


def test_geometry_moves_different_images_alike() -> None:
    transform = RandAugment(num_ops=1, magnitude=30)
    dots = np.zeros((2, 24, 24, 3), np.uint8)
    dots[:, 8:16, 4:12] = np.array([90, 200], np.uint8)[:, None, None, None]  # the same place in two shades
    moved = 0
    for seed in SEEDS:
        with patch.object(v2.RandAugment, "_AUGMENTATION_SPACE", geometry()):
            first, second = transform.apply_to_images(dots, seed)
        assert np.array_equal(first > 0, second > 0)
        moved += not np.array_equal(first > 0, dots[0] > 0)
    assert moved > 50


def geometry() -> dict[str, Any]:
    """The operations that move pixels."""
    names = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    return {name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in names}


def test_identical_images_stay_identical() -> None:
    compose = A.Compose([RandAugment(magnitude=18)])
    same = np.repeat(images(1), 4, axis=0)
    for seed in SEEDS:
        found = augmented(compose, seed, images=same)["images"]
        assert all(np.array_equal(found[0], other) for other in found[1:])


def test_a_seed_decides_the_operations() -> None:
    compose = A.Compose([A.D4(), RandAugment()])
    results = [augmented(compose, seed, image=images()[0])["image"] for seed in (1, 1, 2)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("seed", range(10))
def test_all_images_of_a_cell_take_one_way_through_a_composition(seed: int) -> None:
    spied = patch.object(RandAugment, "apply_to_images", autospec=True, side_effect=RandAugment.apply_to_images)
    with spied as applied:  # albumentations keeps the methods that a transform has when it is built
        compose = A.Compose([A.D4(), A.Affine(rotate=(-90, 90), p=1), RandAugment(magnitude=18)])
        found = augmented(compose, seed, images=images())["images"]
    assert applied.call_count == 1
    assert applied.call_args.args[1].shape == images().shape
    alone = [augmented(compose, seed, image=image)["image"] for image in images()]
    assert np.array_equal(found, np.stack(alone))


def test_the_randomness_of_torch_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = A.Compose([RandAugment()])(images=images())["images"]
    assert found.shape == images().shape
    assert torch.equal(torch.get_rng_state(), before)
    failing = patch.object(v2.RandAugment, "_apply_image_or_video_transform", side_effect=RuntimeError)
    with failing, pytest.raises(RuntimeError):
        RandAugment().apply(images()[0], 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("error")
def test_an_image_is_not_written_into() -> None:
    image = images()
    image.flags.writeable = False
    for seed in SEEDS:
        found = RandAugment(magnitude=18).apply_to_images(image, seed)
        assert not np.shares_memory(found, image)
    assert np.array_equal(image, images())


def test_it_is_done_with_its_probability() -> None:
    with patch.object(RandAugment, "apply", autospec=True, side_effect=lambda _, img, **__: img) as applied:
        compose = A.Compose([RandAugment(magnitude=30, p=0.5)])
        for seed in range(200):
            augmented(compose, seed, image=images()[0])
    assert 70 < applied.call_count < 130


@pytest.mark.parametrize("arguments", [{"magnitude": 31}, {"magnitude": -1}, {"num_ops": 0}])
def test_ranges_without_meaning_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RandAugment(**arguments)
