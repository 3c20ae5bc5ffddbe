"""Metrics against scikit-learn's own entry points and against numbers worked out by hand."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as sk

from leukofold.metrics import (
    AREAS,
    BINARY_METRICS,
    METRICS,
    Interval,
    areas_under_curves,
    interval,
    metric_titles,
    score,
)
from leukofold.metrics.bootstrap import intervals
from leukofold.metrics.tables import group_accuracies, per_class
from leukofold.metrics.weighted import Ranking, from_confusions


def one_hot(predictions: list[int], n_classes: int) -> np.ndarray:
    return np.asarray(np.eye(n_classes)[predictions])


def test_every_metric_is_scored_and_named() -> None:
    assert (
        set(score(np.array([0, 1]), one_hot([0, 1], 2)))
        == {*METRICS, *BINARY_METRICS}
        == {*metric_titles(2)} - {*AREAS}
    )
    assert set(score(np.array([0, 1]), one_hot([0, 1], 3))) == set(METRICS) == {*metric_titles(3)} - {*AREAS}
    assert (metric_titles(2)["sensitivity"], metric_titles(2)["macro_auc"], metric_titles(13)["macro_auc"]) == (
        "sensitivity",
        "AUC",
        "macro AUC",
    )


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
    assert got["weighted_specificity"] == pytest.approx((3 * 2 / 3 + 2 * 3 / 4 + 1) / 6)
    assert got["weighted_precision"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)
    assert got["weighted_recall"] == pytest.approx(4 / 6)


def test_of_two_classes_the_second_is_the_positive_one() -> None:
    labels = np.array([1] * 5 + [0] * 4)
    got = score(labels, one_hot([1, 1, 1, 1, 0, 0, 0, 0, 1], 2))  # TP 4, FN 1, TN 3, FP 1
    assert got["sensitivity"] == pytest.approx(4 / 5)
    assert got["specificity"] == pytest.approx(3 / 4)
    assert got["precision"] == pytest.approx(4 / 5)
    assert got["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert got["balanced_accuracy"] == pytest.approx((got["sensitivity"] + got["specificity"]) / 2)
    alone = score(np.array([0, 0]), one_hot([0, 0], 2))
    assert [alone[metric] for metric in BINARY_METRICS] == [0, 0, 1, 0]  # no image is positive


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
    of_one = {"average": None, "zero_division": 0}
    binary = {
        "precision": float(sk.precision_score(labels, predictions, labels=[1], **of_one)[0]),
        "sensitivity": float(sk.recall_score(labels, predictions, labels=[1], **of_one)[0]),
        "specificity": float(sk.recall_score(labels, predictions, labels=[0], **of_one)[0]),
        "f1": float(sk.f1_score(labels, predictions, labels=[1], **of_one)[0]),
    }
    return {
        "macro_f1": sk.f1_score(labels, predictions, average="macro", **shared),
        "weighted_f1": sk.f1_score(labels, predictions, average="weighted", **shared),
        "accuracy": sk.accuracy_score(labels, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "macro_precision": sk.precision_score(labels, predictions, average="macro", **shared),
        "macro_specificity": float(np.mean(specificities)),
        "weighted_specificity": float(np.average(specificities, weights=[(labels == k).sum() for k in classes])),
        "weighted_precision": sk.precision_score(labels, predictions, average="weighted", **shared),
        "weighted_recall": sk.recall_score(labels, predictions, average="weighted", **shared),
        **(binary if n_classes == 2 else {}),
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
        confusion = sk.confusion_matrix(labels, logits.argmax(axis=1), labels=range(n_classes))[None].astype(float)
        counted = {metric: float(value[0]) for metric, value in from_confusions(confusion).items()}
        assert counted == pytest.approx(expected)


def drawn(seed: int, n: int = 120, n_groups: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + np.eye(3)[labels]
    return labels, logits, np.array([f"p{g}" for g in rng.integers(0, n_groups, n)])


@pytest.mark.parametrize("metric", sorted({**METRICS, **BINARY_METRICS}))
def test_intervals_are_those_of_resampled_patients_scored_one_by_one(metric: str) -> None:
    labels, logits, groups = drawn(3)
    classes = 3
    if metric in BINARY_METRICS:
        labels, logits, classes = labels.clip(0, 1), logits[:, :2], 2
    found = interval(metric, labels, logits, groups, draws=150, seed=1)
    names = np.unique(groups)
    generator = np.random.default_rng(1)
    even = np.full(len(names), 1 / len(names))
    times = np.concatenate([generator.multinomial(len(names), even, k) for k in (100, 50)])
    values = []
    for draw in times:
        parts = [np.repeat(np.flatnonzero(groups == g), k) for g, k in zip(names, draw, strict=True)]
        rows = np.concatenate(parts).astype(int)
        assert len(set(labels[rows])) == classes  # every class is in every draw
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


def test_a_paired_difference_of_areas_is_that_of_resampled_patients() -> None:
    labels, logits, groups = drawn(9)
    labels, one, other = labels.clip(0, 1), logits[:, :2], np.roll(logits, 1, axis=0)[:, :2] + 2 * logits[:, :2]
    found = interval("macro_auc", labels, one, groups, other, draws=80, seed=3)
    areas = [[sk.roc_auc_score(labels[rows], each[rows, 1] - each[rows, 0]) for each in (one, other)]
             for rows in resampled(groups, 80, 3)]  # fmt: skip
    differences = np.subtract(*np.transpose(areas))
    assert as_tuple(found)[1:] == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert found.value == pytest.approx(
        areas_under_curves(labels, one)["macro_auc"] - areas_under_curves(labels, other)["macro_auc"]
    )


def test_sensitivity_is_not_known_in_draws_without_a_positive_image() -> None:
    labels, groups = np.array([0] * 6 + [1] * 2), np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    found = intervals(labels, one_hot([0, 0, 1, 0, 0, 0, 1, 0], 2), groups, draws=300)
    assert as_tuple(found["sensitivity"]) == (0.5, 0.5, 0.5)  # one patient has them all: the others' draws drop out
    assert found["specificity"].low < found["specificity"].value == pytest.approx(5 / 6)


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


# --- all metrics at once, and AUC ---------------------------------------------------------------


def resampled(groups: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """Rows of each bootstrap draw (up to 100, which are drawn together), as often as their group was drawn."""
    names = np.unique(groups)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    return [np.repeat(np.arange(len(groups)), draw[np.searchsorted(names, groups)]) for draw in times]


def mean_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """scikit-learn's AUC, averaged over the classes that are there and not alone."""
    present = [k for k in range(probabilities.shape[1]) if 0 < (labels == k).sum() < len(labels)]
    return float(np.mean([sk.roc_auc_score(labels == k, probabilities[:, k]) for k in present]))


