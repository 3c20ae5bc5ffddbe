"""Which images make up a batch, and how classes are weighed against their imbalance.

Sampling is stateless: what epoch ``e`` draws is a function of (seed, e) alone. That makes a resumed
run repeat an uninterrupted one, and all processes agree without exchanging a word.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from leukofold.config import SamplerConfig

Key = tuple[int, int]  # row of the frame, seed of its augmentation


def effective_number_weights(labels: np.ndarray, classes: int, beta: float) -> np.ndarray:
    """Weighs classes against their imbalance.

    The effective number of n images is E_n = (1 - beta^n) / (1 - beta); a class weighs 1 / E_n
    (Cui et al. 2019, eq. 2; Srivastava et al. 2026 with beta = .9999). For beta = 0 all present classes weigh the
    same; towards 1, a class weighs 1 / n.

    Args:
        labels: n class indices.
        classes: K.
        beta: In [0, 1).

    Returns:
        K float64 weights that add up to the number of classes present (as Cui et al. scale them);
        0 for absent classes.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(classes)
    weights[present] = (1 - beta) / (1 - beta ** counts[present])
    return np.asarray(weights * (present.sum() / weights.sum()))


class EpochSampler(Sampler[list[Any]]):
    """Draws the batches of one epoch after another, all of full size.

    Args:
        labels: n class indices of the training images.
        classes: K.
        batch_size: Images per optimiser step, in total over all processes.
        parts: Batches that an optimiser step is computed in; the sampler yields these.
        config: Uniform draws are a permutation, weighted draws are with replacement.
        seed: The training's seed.
        independent: Cells that are drawn independently for each place of a batch: one for each head of MM-MIMO.
    """

    drop_last = True  # read by accelerate: every batch is full, there is nothing to pad

    def __init__(
        self,
        labels: np.ndarray,
        classes: int,
        batch_size: int,
        parts: int,
        config: SamplerConfig,
        seed: int,
        independent: int = 1,
    ) -> None:
        self.batch_size = batch_size // parts
        self.seed = seed
        self.independent = independent
        self.count = len(labels)
        self.steps = max(1, self.count // batch_size) * parts
        self.probabilities: np.ndarray | None = None
        if config.kind != "uniform":
            weights = effective_number_weights(labels, classes, config.beta)[labels]
            self.probabilities = weights / weights.sum()
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws.

        Not called ``set_epoch``: accelerate calls a method of that name with its own count, which
        starts at 0 in a resumed run.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields batches of keys, or of tuples of keys that are drawn independently."""
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = [self._draw(rng) for _ in range(self.independent)]
        for start in range(0, self.steps * self.batch_size, self.batch_size):
            parts = [keys[start : start + self.batch_size] for keys in drawn]
            yield parts[0] if self.independent == 1 else list(zip(*parts, strict=True))

    def _draw(self, rng: np.random.Generator) -> list[Key]:
        """Draws an epoch's rows in their order, and a seed for each."""
        wanted = self.steps * self.batch_size
        if self.probabilities is None:
            rows = np.concatenate([rng.permutation(self.count) for _ in range(-(-wanted // self.count))])[:wanted]
        else:
            rows = rng.choice(self.count, size=wanted, p=self.probabilities)
        seeds = rng.integers(0, 2**63, size=wanted)
        return list(zip(rows.tolist(), seeds.tolist(), strict=True))
