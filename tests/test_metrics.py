"""Metrics against scikit-learn's own entry points and against numbers worked out by hand."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from leukofold.metrics import METRICS, interval, score


def one_hot(predictions: list[int], n_classes: int) -> np.ndarray:
    return np.asarray(np.eye(n_classes)[predictions])


def test_every_metric_is_scored_and_named() -> None:
    assert set(score(np.array([0, 1]), one_hot([0, 1], 2))) == set(METRICS)


def test_numbers_worked_out_by_hand() -> None:
    # confusion (rows: truth): [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    labels = np.array([0, 0, 0, 1, 1, 2])
    got = score(labels, one_hot([0, 0, 1, 0, 1, 2], 3))
    f1 = [2 * 2 / (3 + 3), 2 * 1 / (2 + 2), 1.0]  # 2 TP / (true + predicted)
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert got["weighted_f1"] == pytest.approx((3 * f1[0] + 2 * f1[1] + f1[2]) / 6)
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert got["macro_precision"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert got["macro_specificity"] == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)


def test_a_perfect_prediction_of_all_classes_scores_one_everywhere() -> None:
    labels = np.arange(13)
    assert set(score(labels, one_hot(labels.tolist(), 13)).values()) == {1.0}


def test_a_class_absent_from_labels_and_predictions_counts_as_zero_in_macro_f1_but_not_in_recall() -> None:
    got = score(np.array([0, 1]), one_hot([0, 1], 4))
    assert got["macro_f1"] == got["macro_precision"] == pytest.approx(2 / 4)
    assert got["weighted_f1"] == got["accuracy"] == got["balanced_accuracy"] == 1.0
    assert got["macro_specificity"] == 1.0


def test_a_class_that_is_predicted_but_absent_costs_precision_and_specificity() -> None:
    got = score(np.array([0, 0]), one_hot([0, 1], 2))
    assert got["balanced_accuracy"] == pytest.approx(0.5)
    assert got["macro_precision"] == pytest.approx(0.5)
    assert got["macro_specificity"] == pytest.approx((1 + 0.5) / 2)  # nothing is negative for class 0


def test_only_the_order_of_logits_matters() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 5, 40), rng.normal(size=(40, 5))
    assert score(labels, logits) == score(labels, 7 * logits - 100)


def reference(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> dict[str, float]:
    classes = list(range(n_classes))
    shared = {"labels": classes, "zero_division": 0}
    specificities = [
        sk.recall_score(labels != k, predictions != k, zero_division=1) for k in classes
    ]  # the negatives of k, seen as a class
    return {
        "macro_f1": sk.f1_score(labels, predictions, average="macro", **shared),
        "weighted_f1": sk.f1_score(labels, predictions, average="weighted", **shared),
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "macro_precision": sk.precision_score(labels, predictions, average="macro", **shared),
        "macro_specificity": float(np.mean(specificities)),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 13), st.integers(1, 60), st.integers(1, 13), st.integers(0, 2**32 - 1))
def test_scores_equal_scikit_learns(n_classes: int, n: int, present: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(rng.permutation(n_classes)[:present], n)
    logits = rng.normal(size=(n, n_classes)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", message="A single label was found")
        expected = reference(labels, logits.argmax(axis=1), n_classes)
        assert score(labels, logits) == pytest.approx(expected)


def drawn(seed: int, n: int = 120, n_groups: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + np.eye(3)[labels]
    return labels, logits, np.array([f"p{g}" for g in rng.integers(0, n_groups, n)])


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_intervals_are_those_of_resampled_patients_scored_one_by_one(metric: str) -> None:
    labels, logits, groups = drawn(3)
    found = interval(metric, labels, logits, groups, draws=150, seed=1)
    names = np.unique(groups)
    generator = np.random.default_rng(1)
    even = np.full(len(names), 1 / len(names))
    times = np.concatenate([generator.multinomial(len(names), even, k) for k in (100, 50)])
    values = []
    for draw in times:
        parts = [np.repeat(np.flatnonzero(groups == g), k) for g, k in zip(names, draw, strict=True)]
        rows = np.concatenate(parts).astype(int)
        assert len(set(labels[rows])) == 3  # every class is in every draw
        values.append(score(labels[rows], logits[rows])[metric])
    assert found.value == pytest.approx(score(labels, logits)[metric])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_a_paired_difference_is_taken_in_the_same_draws() -> None:
    labels, logits, groups = drawn(5)
    same = interval("macro_f1", labels, logits, groups, reference=logits)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    worse = np.roll(logits, 1, axis=1)
    gain = interval("accuracy", labels, logits, groups, reference=worse)
    assert gain.value == pytest.approx(score(labels, logits)["accuracy"] - score(labels, worse)["accuracy"])
    assert 0 < gain.low < gain.value < gain.high


def test_intervals_over_few_patients_are_wider_than_over_images() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 40)
    right = np.repeat(rng.random(10) < 0.6, 40)  # a patient is right or wrong as a whole
    labels = rng.integers(0, 2, 400)
    logits = one_hot(np.where(right, labels, 1 - labels).tolist(), 2)
    by_patient = interval("accuracy", labels, logits, groups)
    by_image = interval("accuracy", labels, logits, np.arange(400))
    assert by_patient.high - by_patient.low > 3 * (by_image.high - by_image.low)


def test_a_rare_class_that_a_draw_leaves_out_does_not_count_against_it() -> None:
    labels, groups = np.array([0] * 40 + [1] * 40 + [2] * 2), np.repeat(np.arange(41), 2)
    perfect = interval("macro_f1", labels, one_hot(labels.tolist(), 3), groups)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)  # the third class is one patient of 41
    absent = interval("macro_f1", labels, one_hot(labels.tolist(), 4), groups)
    assert absent.value == absent.high == pytest.approx(3 / 4)  # a class without any image still counts as 0