def as_tuple(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def test_all_intervals_at_once_are_those_of_one_at_a_time() -> None:
    labels, logits, groups = drawn(3)
    found = intervals(labels, logits, groups, draws=130, seed=4)
    assert set(found) == {*METRICS, *AREAS}
    for metric in found:
        assert found[metric] == interval(metric, labels, logits, groups, draws=130, seed=4)


@pytest.mark.parametrize("decimals", [0, 6])  # 0: nearly every score is tied
def test_the_area_under_the_curve_is_scikit_learns(decimals: int) -> None:
    labels, logits, groups = drawn(7)
    logits = logits.round(decimals)
    for average in ("macro", "weighted"):
        expected = sk.roc_auc_score(labels, softmax(logits, axis=1), multi_class="ovr", average=average)
        assert intervals(labels, logits, groups, draws=1)[f"{average}_auc"].value == pytest.approx(expected)
        assert areas_under_curves(labels, logits)[f"{average}_auc"] == pytest.approx(expected)
    two = np.minimum(labels, 1)
    expected = sk.roc_auc_score(two, softmax(logits[:, :2], axis=1)[:, 1])
    assert intervals(two, logits[:, :2], groups, draws=1)["macro_auc"].value == pytest.approx(expected)
    assert areas_under_curves(two, logits[:, :2])["macro_auc"] == pytest.approx(expected)
    assert all(np.isnan(value) for value in areas_under_curves(np.ones(4, int), logits[:4, :2]).values())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_draws_area_under_the_curve_is_scikit_learns_of_weighted_images(
    n: int, n_groups: int, n_scores: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    group = np.unique(rng.integers(0, n_groups, n), return_inverse=True)[1]
    positive = rng.random(n) < 0.4
    positive[:2] = [True, False]
    scores = rng.integers(0, n_scores, n) / n_scores
    weights = rng.multinomial(group.max() + 1, np.full(group.max() + 1, 1 / (group.max() + 1)), 5).T
    areas = Ranking.of(positive, scores, group).auc(weights.astype(np.float64))
    for area, weight in zip(areas, weights.T[:, group], strict=True):
        if weight[positive].any() and weight[~positive].any():
            assert area == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=weight))
        else:
            assert np.isnan(area)


