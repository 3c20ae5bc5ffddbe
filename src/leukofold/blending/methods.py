"""The methods of combination by name, and how one is fitted."""

from collections.abc import Callable

import numpy as np

from leukofold.blending.averaging import Combiner, mean_logits, mean_probabilities, rank_average
from leukofold.blending.stacking import stack
from leukofold.blending.weighting import convex, greedy
from leukofold.errors import UserError, suggest

PLAIN = "mean_logits"  # what every other method has to beat
ALL = "all"  # judge every method, take the best one
BIASES = "+biases"
UNFITTED = {PLAIN, "mean_probabilities"}  # nothing is learnt from labels or from other images

Fit = Callable[[np.ndarray, np.ndarray, str], Combiner]  # labels (n), log-probabilities (M x K x n), metric

METHODS: dict[str, Fit] = {
    PLAIN: mean_logits,
    "mean_probabilities": mean_probabilities,
    "rank_average": rank_average,
    "greedy": greedy,
    "log_loss": convex,
    "stacking": stack,
}


def method_names() -> list[str]:
    """Returns every method's name, with and without biases, the plain mean first."""
    return [name + suffix for name in METHODS for suffix in ("", BIASES)]


def need_method(name: str, insist: bool) -> None:
    """Refuses a name that is no method's, before anything is loaded.

    Args:
        name: As in ``--method``.
        insist: Whether the method is to be taken whatever it gains.

    Raises:
        UserError: It is not known, or ``all`` is insisted on.
    """
    known = [*method_names(), ALL]
    if name not in known:
        hints = dict.fromkeys([suggest(name, known), f"known ones: {', '.join(known)}"])
        raise UserError(f"--method {name}: no such method; {'; '.join(hints)}")
    if insist and name == ALL:
        raise UserError(f"--insist: takes the one method that --method names, not {ALL}; name one, or leave it out")
