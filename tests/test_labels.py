"""Label issues against planted errors and cleanlab itself; outliers, the truth of rendered images, the pages."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cleanlab import filter as cleanlab_filter
from cleanlab.rank import get_label_quality_ensemble_scores, get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.figures.style import png_bytes
from leukofold.labels.analysis import LabelAnalysis
from leukofold.labels.issues import find_label_issues
from leukofold.labels.outliers import SMALLEST_FOLD, find_outliers, small_folds
from leukofold.labels.sheets import IN_A_ROW, issue_sheets, sheet_count
from leukofold.labels.truth import UNKNOWN, planted_score, true_labels


def planted(
    classes: int, runs: int = 1, n: int = 400, rate: float = 0.05, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws true labels, given labels with errors, and logits of networks that are right about nearly every cell."""
    rng = np.random.default_rng(seed)
    true = np.r_[np.arange(classes), rng.integers(0, classes, n - classes)]
    given = true.copy()
    wrong = rng.permutation(n)[: round(rate * n)]
    given[wrong] = (true[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return true, given, 6 * np.eye(classes)[true] + rng.normal(size=(runs, n, classes))


@pytest.mark.parametrize("classes", [2, 13])
@pytest.mark.parametrize("runs", [1, 3])
def test_planted_errors_are_found_and_put_right(classes: int, runs: int) -> None:
    true, labels, logits = planted(classes, runs)
    issues = find_label_issues(labels, logits)
    wrong = true != labels
    listed = issues.is_issue.to_numpy()
    assert (listed & wrong).sum() / wrong.sum() >= 0.8  # recall: only those that are confidently another class count
    assert (listed & wrong).sum() / listed.sum() >= 0.95  # precision
    assert planted_score(issues, true).average_precision >= 0.98
    assert (issues.suggested[listed & wrong] == true[listed & wrong]).all()
    assert issues.label_quality[wrong].max() < issues.label_quality[~wrong].median()
    assert issues.given.tolist() == labels.tolist()


def test_the_ranking_and_the_issues_are_cleanlabs() -> None:
    _, labels, logits = planted(5, seed=1)
    logits = logits / 3  # less sure, as networks are
    probabilities = softmax(logits[0], axis=1)
    ranked = cleanlab_filter.find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="low_self_confidence", n_jobs=1
    )
    issues = find_label_issues(labels, logits)
    found = issues[issues.is_issue].sort_values("label_quality", kind="stable").index.tolist()
    assert found == [row for row in ranked.tolist() if probabilities[row].argmax() != labels[row]]
    assert len(found) > 10
    np.testing.assert_allclose(issues.label_quality, get_label_quality_scores(labels, probabilities))
    np.testing.assert_allclose(issues.label_quality, probabilities[np.arange(len(labels)), labels])
    np.testing.assert_allclose(issues.suggested_probability, probabilities.max(axis=1))


def test_several_runs_are_averaged_as_probabilities_and_counted_one_by_one() -> None:
    _, labels, logits = planted(4, runs=3, seed=2)
    logits[2] = np.roll(logits[2], 1, axis=1)  # one run is always wrong
    issues = find_label_issues(labels, logits)
    mean = softmax(logits, axis=2).mean(axis=0)
    assert issues.suggested.tolist() == mean.argmax(axis=1).tolist()
    votes = [(logits[:, row].argmax(axis=1) == best).mean() for row, best in enumerate(issues.suggested)]
    assert issues.agreement.tolist() == pytest.approx(votes)
    ensemble = get_label_quality_ensemble_scores(
        labels, list(softmax(logits, axis=2)), weight_ensemble_members_by="uniform", verbose=False
    )
    np.testing.assert_allclose(issues.label_quality, ensemble)


def test_classes_without_a_label_are_neither_suggested_nor_in_the_way() -> None:
    true, labels, logits = planted(5, seed=3)
    wide = np.insert(logits, [0, 3], 9.0, axis=2)  # classes 0 and 4 of seven: the networks love them, no label has them
    present = np.array([1, 2, 3, 5, 6])
    narrow, found = find_label_issues(labels, logits), find_label_issues(present[labels], wide)
    assert found.suggested.tolist() == present[narrow.suggested].tolist()
    for column in ("label_quality", "agreement", "suggested_probability", "is_issue"):
        np.testing.assert_allclose(found[column], narrow[column])
    assert planted_score(found, present[true]).recall >= 0.8


@pytest.mark.parametrize("rare", [1, 2])
def test_classes_with_one_or_two_images_are_judged_like_others(rare: int) -> None:
    rng = np.random.default_rng(4)
    labels = np.r_[np.zeros(50, int), np.ones(50, int), np.full(rare, 2)]
    logits = 5 * np.eye(3)[labels] + rng.normal(size=(1, len(labels), 3))
    logits[0, 0] = [-4, 8, 0]
    issues = find_label_issues(labels, logits)
    assert np.flatnonzero(issues.is_issue).tolist() == [0]
    logits[0, -1] = [8, 0, -4]  # the rare class's own image looks like another
    assert 0 <= find_label_issues(labels, logits).label_quality.iloc[-1] < 0.5


def test_one_logit_beside_zero_says_the_same_as_two_logits() -> None:
    _, labels, logits = planted(2, runs=2, seed=5)
    single = np.stack([np.zeros_like(logits[..., 0]), logits[..., 1] - logits[..., 0]], axis=-1)
    pd.testing.assert_frame_equal(find_label_issues(labels, single), find_label_issues(labels, logits))


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UserError, match="all out-of-fold images are of one class"):
        find_label_issues(np.zeros(9, int), np.zeros((1, 9, 3)))