def test_the_interval_of_the_area_under_the_curve_is_that_of_resampled_patients() -> None:
    rng = np.random.default_rng(11)
    labels = np.array([0] * 50 + [1] * 30 + [3] * 4)  # class 2 has no image, class 3 is in one patient
    groups = np.concatenate([rng.integers(0, 9, 80), np.full(4, 9)])
    logits = rng.normal(size=(84, 4)).round(1) + np.eye(4)[labels]
    probabilities = softmax(logits, axis=1)
    found = intervals(labels, logits, groups, draws=90, seed=2)["macro_auc"]
    values = [mean_auc(labels[rows], probabilities[rows]) for rows in resampled(groups, 90, 2)]
    assert as_tuple(found) == pytest.approx((mean_auc(labels, probabilities), *np.quantile(values, [0.025, 0.975])))


def test_where_patients_are_all_alike_the_choice_of_patients_does_not_matter() -> None:
    labels, logits, _ = drawn(2, n=30)
    groups = np.repeat(np.arange(8), 30)
    for found in intervals(np.tile(labels, 8), np.tile(logits, (8, 1)), groups, draws=50).values():
        assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_subjects_are_judged_by_their_mean_logits() -> None:
    labels = np.array([1, 1, 1, 0, 0])
    logits = np.array([[0, 5], [1, 0], [1, 0], [1, 0], [0, 3]])  # subject a: 2 of 3 cells wrong, one very right
    found = intervals(labels, logits, np.array(["a", "a", "a", "b", "b"]), draws=400)["subject_accuracy"]
    assert as_tuple(found) == (0.5, 0, 1)


def test_the_interval_over_subjects_is_that_of_resampled_subjects() -> None:
    labels = np.array([0, 1] * 10)
    right = np.arange(20) < 14
    logits = one_hot(np.where(right, labels, 1 - labels).tolist(), 2)
    found = intervals(np.repeat(labels, 3), np.repeat(logits, 3, axis=0), np.repeat(np.arange(20), 3), draws=80, seed=6)
    values = [right[rows].mean() for rows in resampled(np.arange(20), 80, 6)]
    assert as_tuple(found["subject_accuracy"]) == pytest.approx((0.7, *np.quantile(values, [0.025, 0.975])))


