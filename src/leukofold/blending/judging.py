"""Whether a method is better than the plain mean of logits, judged on images that it was not fitted to.

Nested folds: what scores a fold's images was fitted on the other folds' images alone. The gain over the plain mean
comes with an interval by bootstrap over groups; it is real if the interval lies above 0.
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
from leukofold.blending.scores import log_probabilities
from leukofold.errors import UserError, name_some
from leukofold.metrics import Interval, interval, score
from leukofold.processes import available_cores

ERROR = 0.05  # share of judgements that may find a gain where there is none, over all methods tried together
DRAWS = 5000  # of the bootstrap: with all methods, a hundredth of them lies outside of the interval

T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """A method's worth.

    Attributes:
        method: Its name.
        nested: n x K scores, each image's by a combiner that was fitted on other folds.
        value: Their metric on the competition's images.
        gain: The same less the plain mean's.
        level: Of the gain's interval.
        combiner: Fitted on all folds, for new images.
    """

    method: str
    nested: np.ndarray
    value: float
    gain: Interval
    level: float
    combiner: Combiner

    @property
    def real(self) -> bool:
        """Whether the gain is more than the choice of patients explains."""
        return self.gain.low > 0


@dataclass(frozen=True)
class Choice:
    """Which method was asked for, which one was taken, and why.

    Attributes:
        asked: A method, or ``all``.
        taken: The judgement of the method taken; None: the plain mean.
        judged: All judgements, the best value first; none where the plain mean was asked for.
        reason: Why, in a few words.
    """

    asked: str
    taken: Judgement | None
    judged: Sequence[Judgement]
    reason: str

    @property
    def method(self) -> str:
        """The method taken."""
        return self.taken.method if self.taken else PLAIN


def choose(runs: AlignedRuns, asked: str, insist: bool) -> Choice:
    """Takes a method if its gain is real, else the plain mean.

    Args:
        runs: The runs.
        asked: One of ``method_names``, or ``all``: the best of them, at a level that is corrected for their number.
        insist: Take the method that was asked for even if its gain is not real.

    Returns:
        The choice.

    Raises:
        UserError: Fewer than two folds are complete.
    """
    if asked == PLAIN:
        return Choice(asked, None, [], "asked for")
    tried = [name for name in method_names() if name != PLAIN] if asked == ALL else [asked]
    judged = judge(runs, tried)
    best = judged[0]
    if best.real:
        return Choice(asked, best, judged, f"the gain of {best.method} is real")
    if insist:
        return Choice(asked, best, judged, "insisted on, though its gain is not real")
    return Choice(asked, None, judged, f"the gain of {best.method} is not real")


def judge(runs: AlignedRuns, methods: Sequence[str]) -> list[Judgement]:
    """Judges methods by nested folds.

    Args:
        runs: The runs, of at least two folds.
        methods: Any of ``method_names``; the intervals' level makes up for their number (Bonferroni).

    Returns:
        A judgement of each, the best value first.

    Raises:
        UserError: Fewer than two folds are complete, or all images outside of a fold are of one class.
    """
    if set(methods) - UNFITTED:
        _need_folds(runs)
    log_p = log_probabilities(runs.oof)
    level = 1 - ERROR / len(methods)
    bases: dict[str, list[Combiner]] = {}
    judged = []
    for method in tqdm(methods, desc="judging methods", leave=False, disable=None):
        base = method.removesuffix(BIASES)
        if base not in bases:
            bases[base] = _fit_parts(runs, log_p, METHODS[base])
        combiners = bases[base]
        if method.endswith(BIASES):
            combiners = _bias_parts(runs, log_p, combiners)
        judged.append(_judge_fitted(runs, log_p, method, combiners, level))
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


def _judge_fitted(
    runs: AlignedRuns, log_p: np.ndarray, method: str, combiners: Sequence[Combiner], level: float
) -> Judgement:
    """Scores each fold by the combiner that was fitted without it."""
    own, plain = ~runs.is_external, runs.oof.mean(axis=0, dtype=np.float64)
    nested = np.empty(plain.shape, dtype=np.float32)
    for part, combiner in zip(_parts(runs), combiners, strict=True):
        if part is not None:
            rows = runs.folds == part
            nested[rows] = combiner(_take(log_p, rows)).T
    labels, groups = runs.labels[own], runs.groups[own]
    gain = interval(runs.metric, labels, nested[own], groups, reference=plain[own], draws=DRAWS, level=level)
    value = score(labels, nested[own])[runs.metric]
    return Judgement(method, nested, value, gain, level, combiners[-1])
