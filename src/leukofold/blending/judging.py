"""Whether a method is better than the plain mean of logits, judged on images that it was not fitted to.

Nested folds: what scores a fold's images was fitted on the other folds' labels alone, and where all methods are
tried, chosen on them as well. The gain over the plain mean comes with an interval by bootstrap over groups; it is real
if the interval lies above 0. (The logits of the other folds come from networks that were trained on this fold: what
little that tells is left in, as in all stacking.)
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from leukofold.blending.aligning import AlignedRuns
from leukofold.blending.averaging import Combiner
from leukofold.blending.biases import add_biases
from leukofold.blending.methods import ALL, BIASES, METHODS, PLAIN, UNFITTED, Fit, method_names
from leukofold.blending.scores import count_confusions, log_probabilities
from leukofold.errors import UserError, name_some
from leukofold.metrics import Interval, interval, score
from leukofold.metrics.weighted import from_confusions
from leukofold.processes import available_cores

FEWEST = 10
"""Groups that a verdict needs. Between equally good classifiers 95 % intervals left 0 out above in 20 % of drawn cases
with 2 groups, in 8 % with 5, in about 4 % with 12 to 24 (2.5 % is the promise)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """A method's worth.

    Attributes:
        method: Its name.
        nested: n x K scores, each image's by a combiner that was fitted on other folds.
        value: Their metric on the competition's images.
        gain: The same less the plain mean's, with its 95 % interval.
        groups: The number of groups that the interval rests on.
        combiner: Fitted on all folds, for new images.
    """

    method: str
    nested: np.ndarray
    value: float
    gain: Interval
    groups: int
    combiner: Combiner

    @property
    def real(self) -> bool:
        """Whether the gain is more than the choice of patients explains; never with fewer than ``FEWEST`` of them."""
        return self.groups >= FEWEST and self.gain.low > 0

    @property
    def verdict(self) -> str:
        """Says so in words."""
        if self.groups < FEWEST:
            return f"not known, with fewer than {FEWEST} groups"
        return "real" if self.real else "not real"


@dataclass(frozen=True)
class Choice:
    """Which method was asked for, which one was taken, and why.

    Attributes:
        asked: A method, or ``all``.
        judged: The methods tried, the best value first; none where the plain mean was asked for.
        trial: What is taken if its gain is real. Of ``all`` the best method, but its ``nested`` scores, value and gain
            are those of choosing: of each fold by the method that was best on the other folds. None if nothing is
            better than the plain mean.
        taken: ``trial`` if it was taken; None: the plain mean.
        reason: Why, in a few words.
    """

    asked: str
    judged: Sequence[Judgement]
    trial: Judgement | None
    taken: Judgement | None
    reason: str

    @property
    def method(self) -> str:
        """The method taken."""
        return self.taken.method if self.taken else PLAIN


def choose(runs: AlignedRuns, asked: str, insist: bool) -> Choice:
    """Takes a method if its gain is real, else the plain mean.

    Args:
        runs: The runs.
        asked: One of ``method_names``, or ``all``: the best of them, if choosing it has a real gain.
        insist: Take the method that was asked for even if its gain is not real.

    Returns:
        The choice.

    Raises:
        UserError: Fewer than two folds are complete.
    """
    if asked == PLAIN:
        return Choice(asked, [], None, None, "asked for")
    if asked == ALL:
        judged = judge(runs, [name for name in method_names() if name != PLAIN])
        trial, what = _choose_by_fold(runs, judged), "choosing among all methods"
    else:
        judged = judge(runs, [asked])
        trial, what = judged[0], asked
    if trial is None:
        return Choice(asked, judged, None, None, "no method is better")
    if trial.real:
        return Choice(asked, judged, trial, trial, f"the gain of {what} is real")
    if insist:
        return Choice(asked, judged, trial, trial, f"insisted on, though its gain is {trial.verdict}")
    return Choice(asked, judged, trial, None, f"the gain of {what} is {trial.verdict}")


def _choose_by_fold(runs: AlignedRuns, judged: Sequence[Judgement]) -> Judgement | None:
    """Judges the choice of the best method: each fold is scored by the one that is best on the other folds.

    The best of many values is too high where it was found, so the best method's own value says nothing about new
    images. The plain mean may be chosen for a fold, too.

    Returns:
        The method that is best on all folds, with the scores, value and gain of choosing; None if it is the plain mean.
    """
    plain = _plain_scores(runs)
    candidates = [plain, *(one.nested for one in judged)]
    predicted = np.stack([each.argmax(axis=1) for each in candidates])

    def best_on(rows: np.ndarray) -> int:
        counts = count_confusions(runs.labels[rows], predicted[:, rows], plain.shape[1])
        return int(from_confusions(counts)[runs.metric].argmax())

    if best_on(_rows_of_part(runs, None)) == 0:
        return None
    nested = np.empty_like(plain)
    for part in sorted(set(runs.folds.tolist())):
        rows = runs.folds == part
        nested[rows] = candidates[best_on(_rows_of_part(runs, part))][rows]
    return _judgement(runs, judged[0].method, nested, judged[0].combiner)