def test_patients_with_cells_of_several_classes_have_no_label_of_their_own() -> None:
    labels = np.array([0, 1, 1])
    assert "subject_accuracy" not in intervals(labels, one_hot([0, 1, 1], 2), np.array(["a", "a", "b"]), draws=10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("labels", "groups"),
    [([0], ["a"]), ([1, 1, 1], ["a", "b", "c"]), ([0, 1, 1], ["a", "a", "a"]), ([2, 2, 0], ["a", "a", "b"])],
    ids=["one image", "one class", "one group", "a class per group"],
)
def test_few_images_groups_or_classes_are_scored_without_a_warning(labels: list[int], groups: list[str]) -> None:
    truth, logits = np.array(labels), np.eye(3)[labels] * 2
    found = intervals(truth, logits, np.array(groups), draws=40)
    area = found.pop("macro_auc")
    assert as_tuple(found.pop("weighted_auc")) == pytest.approx(as_tuple(area), nan_ok=True)
    known = len(set(groups)) > 1  # of one group every draw is the same
    ends = (1, 1) if known else (np.nan, np.nan)
    one_class = len(set(labels)) == 1
    assert as_tuple(area) == pytest.approx((np.nan,) * 3 if one_class else (1, *ends), nan_ok=True)
    assert as_tuple(found["accuracy"]) == pytest.approx((1, *ends), nan_ok=True)
    for each in found.values():
        assert each.known == known
        assert 0 <= each.value <= 1
        assert not known or 0 <= each.low <= each.value <= each.high <= 1
    table = per_class(truth, logits, np.array(groups), ["x", "y", "z"], draws=40)
    assert table.images.tolist() == np.bincount(truth, minlength=3).tolist()


# --- by class and by patient --------------------------------------------------------------------


def test_a_table_of_classes_worked_out_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    groups = np.array(["a", "a", "b", "b", "b", "c"])
    table = per_class(labels, one_hot([0, 0, 1, 0, 1, 1], 5), groups, ["LY", "MO", "EO", "BA", "PC"], draws=10)
    assert list(table.columns) == [
        "class", "images", "groups", "predicted", "precision", "recall", "f1", "auc",
        "precision_low", "precision_high", "recall_low", "recall_high", "f1_low", "f1_high",
    ]  # fmt: skip
    assert table["class"].tolist() == ["LY", "MO", "EO", "BA", "PC"]
    assert table.images.tolist() == [3, 2, 1, 0, 0]
    assert table.groups.tolist() == [2, 1, 1, 0, 0]
    assert table.predicted.tolist() == [3, 3, 0, 0, 0]
    assert table.precision.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert table.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 0, np.nan, np.nan], nan_ok=True)
    assert table.f1.tolist() == pytest.approx([4 / 6, 2 / 5, 0, 0, 0])
    # pairs of an image of the class and another: right where only the first is taken for it, half where both or neither
    areas = [(2 * 2 + (2 * 1 + 1 * 2) / 2) / 9, (1 * 2 + (1 * 2 + 1 * 2) / 2) / 8, 1 / 2, np.nan, np.nan]
    assert table.auc.tolist() == pytest.approx(areas, nan_ok=True)


def test_the_table_of_classes_is_scikit_learns_and_averages_to_the_score() -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 6, 200), rng.normal(size=(200, 7)).astype(np.float32)
    table = per_class(labels, logits, rng.integers(0, 20, 200), list("abcdefg"), draws=20)
    shared = {"labels": range(7), "average": None, "zero_division": 0}
    predictions = logits.argmax(axis=1)
    assert table.precision.tolist() == pytest.approx(sk.precision_score(labels, predictions, **shared))
    assert table.recall[:6].tolist() == pytest.approx(sk.recall_score(labels, predictions, **shared)[:6])
    assert table.f1.tolist() == pytest.approx(sk.f1_score(labels, predictions, **shared))
    scores = score(labels, logits)
    assert table.f1.mean() == pytest.approx(scores["macro_f1"])
    assert table.precision.mean() == pytest.approx(scores["macro_precision"])
    assert table.recall.mean() == pytest.approx(scores["balanced_accuracy"])
    exact = softmax(logits.astype(np.float64), axis=1)
    assert table.auc.mean() == pytest.approx(mean_auc(labels, exact))


