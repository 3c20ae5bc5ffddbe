"""Methods of combining runs against independent references, their judgement by nested folds, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.metrics import log_loss as reference_log_loss

from leukofold.blending.aligning import AlignedRuns
from leukofold.blending.averaging import mean_logits, mean_probabilities, rank_average
from leukofold.blending.biases import GRID, PENALTY, add_biases, fit_biases
from leukofold.blending.combining import blend_runs
from leukofold.blending.judging import choose, judge
from leukofold.blending.loading import load_run
from leukofold.blending.methods import METHODS, method_names, need_method
from leukofold.blending.scores import arg_max, count_confusions, log_loss, log_probabilities
from leukofold.blending.stacking import FLOOR, stack
from leukofold.blending.weighting import convex, greedy
from leukofold.competitions.wbcbench import CLASS_NAMES
from leukofold.errors import UserError
from leukofold.metrics import score
from leukofold.runs import RunFolder
from leukofold.summary import blend_summary

if TYPE_CHECKING:
    from tests.conftest import Commands, RunMaker


def drawn(seed: int = 0, n: int = 240, classes: int = 3, strengths: tuple[float, ...] = (1, 1, 1)) -> AlignedRuns:
    """Runs that know the truth so well, of 3 folds and 24 groups."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(classes, 0, -1) / (classes * (classes + 1) / 2))
    groups = rng.integers(0, 24, n)
    logits = [strength * np.eye(classes)[labels] + rng.normal(size=(n, classes)) for strength in strengths]
    return AlignedRuns(
        tuple(f"run {m}" for m in range(len(strengths))),
        tuple(f"class {k}" for k in range(classes)),
        "macro_f1",
        np.array(logits, dtype=np.float32),
        np.zeros((1, len(strengths), 0, classes), dtype=np.float32),
        labels,
        groups % 3,
        groups,
        np.zeros(n, dtype=bool),
    )


# --- scores, classes first ----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 13), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_helpers_equal_numpys_and_scipys(runs: int, classes: int, n: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-3, 4, (runs, n, classes)).astype(np.float32)  # with many ties
    log_p = log_probabilities(logits)
    assert log_p.flags.c_contiguous
    assert np.moveaxis(log_p, 1, 2) == pytest.approx(log_softmax(logits, axis=2), abs=1e-5)
    assert np.array_equal(arg_max(np.moveaxis(logits, 2, 1)), logits.argmax(axis=2))


def test_log_loss_and_its_gradient_equal_scikit_learns_and_differences() -> None:
    rng = np.random.default_rng(0)
    labels, scores = np.array([0, 2, 1, 2]), rng.normal(size=(3, 4))
    value, slope = log_loss(labels, scores)
    assert value == pytest.approx(reference_log_loss(labels, softmax(scores, axis=0).T))
    step = 1e-6
    for place in np.ndindex(3, 4):
        moved = scores.copy()
        moved[place] += step
        assert (log_loss(labels, moved)[0] - value) / step == pytest.approx(slope[place], abs=1e-5)


# --- averages -----------------------------------------------------------------------------------


def test_the_mean_of_probabilities_survives_logits_that_underflow() -> None:
    logits = np.array([[[0, 1, 2]], [[3, 0, 0]]], dtype=np.float32)
    combined = mean_probabilities(np.zeros(1), log_probabilities(logits), "macro_f1")(log_probabilities(logits))
    assert np.exp(combined[:, 0]) == pytest.approx(softmax(logits, axis=2).mean(axis=0)[0])
    far = log_probabilities(logits * 1000)
    assert np.isfinite(mean_probabilities(np.zeros(1), far, "macro_f1")(far)).all()


def test_ranks_are_averaged_on_the_mean_quantile_function() -> None:
    log_p = log_probabilities(drawn(n=50).oof)
    combined = rank_average(np.zeros(50), log_p, "macro_f1")(log_p)
    for k in range(3):
        common = np.sort(log_p[:, k], axis=1).mean(axis=0)
        ranks = rankdata(log_p[:, k], axis=1).astype(int) - 1
        assert combined[k] == pytest.approx(common[ranks].mean(axis=0), abs=1e-5)


