"""Temperature and reliability against a hand calculation, scikit-learn, and what must hold for any logits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from leukofold.calibration import (
    calibrate,
    expected_calibration_error,
    fit_temperature,
    nested_temperature,
    reliability,
)


def sampled(seed: int, n: int = 400, classes: int = 4, too_sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of logits, which are then scaled: ``too_sure`` is their true temperature."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return labels, too_sure * logits


# --- the temperature ----------------------------------------------------------------------------


def test_a_temperature_worked_out_by_hand() -> None:
    # three of four right at a margin of 5: the likelihood is highest where sigmoid(5 / T) = 3 / 4, 5 / T = log 3
    logits = np.array([[5.0, 0], [5, 0], [5, 0], [5, 0]])
    assert fit_temperature(np.array([0, 0, 0, 1]), logits) == pytest.approx(5 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("too_sure", [0.4, 1, 3])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(too_sure: float) -> None:
    assert fit_temperature(*sampled(0, n=20_000, too_sure=too_sure)) == pytest.approx(too_sure, rel=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 13), st.floats(0.25, 4), st.floats(-50, 50))
def test_logits_scaled_have_a_temperature_scaled_and_shifted_the_same(
    seed: int, classes: int, scale: float, shift: float
) -> None:
    labels, logits = sampled(seed, classes=classes)
    temperature = fit_temperature(labels, logits)
    assert fit_temperature(labels, scale * logits + shift) == pytest.approx(scale * temperature, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.06, 19))
def test_no_other_temperature_is_more_likely(seed: int, other: float) -> None:
    labels, logits = sampled(seed, n=50, too_sure=2)
    best = fit_temperature(labels, logits)
    losses = [log_loss(labels, softmax(logits / t, axis=1), labels=range(4)) for t in (best, other)]
    assert losses[0] <= losses[1] + 1e-9


def test_temperatures_stay_in_their_bounds() -> None:
    labels = np.array([0, 1, 1])
    assert 0.05 <= fit_temperature(labels, np.eye(2)[labels] / 100) < 0.0501  # always right: the surer the better
    assert 19.99 < fit_temperature(labels, np.eye(2)[1 - labels]) <= 20  # always wrong


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(fault: float) -> None:
    labels, logits = sampled(0)
    logits[7, 2] = fault
    with pytest.raises(ValueError, match="logits that are not finite"):
        fit_temperature(labels, logits)
    with pytest.raises(ValueError, match="logits that are not finite"):
        calibrate(labels, logits, np.arange(400) % 4)


def test_no_fold_has_a_say_in_its_own_temperature() -> None:
    labels, logits = sampled(1)
    folds = np.arange(400) % 3 + 5
    before = nested_temperature(labels, logits, folds)
    for k in (5, 6, 7):
        own = folds == k
        assert before[own] == pytest.approx(fit_temperature(labels[~own], logits[~own]))
    changed = np.where((folds == 6)[:, None], -logits, logits)
    after = nested_temperature(labels, changed, folds)
    assert (after[folds == 6] == before[folds == 6]).all()
    assert (after[folds != 6] > before[folds != 6]).all()


def test_a_single_fold_has_no_others_to_fit_its_temperature_to() -> None:
    with pytest.raises(ValueError, match="one fold only"):
        nested_temperature(*sampled(1), np.zeros(400))


# --- reliability --------------------------------------------------------------------------------


def test_reliability_worked_out_by_hand() -> None:
    top = np.array([0.55, 0.75, 0.75, 1.0, 0.5])
    labels = np.array([0, 0, 1, 0, 0])
    found = reliability(labels, np.stack([top, 1 - top], axis=1), bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [0, 1, 3, 1]  # a bin holds its upper border
    assert found.confidence.tolist() == pytest.approx([np.nan, 0.5, 2.05 / 3, 1], nan_ok=True)
    assert found.accuracy.tolist() == pytest.approx([np.nan, 1, 2 / 3, 1], nan_ok=True)
    assert found.ece == pytest.approx(1 / 5 * 0.5 + 3 / 5 * (2.05 / 3 - 2 / 3))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 13), st.integers(1, 30), st.floats(0, 30))
def test_bins_are_those_of_scikit_learn_and_the_error_stays_between_zero_and_one(
    seed: int, n: int, classes: int, bins: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, classes, n), softmax(scale * rng.normal(size=(n, classes)), axis=1)
    found = reliability(labels, probabilities, bins)
    full = found.count > 0
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1).clip(0, 1), n_bins=bins)
    assert found.accuracy[full] == pytest.approx(accuracy)
    assert found.confidence[full] == pytest.approx(confidence)
    assert np.isnan(found.accuracy[~full]).all()
    assert np.isnan(found.confidence[~full]).all()
    assert found.count.sum() == n
    assert 0 <= found.ece <= 1 + 1e-12
    assert found.ece == expected_calibration_error(labels, probabilities, bins)


def test_the_surest_mistakes_have_an_error_of_one_and_the_surest_hits_of_zero() -> None:
    labels = np.array([0, 1, 1])
    assert expected_calibration_error(labels, np.eye(2)[1 - labels]) == 1
    assert expected_calibration_error(labels, np.eye(2)[labels]) == 0


# --- both together ------------------------------------------------------------------------------


def test_calibration_is_judged_on_folds_that_the_temperature_has_not_seen() -> None:
    labels, logits = sampled(3, n=2000, too_sure=3)
    folds = np.arange(2000) % 5
    found = calibrate(labels, logits, folds)
    scaled = softmax(logits / nested_temperature(labels, logits, folds)[:, None], axis=1)
    assert found.temperature == fit_temperature(labels, logits)
    assert found.after is not None
    assert found.before.ece == expected_calibration_error(labels, softmax(logits, axis=1))
    assert found.after.ece == expected_calibration_error(labels, scaled)
    assert found.after.ece < 0.05 < found.before.ece
    assert found.nll_before == pytest.approx(log_loss(labels, softmax(logits, axis=1)))
    assert found.nll_after == pytest.approx(log_loss(labels, scaled))


def test_temperature_scaling_changes_no_prediction() -> None:
    labels, logits = sampled(4, too_sure=3)
    found = calibrate(labels, logits.astype(np.float32), np.arange(400) % 4)
    assert found.after is not None
    hits = [np.nansum(each.accuracy * each.count) for each in (found.before, found.after)]
    assert hits == pytest.approx([(logits.argmax(axis=1) == labels).sum()] * 2)


def test_with_one_fold_there_is_a_temperature_and_no_judgement() -> None:
    found = calibrate(*sampled(5), np.zeros(400, dtype=int))
    assert found.temperature > 0
    assert found.after is None
    assert found.nll_after is None