def test_the_intervals_of_classes_are_those_of_resampled_patients_that_have_the_class() -> None:
    labels, logits, groups = drawn(8)
    labels = np.where((labels == 2) & ~np.isin(groups, ["p3", "p7"]), 0, labels)  # class 2 is in two patients
    table = per_class(labels, logits, groups, list("abc"), draws=100, seed=5).set_index("class")
    shared = {"labels": range(3), "average": None, "zero_division": 0}
    values: dict[str, list[np.ndarray]] = {"precision": [], "recall": [], "f1": []}
    for rows in resampled(groups, 100, 5):
        truth, predictions = labels[rows], logits[rows].argmax(axis=1)
        there = np.bincount(truth, minlength=3) > 0
        for metric, found in values.items():
            found.append(np.where(there, getattr(sk, f"{metric}_score")(truth, predictions, **shared), np.nan))
    assert 3 < np.isnan(values["recall"])[:, 2].sum() < 25  # (10 / 12)^12 = 11 % of draws lack both
    for metric, found in values.items():
        low, high = np.nanquantile(found, [0.025, 0.975], axis=0)
        assert table[f"{metric}_low"].tolist() == pytest.approx(low.tolist())
        assert table[f"{metric}_high"].tolist() == pytest.approx(high.tolist())


def test_a_class_without_images_has_no_interval() -> None:
    table = per_class(np.array([0, 0, 1, 1]), one_hot([0, 2, 1, 0], 3), np.arange(4), ["a", "b", "c"], draws=30)
    absent = table.iloc[2]
    assert (absent.images, absent.groups, absent.predicted, absent.precision, absent.f1) == (0, 0, 1, 0, 0)
    assert absent.drop(["class", "images", "groups", "predicted", "precision", "f1"]).isna().all()
    assert table.iloc[:2].notna().all(axis=None)


def test_a_class_that_one_patient_alone_has_has_values_but_no_interval() -> None:
    groups = np.array(["p", "q", "q", "q"])
    table = per_class(np.array([0, 0, 1, 1]), one_hot([0, 0, 1, 0], 2), groups, ["a", "b"], draws=30)
    ends = [f"{metric}_{end}" for metric in ("precision", "recall", "f1") for end in ("low", "high")]
    assert table.groups.tolist() == [2, 1]
    assert (table.recall[1], table.f1[1]) == pytest.approx((1 / 2, 2 / 3))
    assert table.loc[0, ends].notna().all()
    assert table.loc[1, ends].isna().all()


def test_patients_are_listed_from_the_worst_to_the_best() -> None:
    labels = np.array([0, 1, 1, 0, 0, 2, 2])
    groups = np.array(["b", "a", "a", "a", "c", "c", "c"])
    found = group_accuracies(labels, one_hot([0, 1, 0, 0, 1, 1, 2], 3), groups)
    expected = {
        "group": ["c", "a", "b"],
        "images": [3, 3, 1],
        "correct": [1, 2, 1],
        "accuracy": [1 / 3, 2 / 3, 1],
        "majority_label": [2, 1, 0],
    }
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), check_dtype=False)


def test_of_equally_frequent_classes_the_first_stands_for_the_patient_and_equal_patients_are_in_order() -> None:
    found = group_accuracies(np.array([2, 1, 0, 0]), one_hot([2, 1, 0, 0], 3), np.array(["d", "d", "c", "b"]))
    assert found.group.tolist() == ["b", "c", "d"]
    assert found.majority_label.tolist() == [0, 0, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_patients_accuracies_average_to_the_accuracy_of_all_images(n: int, n_groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, 3, n), rng.normal(size=(n, 3))
    found = group_accuracies(labels, logits, rng.integers(0, n_groups, n).astype(str))
    assert np.average(found.accuracy, weights=found.images) == pytest.approx(score(labels, logits)["accuracy"])
    assert found.images.sum() == n