def test_new_images_lie_between_and_beyond_those_that_ranks_were_fitted_on() -> None:
    fitted = np.array([[[-4, -2, -1]], [[-8, -4, -2]]], dtype=np.float32)
    combiner = rank_average(np.zeros(3), fitted, "macro_f1")
    assert combiner(np.array([[[-3.0]], [[-6.0]]]))[0, 0] == pytest.approx(-4.5)  # halfway between -6 and -3
    assert combiner(np.array([[[-5.0]], [[-9.0]]]))[0, 0] == pytest.approx(-7)  # 1 below the lowest, -6


# --- fitted methods -----------------------------------------------------------------------------


def test_convex_weights_are_the_best_of_a_grid() -> None:
    runs = drawn(1, strengths=(2, 0.7))
    log_p = log_probabilities(runs.oof)
    found = convex(runs.labels, log_p, "macro_f1")
    steps = np.linspace(0, 3, 101)
    losses = {(a, b): log_loss(runs.labels, a * log_p[0] + b * log_p[1])[0] for a in steps for b in steps}
    best = min(losses, key=lambda pair: losses[pair])
    assert found.weights == pytest.approx(best, abs=0.031)
    assert log_loss(runs.labels, found(log_p))[0] <= losses[best] + 1e-6


def test_a_run_that_knows_nothing_gets_no_weight() -> None:
    runs = drawn(2, n=2000, strengths=(2, 0))
    log_p = log_probabilities(runs.oof)
    assert convex(runs.labels, log_p, "macro_f1").weights[1] < 0.1
    runs.oof[1] = -runs.oof[0]
    assert convex(runs.labels, log_probabilities(runs.oof), "macro_f1").weights[1] == 0


def naive_greedy(labels: np.ndarray, log_p: np.ndarray, steps: int) -> np.ndarray:
    """Selection as the paper tells it, one scikit-learn call per candidate."""

    def key(members: list[int]) -> tuple[float, float]:
        mean = log_p[members].mean(axis=0, dtype=np.float64)
        macro = f1_score(labels, mean.argmax(axis=0), average="macro", labels=range(len(mean)), zero_division=0)
        return round(macro, 12), -reference_log_loss(labels, softmax(mean, axis=0).T, labels=range(len(mean)))

    every = range(len(log_p))
    ranking = sorted(every, key=lambda m: key([m]), reverse=True)
    members = max((ranking[:size] for size in range(1, len(log_p) + 1)), key=key)
    path = [members]
    while len(path[-1]) < steps:
        path.append(max(([*path[-1], m] for m in every), key=key))
    best = max(path, key=key)
    return np.bincount(best, minlength=len(log_p)) / len(best)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_greedy_selects_what_a_naive_selection_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukofold.blending.weighting.STEPS", 8)
    runs = drawn(seed, n=90, strengths=(1, 0.8, 0.6, 0.2))
    log_p = log_probabilities(runs.oof)
    assert greedy(runs.labels, log_p, "macro_f1").weights == pytest.approx(naive_greedy(runs.labels, log_p, 8))


@pytest.mark.parametrize("classes", [2, 4])
def test_stacking_is_scikit_learns_regression_on_whitened_features(classes: int) -> None:
    runs = drawn(6, n=300, classes=classes)
    log_p = log_probabilities(runs.oof)
    found = softmax(stack(runs.labels, log_p, "macro_f1")(log_p), axis=0).T
    features = np.maximum(log_p, FLOOR).reshape(3 * classes, -1).T.astype(np.float64)
    spread, axes = np.linalg.eigh(np.cov(features.T))
    whitened = (features - features.mean(axis=0)) @ axes / np.sqrt(spread + 0.01 * spread.mean())
    expected = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000).fit(whitened, runs.labels).predict_proba(whitened)
    assert found == pytest.approx(expected, abs=5e-3)