def judge(runs: AlignedRuns, methods: Sequence[str]) -> list[Judgement]:
    """Judges methods by nested folds.

    Args:
        runs: The runs, of at least two folds.
        methods: Any of ``method_names``.

    Returns:
        A judgement of each, the best value first.

    Raises:
        UserError: Fewer than two folds are complete, or all images outside of a fold are of one class.
    """
    if set(methods) - UNFITTED:
        _need_folds(runs)
    log_p = log_probabilities(runs.oof)
    bases: dict[str, list[Combiner]] = {}
    judged = []
    for method in tqdm(methods, desc="judging methods", leave=False, disable=None):
        base = method.removesuffix(BIASES)
        if base not in bases:
            bases[base] = _fit_parts(runs, log_p, METHODS[base])
        combiners = bases[base]
        if method.endswith(BIASES):
            combiners = _bias_parts(runs, log_p, combiners)
        judged.append(_judge_fitted(runs, log_p, method, combiners))
    return sorted(judged, key=lambda one: -one.value)


def _need_folds(runs: AlignedRuns) -> None:
    """Refuses folds outside of which there is nothing to fit to."""
    folds = sorted(set(runs.folds.tolist()))
    if len(folds) < 2:
        raise UserError(
            f"{name_some(runs.names)}: only fold {folds[0]} is trained, but to fit and judge a method needs at least "
            f"two complete folds; train another one, or blend with --method {PLAIN}"
        )
    for k in folds:
        if len(set(runs.labels[_rows_of_part(runs, k)].tolist())) < 2:
            raise UserError(
                f"{name_some(runs.names)}: all images outside of fold {k} are of one class, which leaves nothing to "
                f"fit; train more folds, or blend with --method {PLAIN}"
            )


def _parts(runs: AlignedRuns) -> list[int | None]:
    """Returns the folds, and None for all of them together: a combiner is fitted without each."""
    return [*sorted(set(runs.folds.tolist())), None]


def _rows_of_part(runs: AlignedRuns, part: int | None) -> np.ndarray:
    """Returns the competition's images outside of a fold, n booleans."""
    own: np.ndarray = ~runs.is_external
    return own if part is None else own & (runs.folds != part)


def _take(log_p: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Takes some images of M x K x n; plain indexing would leave them strided, which slows every method down."""
    return np.compress(rows, log_p, axis=2)


def _fit_parts(runs: AlignedRuns, log_p: np.ndarray, fit: Fit) -> list[Combiner]:
    """Fits a method without each of the folds, and on all."""

    def one(part: int | None) -> Combiner:
        rows = _rows_of_part(runs, part)
        return fit(runs.labels[rows], _take(log_p, rows), runs.metric)

    return _side_by_side(one, _parts(runs))


def _bias_parts(runs: AlignedRuns, log_p: np.ndarray, combiners: Sequence[Combiner]) -> list[Combiner]:
    """Finds biases for combiners, each on the images that it was fitted on."""

    def one(fitted: tuple[int | None, Combiner]) -> Combiner:
        rows = _rows_of_part(runs, fitted[0])
        return add_biases(fitted[1], runs.labels[rows], _take(log_p, rows), runs.metric)

    return _side_by_side(one, list(zip(_parts(runs), combiners, strict=True)))


def _side_by_side(work: Callable[[T], Combiner], items: Sequence[T]) -> list[Combiner]:
    """Fits on all cores: a thread per fit with one of the library's each, which also keeps the sums' order."""
    with threadpool_limits(1), ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(work, items))


def _judge_fitted(runs: AlignedRuns, log_p: np.ndarray, method: str, combiners: Sequence[Combiner]) -> Judgement:
    """Scores each fold by the combiner that was fitted without it."""
    nested = np.empty(runs.oof.shape[1:], dtype=np.float32)
    for part, combiner in zip(_parts(runs), combiners, strict=True):
        if part is not None:
            rows = runs.folds == part
            nested[rows] = combiner(_take(log_p, rows)).T
    return _judgement(runs, method, nested, combiners[-1])


def _judgement(runs: AlignedRuns, method: str, nested: np.ndarray, combiner: Combiner) -> Judgement:
    """Compares n x K nested scores with the plain mean on the competition's images."""
    own, plain = ~runs.is_external, _plain_scores(runs)
    labels, groups = runs.labels[own], runs.groups[own]
    gain = interval(runs.metric, labels, nested[own], groups, reference=plain[own])
    value = score(labels, nested[own])[runs.metric]
    return Judgement(method, nested, value, gain, len(np.unique(groups)), combiner)


def _plain_scores(runs: AlignedRuns) -> np.ndarray:
    """Returns the mean of logits, n x K float32."""
    return np.asarray(runs.oof.mean(axis=0, dtype=np.float64), dtype=np.float32)
