"""How far the training of a fold has come."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: Epochs done.
        best: Best value of the competition's metric so far.
        best_epoch: The epoch that reached it, from 1; 0 before the first.
        history: One row per epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