def test_stacking_never_predicts_a_class_that_it_was_not_fitted_on() -> None:
    runs = drawn(7, classes=4)
    log_p = log_probabilities(runs.oof)
    kept = runs.labels != 1
    scores = stack(runs.labels[kept], log_p[:, :, kept], "macro_f1")(log_p)
    assert not (scores.argmax(axis=0) == 1).any()
    assert (scores[1] < scores[[0, 2, 3]]).all()


def test_biases_are_the_best_of_an_exhaustive_search_over_two_classes() -> None:
    runs = drawn(8, classes=2, strengths=(1,))
    scores = log_probabilities(runs.oof)[0]
    scores[0] += 0.83  # the truth is that class 1 is more common than the run says

    def value(biases: np.ndarray) -> float:
        predictions = (scores + biases[:, None]).argmax(axis=0)
        return float(f1_score(runs.labels, predictions, average="macro")) - PENALTY * float(biases @ biases)

    best = max(value(np.array([a, b])) for a in GRID[::3] for b in GRID[::3])
    found = value(fit_biases(runs.labels, scores, "macro_f1"))
    assert found >= best - 0.002
    assert found > value(np.zeros(2)) + 0.005


def test_biases_help_a_rare_class_that_is_never_the_likeliest() -> None:
    rng = np.random.default_rng(9)
    labels = np.array([0] * 300 + [1] * 30)
    scores = (np.eye(2)[labels] + np.array([3, 0]) + rng.normal(0, 0.3, (330, 2))).T.astype(np.float32)
    biases = fit_biases(labels, scores, "macro_f1")
    assert score(labels, scores.T)["macro_f1"] < 0.5
    assert score(labels, (scores + biases[:, None]).T)["macro_f1"] > 0.9


# --- properties of every method -----------------------------------------------------------------


