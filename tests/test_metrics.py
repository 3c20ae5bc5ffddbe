"""Metrics against scikit-learn's own entry points and against numbers worked out by hand."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from leukofold.metrics import METRICS, score


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