def test_cleanlab_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    _, labels, logits = planted(3)
    find_label_issues(labels, logits)
    find_outliers([np.random.default_rng(0).normal(size=(40, 8))], np.zeros(40, int), np.arange(40).astype(str))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_any_logits_give_sound_numbers(classes: int, runs: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:2] = 0, classes - 1
    logits = rng.normal(size=(runs, n, classes)) * rng.choice([0, 1, 50])
    issues = find_label_issues(labels, logits)
    shares = issues[["label_quality", "agreement", "suggested_probability"]].to_numpy()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (issues.suggested != issues.given)[issues.is_issue].all()
    assert set(issues.suggested) <= set(labels)
    assert (issues.suggested_probability >= issues.label_quality).all()


def embedded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws embeddings of two folds and of one that is too small; 5 lies far off, 7 and 9 are the same."""
    vectors = np.random.default_rng(0).normal(size=(100, 16)) + 4
    vectors[5], vectors[7] = -10, vectors[9]
    folds = np.r_[np.zeros(50, int), np.ones(50 - 10, int), np.full(10, 2)]
    return vectors, folds, np.array([f"{k}.jpg" for k in range(100)])


def test_an_outlier_and_a_near_duplicate_are_found_in_their_fold() -> None:
    vectors, folds, ids = embedded()
    found = find_outliers([vectors], folds, ids)
    assert small_folds(folds) == [2]
    assert found.row.tolist() == np.flatnonzero(folds < 2).tolist()
    assert found.image_id.tolist() == ids[folds < 2].tolist()
    assert found.outlier_score.idxmin() == 5
    assert found.is_outlier[5]
    assert found.image_id[found.is_near_duplicate.astype(bool)].tolist() == ["7.jpg", "9.jpg"]
    assert found.near_duplicates[7] == ("9.jpg",)
    assert found.near_duplicates[0] == ()
    assert found.near_duplicate_score[7] == 0


def test_folds_are_judged_apart_because_their_spaces_do_not_compare() -> None:
    vectors, folds, ids = embedded()
    turned = vectors.copy()
    turned[folds == 1] = -vectors[folds == 1]  # another network's space: the same distances elsewhere
    pd.testing.assert_frame_equal(find_outliers([turned], folds, ids), find_outliers([vectors], folds, ids))


def test_distances_are_averaged_over_runs_whatever_the_length_of_their_vectors() -> None:
    vectors, folds, ids = embedded()
    other = np.random.default_rng(1).normal(size=(100, 6)) + 4
    other[7] = -other[9]  # what is the same to one network is not to the other
    found = find_outliers([vectors, 1000 * other], folds, ids)
    assert not found.is_near_duplicate[7]
    same = find_outliers([vectors, 1000 * vectors], folds, ids)
    np.testing.assert_allclose(same.outlier_score, find_outliers([vectors], folds, ids).outlier_score, atol=1e-6)


def test_where_all_folds_are_too_small_nothing_is_found() -> None:
    few = SMALLEST_FOLD - 1
    found = find_outliers([np.ones((few, 4))], np.zeros(few, int), np.arange(few).astype(str))
    assert len(found) == 0
    assert "is_outlier" in found


def test_the_score_of_planted_errors_worked_out_by_hand() -> None:
    true = np.array([0, 1, 2, 0, 1, UNKNOWN])
    issues = pd.DataFrame(
        {
            "given": [1, 0, 2, 1, 1, 2],
            "suggested": [0, 2, 0, 0, 1, 0],
            "is_issue": [True, True, True, False, False, True],
            "label_quality": [0.1, 0.2, 0.3, 0.4, 0.5, 0.0],
        }
    )
    got = planted_score(issues, true)
    assert (got.planted, got.listed, got.found) == (3, 3, 2)
    assert (got.precision, got.recall, got.suggested_right) == (2 / 3, 2 / 3, 1 / 2)
    assert got.average_precision == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert got.average_precision == pytest.approx(average_precision_score([1, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.5]))
    clean = planted_score(issues.assign(given=true), true)
    assert clean.planted == 0
    assert np.isnan([clean.recall, clean.suggested_right, clean.average_precision]).all()


def test_the_truth_is_read_for_rendered_images_alone(rendered_wbcbench: Path, tmp_path: Path) -> None:
    competition = get_competition("wbcbench")
    labelled = competition.read(rendered_wbcbench).labelled
    paths = [*labelled.path, str(tmp_path / "real.jpg")]
    true = true_labels(paths, competition.class_names)
    assert true is not None
    assert true[:-1].tolist() == labelled.label.tolist()  # nothing is planted
    assert true[-1] == UNKNOWN
    assert true_labels([paths[-1]], competition.class_names) is None


@pytest.fixture
def analysis(rendered_wbcbench: Path) -> LabelAnalysis:
    """Judgements made by hand of the rendered images: every LY ought to be VLY, one SNE BNE."""
    competition = get_competition("wbcbench")
    cells = competition.read(rendered_wbcbench).labelled
    names = list(competition.class_names)
    lymphocytes = cells.label == names.index("LY")
    issue = lymphocytes | (cells.index == cells.index[cells.label == names.index("SNE")][0])
    suggested = np.where(lymphocytes, names.index("VLY"), np.where(issue, names.index("BNE"), cells.label))
    quality = np.random.default_rng(0).random(len(cells)) / np.where(issue, 2, 1)
    images = cells[["image_id", "group", "source", "path"]].assign(
        given=cells.label, suggested=suggested, label_quality=quality, agreement=0.5,
        suggested_probability=0.9, is_issue=issue, fold=0,
    )  # fmt: skip
    run = SimpleNamespace(oof=SimpleNamespace(class_names=competition.class_names), metadata={"rendered": True})
    runs: Any = [run] * 2
    return LabelAnalysis(runs, competition, images, None, [], {path: (path,) for path in images.path}, None)


def texts(figure: Any) -> list[str]:
    """Returns all texts of a page."""
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def test_a_page_per_pair_shows_the_most_doubtful_labels_beside_cells_that_are_not_doubted(
    analysis: LabelAnalysis,
) -> None:
    pages = dict(issue_sheets(analysis))
    assert list(pages) == ["overview", "given_LY_suggested_VLY", "given_SNE_suggested_BNE"]
    assert sheet_count(analysis) == 3
    issues = analysis.issues[analysis.issues.given == analysis.class_names.index("LY")]
    found = texts(pages["given_LY_suggested_VLY"])
    assert f"WBCBench 2026, RENDERED cells: given LY, suggested VLY, {len(issues)} label issues" in found
    assert f"1 to {IN_A_ROW} of {len(issues)}" in found
    ids = [text.split(".")[0].split("\n")[0] for text in found]
    shown = [Path(image_id).stem for image_id in issues.image_id.head(3 * IN_A_ROW)]
    assert [text for text in ids if text in shown] == shown
    assert "LY" not in found  # a row of its own to compare with
    assert any("All labels LY are doubted." in text.replace("\n", " ") for text in found)
    assert "VLY" in found
    assert any(text.endswith("\n1 of 2") for text in found)  # one run of two
    assert "WBCBench 2026, RENDERED cells: given SNE, suggested BNE, 1 label issue" in texts(
        pages["given_SNE_suggested_BNE"]
    )
    assert png_bytes(pages["overview"])[:4] == b"\x89PNG"


def test_references_are_of_different_patients_and_the_surest_first(analysis: LabelAnalysis) -> None:
    page = dict(issue_sheets(analysis))["given_SNE_suggested_BNE"]
    images = analysis.images[~analysis.images.is_issue]
    own = images[images.given == analysis.class_names.index("SNE")].sort_values("label_quality", ascending=False)
    expected = [Path(image_id).stem for image_id in own.drop_duplicates("group").image_id.head(IN_A_ROW)]
    found = texts(page)
    assert [text for text in found if text in set(own.image_id.map(lambda name: Path(name).stem))] == expected
