"""Sampling and loading: formulae, determinism, and no repetition over epochs and workers."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leukofold.augment import ImagePipeline, build_transform
from leukofold.config import ImageConfig, SamplerConfig, Transform
from leukofold.errors import UserError
from leukofold.loaders import CellDataset, EpochSampler, class_weights, make_loader

WEIGHTED = SamplerConfig(kind="effective_number", beta=0.9999)
UNIFORM = SamplerConfig(kind="uniform")


def test_effective_number_weights_by_hand() -> None:
    # beta = .9: E_1 = 1, E_2 = 1.9, E_4 = 3.439; weights 1 / E, scaled to a mean of 1 over the 7 images
    labels = np.array([0, 1, 1, 3, 3, 3, 3])
    weights = class_weights(labels, 4, SamplerConfig(beta=0.9))
    raw = np.array([1.0, 1 / 1.9, 0.0, 1 / 3.439])
    assert weights == pytest.approx(raw * 7 / (1 + 2 / 1.9 + 4 / 3.439))
    assert weights[labels].mean() == pytest.approx(1)


def test_beta_zero_weighs_all_images_alike() -> None:
    assert class_weights(np.array([0, 1, 1, 1]), 2, SamplerConfig(beta=0.0)) == pytest.approx([1, 1])


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 8),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_every_batch_is_full_and_an_epoch_is_a_function_of_its_number(
    labels: list[int], micro: int, parts: int, weighted: bool, seed: int
) -> None:
    config = WEIGHTED if weighted else UNIFORM

    def epoch(number: int) -> list[list[tuple[int, int]]]:
        sampler = EpochSampler(np.array(labels), 5, micro * parts, parts, config, seed)
        sampler.start_epoch(number)
        return list(sampler)

    batches = epoch(3)
    assert batches == epoch(3)
    assert len(batches) == max(1, len(labels) // (micro * parts)) * parts
    assert all(len(batch) == micro and 0 <= row < len(labels) for batch in batches for row, _ in batch)
    seeds = [seed for number in (1, 2, 3) for batch in epoch(number) for _, seed in batch]
    assert len(set(seeds)) == len(seeds)  # no augmentation is ever drawn twice


def test_uniform_sampling_takes_no_image_twice_in_an_epoch() -> None:
    sampler = EpochSampler(np.zeros(50, dtype=int), 1, 10, 1, UNIFORM, seed=0)
    rows = [row for batch in sampler for row, _ in batch]
    assert sorted(rows) == list(range(50))


def test_weighted_sampling_draws_classes_by_their_weights() -> None:
    labels = np.repeat([0, 1], [990, 10])
    sampler = EpochSampler(labels, 2, 1000, 1, SamplerConfig(beta=0.9999), seed=0)
    drawn = []
    for epoch in range(40):
        sampler.start_epoch(epoch)
        drawn += [labels[row] for batch in sampler for row, _ in batch]
    share = np.array([(1 - 0.9999**n) ** -1 * n for n in (990, 10)])
    expected = share[1] / share.sum()
    assert expected == pytest.approx(0.488, abs=0.001)
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 40000))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Twelve small random images as rows of a table."""
    folder, rng, paths = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(12):
        paths.append(str(folder / f"{i}.png"))
        cv2.imwrite(paths[-1], rng.integers(0, 256, (40, 44, 3), dtype=np.uint8))
    return pd.DataFrame({"path": paths, "label": np.arange(12) % 3})


def epochs(images: pd.DataFrame, workers: int) -> list[torch.Tensor]:
    """Loads three epochs of augmented images, as training does."""
    dataset = CellDataset(images, ImagePipeline(ImageConfig(size=32), True, lambda image: image))
    sampler = EpochSampler(images.label.to_numpy(), 3, 4, 1, WEIGHTED, seed=5)
    loader = make_loader(dataset, workers, sampler=sampler)
    loaded = []
    for epoch in range(3):
        sampler.start_epoch(epoch)
        loaded.append(torch.cat([batch["image"] for batch in loader]))
    return loaded


def test_the_number_of_workers_changes_nothing_and_epochs_differ(images: pd.DataFrame) -> None:
    alone = epochs(images, 0)
    for workers in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(alone, epochs(images, workers), strict=True))
    assert alone[0].shape == (12, 3, 32, 32)
    assert alone[0].dtype == torch.uint8
    everything = torch.cat(alone).flatten(1)
    assert len(torch.unique(everything, dim=0)) == len(everything)  # neither workers nor epochs repeat each other


def test_evaluation_images_are_in_order_and_not_augmented(images: pd.DataFrame) -> None:
    pipeline = ImagePipeline(ImageConfig(size=32), False, lambda image: image)
    loader = make_loader(CellDataset(images, pipeline), 2, batch_size=5)
    batches = list(loader)
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(12))
    decoded = cv2.cvtColor(cv2.imread(images.path[7]), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]
    expected = cv2.resize(decoded, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.array_equal(torch.cat([batch["image"] for batch in batches])[7].numpy(), expected.transpose(2, 0, 1))


def test_the_centre_crop_comes_before_the_resize() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 200
    pipeline = ImagePipeline(ImageConfig(size=16, crop=20), False, lambda image: image)
    assert (pipeline(image) == 200).all()


def test_a_misspelt_transform_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no transform 'HorizontalFlop'; did you mean 'HorizontalFlip'\?"):
        build_transform(Transform(name="HorizontalFlop"))


def test_an_argument_that_a_transform_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"image.augment: GaussianBlur: .*blur_limits"):
        build_transform(Transform.model_validate({"name": "GaussianBlur", "blur_limits": 3}))
