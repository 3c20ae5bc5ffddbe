"""Loading and augmenting: determinism under any number of workers, order, and refusals."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from leukofold.augment import Augmentation, build_transform
from leukofold.config import ImageConfig, SamplerConfig, Transform
from leukofold.errors import UserError
from leukofold.images.cache import open_cache
from leukofold.images.cellimages import CellImages
from leukofold.images.preparing import Preparation
from leukofold.loaders import CellDataset, make_loader
from leukofold.sampling import EpochSampler


@pytest.fixture(scope="module")
def images(small_images: pd.DataFrame) -> pd.DataFrame:
    """The images, under a short name."""
    return small_images


@pytest.fixture(scope="module")
def cache(images: pd.DataFrame) -> CellImages:
    """Their cache at 32 pixels."""
    preparation = Preparation(ImageConfig(size=32), lambda image: image)
    return CellImages([open_cache(images, preparation, "none", Path(images.path[0]).parent / "cache", progress=False)])


def epochs(images: pd.DataFrame, cache: CellImages, workers: int) -> list[torch.Tensor]:
    """Loads three epochs of augmented images, as training does."""
    dataset = CellDataset(cache, images, Augmentation(ImageConfig().augment))
    sampler = EpochSampler(images.label.to_numpy(), 3, 4, 1, SamplerConfig(), seed=5)
    loader = make_loader(dataset, workers, sampler=sampler)
    loaded = []
    for epoch in range(3):
        sampler.start_epoch(epoch)
        loaded.append(torch.cat([batch["image"] for batch in loader]))
    return loaded


def test_the_number_of_workers_changes_nothing_and_epochs_differ(images: pd.DataFrame, cache: CellImages) -> None:
    alone = epochs(images, cache, 0)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(alone, epochs(images, cache, workers), strict=True))
    assert alone[0].shape == (12, 3, 32, 32)
    assert alone[0].dtype == torch.uint8
    everything = torch.cat(alone).flatten(1)
    assert len(torch.unique(everything, dim=0)) == len(everything)  # neither workers nor epochs repeat each other


def test_augmentation_leaves_the_cache_as_it_is(images: pd.DataFrame, cache: CellImages) -> None:
    before = cache.caches[0].pixels.copy()
    epochs(images, cache, 0)
    assert np.array_equal(cache.caches[0].pixels, before)


def test_evaluation_images_are_in_order_and_not_augmented(images: pd.DataFrame, cache: CellImages) -> None:
    shuffled = images.iloc[::-1].reset_index(drop=True)  # rows are found by their ids
    batches = list(make_loader(CellDataset(cache, shuffled), 2, batch_size=5))
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(12))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == shuffled.label.tolist()
    decoded = cv2.cvtColor(cv2.imread(images.path[7]), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]
    expected = cv2.resize(decoded, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.array_equal(torch.cat([batch["image"] for batch in batches])[4].numpy(), expected.transpose(2, 0, 1))


def test_a_misspelt_transform_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no transform 'HorizontalFlop'; did you mean 'HorizontalFlip'\?"):
        build_transform(Transform(name="HorizontalFlop"))


def test_an_argument_that_a_transform_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"image.augment: GaussianBlur: .*blur_limits"):
        build_transform(Transform.model_validate({"name": "GaussianBlur", "blur_limits": 3}))
