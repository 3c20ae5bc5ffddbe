"""Sampling: formulae, determinism, and no repetition over epochs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukofold.config import SamplerConfig
from leukofold.sampling import EpochSampler, effective_number_weights

WEIGHTED = SamplerConfig(kind="effective_number", beta=0.9999)
UNIFORM = SamplerConfig(kind="uniform")


def test_effective_number_weights_by_hand() -> None:
    # beta = .9: E_1 = 1, E_2 = 1.9, E_4 = 3.439; weights 1 / E, scaled to a sum of 3, the classes present
    weights = effective_number_weights(np.array([0, 1, 1, 3, 3, 3, 3]), 4, 0.9)
    raw = np.array([1.0, 1 / 1.9, 0.0, 1 / 3.439])
    assert weights == pytest.approx(raw * 3 / (1 + 1 / 1.9 + 1 / 3.439))


def test_beta_zero_weighs_all_classes_alike_and_beta_near_one_by_their_inverse_number() -> None:
    labels = np.array([0, 1, 1, 1])
    assert effective_number_weights(labels, 2, 0.0) == pytest.approx([1, 1])
    assert effective_number_weights(labels, 2, 1 - 1e-9) == pytest.approx([1.5, 0.5], rel=1e-6)


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