def predicted(name: str, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns softmaxed scores of a method that was fitted to the same images."""
    log_p = log_probabilities(logits)
    combiner = METHODS[name.removesuffix("+biases")](labels, log_p, "macro_f1")
    if name.endswith("+biases"):
        combiner = add_biases(combiner, labels, log_p, "macro_f1")
    return np.asarray(softmax(combiner(log_p), axis=0))


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 5))
def test_the_order_of_runs_and_constants_per_image_change_nothing(name: str, seed: int, classes: int) -> None:
    runs, rng = drawn(seed, n=80, classes=classes), np.random.default_rng(seed)
    before = predicted(name, runs.labels, runs.oof)
    assert predicted(name, runs.labels, runs.oof[[2, 0, 1]]) == pytest.approx(before, abs=5e-3)
    shifted = runs.oof + rng.normal(0, 5, (3, 80, 1)).astype(np.float32)
    assert predicted(name, runs.labels, shifted) == pytest.approx(before, abs=5e-3)


@pytest.mark.parametrize("name", ["mean_logits", "mean_probabilities", "rank_average", "greedy"])
def test_a_single_run_is_returned_as_it_is(name: str) -> None:
    runs = drawn(strengths=(1,))
    assert predicted(name, runs.labels, runs.oof) == pytest.approx(softmax(runs.oof[0], axis=1).T, abs=1e-5)


@pytest.mark.parametrize("name", method_names())
def test_models_of_one_logit_and_of_two_are_the_same_to_every_method(name: str) -> None:
    runs = drawn(10, classes=2)
    one_logit = runs.oof.copy()
    one_logit[0] -= one_logit[0][:, :1]  # as models of one logit are stored: 0 and z
    before, after = (predicted(name, runs.labels, logits) for logits in (runs.oof, one_logit))
    assert after == pytest.approx(before, abs=2e-3)


# --- judgement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", method_names())
def test_a_folds_own_labels_and_external_images_have_no_influence_on_its_scores(name: str) -> None:
    runs = drawn(11)
    external = np.arange(240) % 5 == 0
    runs = replace(runs, is_external=external)
    before = judge(runs, [name])[0].nested
    swapped = np.where((runs.folds == 1) | external, (runs.labels + 1) % 3, runs.labels)
    after = judge(replace(runs, labels=swapped), [name])[0].nested
    assert np.array_equal(before[runs.folds == 1], after[runs.folds == 1])


def test_runs_that_memorise_the_labels_of_other_folds_gain_nothing() -> None:
    runs = drawn(12, n=600)
    rng = np.random.default_rng(0)
    for k in range(3):  # perfect but for fold k, where it knows nothing
        truth = 8 * np.eye(3)[runs.labels]
        runs.oof[k] = np.where((runs.folds != k)[:, None], truth, 8 * rng.normal(size=truth.shape))
    for judged in judge(runs, ["greedy", "log_loss", "stacking", "greedy+biases"]):
        in_sample = score(runs.labels, judged.combiner(log_probabilities(runs.oof)).T)["macro_f1"]
        assert in_sample > judged.value + 0.1
        assert not judged.real


@pytest.mark.parametrize("name", ["greedy", "log_loss", "stacking"])
def test_a_good_run_among_bad_ones_is_found_and_its_gain_is_real(name: str) -> None:
    runs = drawn(13, n=600, strengths=(0, 3, 0, 0))
    runs.oof[[0, 2, 3]] *= 3
    choice = choose(runs, name, insist=False)
    assert choice.method == name
    assert choice.judged[0].gain.low > 0.05
    assert choice.judged[0].value == pytest.approx(score(runs.labels, choice.judged[0].nested)["macro_f1"])


def test_gains_are_those_of_nested_scores_over_the_plain_mean() -> None:
    runs = drawn(14)
    found = judge(runs, ["log_loss"])[0]
    nested = np.empty((240, 3))
    for k in range(3):
        rest = log_probabilities(runs.oof[:, runs.folds != k])
        fitted = convex(runs.labels[runs.folds != k], rest, "macro_f1")
        nested[runs.folds == k] = fitted(log_probabilities(runs.oof[:, runs.folds == k])).T
    assert found.nested == pytest.approx(nested, abs=1e-4)
    plain = score(runs.labels, runs.oof.mean(axis=0))["macro_f1"]
    assert found.gain.value == pytest.approx(found.value - plain)


@pytest.mark.parametrize("asked", ["all", "greedy", "stacking+biases"])
def test_of_runs_that_know_nothing_the_plain_mean_is_taken(asked: str) -> None:
    choice = choose(drawn(15, n=300, classes=4, strengths=(0, 0, 0)), asked, insist=False)
    assert choice.taken is None
    assert choice.method == "mean_logits"
    assert "not real" in choice.reason


def test_of_all_methods_the_choice_is_judged_on_folds_that_it_was_not_made_on() -> None:
    runs = drawn(14, n=500, strengths=(0.3, 1.6, 0.5))
    choice = choose(runs, "all", insist=False)
    assert len(choice.judged) == len(method_names()) - 1 == 11
    assert [one.value for one in choice.judged] == sorted((one.value for one in choice.judged), reverse=True)
    assert choice.trial is not None
    assert choice.trial.method == choice.judged[0].method
    candidates = [runs.oof.mean(axis=0), *(one.nested for one in choice.judged)]
    chosen = []
    for k in range(3):
        rest = runs.folds != k
        values = [f1_score(runs.labels[rest], each[rest].argmax(axis=1), average="macro") for each in candidates]
        best = int(np.argmax(values))
        chosen.append(best)
        assert choice.trial.nested[~rest] == pytest.approx(candidates[best][~rest], abs=1e-5)
    assert len(set(chosen)) > 1  # or the value of the choice would be that of one method
    value = f1_score(runs.labels, choice.trial.nested.argmax(axis=1), average="macro")
    assert choice.trial.value == pytest.approx(value)
    assert choice.trial.gain.value == pytest.approx(
        value - f1_score(runs.labels, candidates[0].argmax(axis=1), average="macro")
    )
    assert (choice.taken is choice.trial) == choice.trial.real == (choice.trial.gain.low > 0)


@pytest.mark.parametrize(("groups", "told"), [(1, False), (9, False), (10, True)])
def test_few_groups_make_no_gain_real(groups: int, told: bool) -> None:
    runs = drawn(13, n=600, strengths=(0, 3, 0, 0))
    runs.oof[[0, 2, 3]] *= 3
    choice = choose(replace(runs, groups=np.arange(600) % groups), "greedy", insist=False)
    assert choice.judged[0].gain.value > 0.05
    assert choice.judged[0].gain.known == (groups > 1)
    assert (choice.method == "greedy") == told
    assert choice.reason == f"the gain of greedy is {'real' if told else 'not known, with fewer than 10 groups'}"


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    rng = np.random.default_rng(5)
    log_p = rng.integers(-4, 1, (3, 2, 200)).astype(np.float32)
    combiner = rank_average(np.zeros(200, dtype=int), log_p, "macro_f1")
    common = np.sort(log_p, axis=2).mean(axis=0)
    for k, found in enumerate(combiner(log_p)):
        each = []
        for run in log_p:
            low, high = (rankdata(run[k], method=end).astype(int) for end in ("min", "max"))
            each.append([common[k, i - 1 : j].mean() for i, j in zip(low, high, strict=True)])
        assert found == pytest.approx(np.mean(each, axis=0), abs=1e-5)


@pytest.mark.parametrize("name", method_names())
def test_a_combiner_takes_no_images_at_all(name: str) -> None:
    runs = drawn(3)
    combiner = judge(runs, [name])[0].combiner
    assert combiner(np.empty((len(runs.oof), 3, 0), dtype=np.float32)).shape == (3, 0)


def test_runs_that_cannot_be_fitted_to_are_refused() -> None:
    runs = drawn(3)
    wrong = replace(runs, oof=-20 * np.eye(3, dtype=np.float32)[runs.labels][None].repeat(2, axis=0))
    with pytest.raises(UserError, match="--method log_loss: every run is worse than guessing"):
        judge(wrong, ["log_loss"])
    with pytest.raises(UserError, match="--method stacking: the runs' logits are the same for all images"):
        judge(replace(runs, oof=np.ones_like(runs.oof)), ["stacking"])


# --- runs on disk and the command ---------------------------------------------------------------


@pytest.mark.parametrize("competition", ["wbc_runs", "cnmc_runs"])
def test_a_method_insisted_on_is_written_into_scores_and_origin(
    competition: str, request: pytest.FixtureRequest, commands: Commands
) -> None:
    maker: RunMaker = request.getfixturevalue(competition)
    for seed, name in enumerate(("a", "b", "c")):
        maker.make(name, seed=seed, shuffled=True)
    said = commands.succeed("blend.py", "--method", "stacking+biases", "--insist")
    assert "blend, mean of logits" in said
    assert "blend, stacking+biases" in said
    (written,) = (commands.cwd / "submissions").rglob("*.json")
    assert re.fullmatch(r"blend-of-3-[0-9a-f]{8}-stacking-biases.json", written.name)
    origin = json.loads(written.read_text())
    method: dict[str, Any] = origin["method"]
    assert (method["asked"], method["taken"]) == ("stacking+biases", "stacking+biases")
    judged = method["judged"]["stacking+biases"]
    assert judged["nested"] == pytest.approx(origin["oof"][origin["metric"]])
    assert judged["gain"]["low"] <= judged["gain"]["value"] <= judged["gain"]["high"]
    assert sum(judged["fitted"]["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert set(judged["fitted"]["biases"]) == set(origin["class_names"])
    if judged["gain"]["low"] <= 0:
        assert "taken       stacking+biases: insisted on, though its gain is not real" in said


def test_all_methods_are_listed_and_the_plain_mean_stays(wbc_runs: RunMaker, commands: Commands) -> None:
    runs = [load_run(wbc_runs.make(name, seed=seed).folder) for seed, name in ((1, "a"), (2, "b"))]
    said = commands.succeed("blend.py", "--name", "s", "--method", "all")
    assert all(f"    {name} " in said for name in method_names()[1:])
    assert "against the mean of logits, 95 % interval" in said
    assert "taken       mean_logits: the gain of " in said
    plain = [CLASS_NAMES[k] for k in blend_runs(runs).test.logits.argmax(axis=1)]
    lines = (commands.cwd / "submissions/wbcbench/s.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == plain


def test_test_images_are_combined_by_what_was_fitted_on_all_folds(wbc_runs: RunMaker) -> None:
    runs = [load_run(wbc_runs.make(name, seed=seed, shuffled=True).folder) for seed, name in enumerate("abc")]
    blend = blend_runs(runs, "log_loss", insist=True)
    assert blend.choice.taken is not None
    weights = blend.choice.taken.combiner.describe("abc", blend.oof.class_names)["weights"]
    folds = [
        [dict(zip(part.image_id, log_softmax(part.logits, axis=1), strict=True)) for part in run.tests] for run in runs
    ]
    for name, logits in zip(blend.test.image_id, blend.test.logits, strict=True):
        each = [sum(w * run[k][name] for w, run in zip(weights.values(), folds, strict=True)) for k in range(3)]
        assert logits == pytest.approx(np.mean(each, axis=0), abs=1e-4)
    assert np.array_equal(blend.plain.logits, blend_runs(runs).oof.logits)
    assert np.array_equal(blend.oof.logits, blend.choice.taken.nested)
    assert blend.oof.label is not None
    own = f1_score(blend.oof.label, blend.oof.logits.argmax(axis=1), average="macro", labels=range(13), zero_division=0)
    row = next(line for line in blend_summary(blend, None).splitlines() if "blend, log_loss" in line)
    assert row.endswith(f"{own:.4f}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("greedy+bias", "no such method; did you mean 'greedy+biases'?; known ones: mean_logits, mean_logits+biases"),
        ("x", "--method x: no such method; known ones: mean_logits, mean_logits+biases"),
        ("all", "--insist: takes the one method that --method names, not all"),
    ],
)
def test_methods_that_are_none_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        need_method(name, insist=True)
    assert said in str(caught.value)
    assert str(caught.value).count("known ones") <= 1


def test_a_misspelt_method_ends_on_one_line_before_anything_is_loaded(commands: Commands) -> None:
    assert "--method gredy: no such method; did you mean 'greedy'?" in commands.refused("blend.py", "--method", "gredy")


def test_one_fold_is_not_enough_to_fit_a_method(wbc_runs: RunMaker, commands: Commands) -> None:
    wbc_runs.make("a", trained=(1,))
    message = commands.refused("blend.py", "--method", "greedy")
    assert "a: only fold 1 is trained, but to fit and judge a method needs at least two complete folds" in message
    blend = blend_runs([load_run(RunFolder("a", wbc_runs.root))], "mean_probabilities")  # nothing to fit
    assert [one.method for one in blend.choice.judged] == ["mean_probabilities"]


def test_folds_of_one_class_leave_nothing_to_fit() -> None:
    runs = drawn(17)
    labels = np.where(runs.folds == 0, runs.labels, 2)
    with pytest.raises(UserError, match="all images outside of fold 0 are of one class"):
        judge(replace(runs, labels=labels), ["stacking"])


def test_confusions_and_equal_weights_by_hand() -> None:
    counts = count_confusions(np.array([0, 1, 1]), np.array([[0, 0, 1], [1, 1, 1]]), 2)
    assert counts.tolist() == [[[1, 0], [1, 1]], [[0, 1], [0, 2]]]
    log_p = log_probabilities(drawn().oof)
    assert mean_logits(np.zeros(240), log_p, "macro_f1")(log_p) == pytest.approx(log_p.mean(axis=0), abs=1e-5)
