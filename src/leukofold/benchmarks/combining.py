"""Methods of combining nine runs."""

from functools import partial

import numpy as np

from leukofold.benchmarks.measuring import Report
from leukofold.blending.aligning import AlignedRuns
from leukofold.blending.judging import judge
from leukofold.blending.methods import PLAIN, method_names
from leukofold.competitions import get_competition


def blend(report: Report, images: int | None) -> None:
    """Every method of combination on nine runs of 13 classes, from logits to the judgement by nested folds."""
    count, rng = images or 38_535, np.random.default_rng(0)
    competition = get_competition("wbcbench")
    classes = len(competition.class_names)
    labels = rng.choice(classes, count, p=1.6 ** np.arange(classes) / (1.6 ** np.arange(classes)).sum())
    group = rng.integers(0, 345, count)
    signal = rng.gamma(2, 2, (count, 1)) * np.eye(classes)[labels] + rng.normal(size=(count, classes))
    oof = np.stack([signal + rng.normal(0, 0.5 + 0.1 * k, signal.shape) for k in range(9)]).astype(np.float32)
    names = tuple(f"run {k}" for k in range(9))
    for folds in (3, 5):
        runs = AlignedRuns(
            names,
            competition.class_names,
            competition.metric,
            oof,
            oof[None, :, :0],
            labels,
            group % folds,
            group,
            np.zeros(count, dtype=bool),
        )
        report.begin(f"{count} images of 345 groups, {classes} classes, 9 runs, {folds} folds")
        for method in method_names():
            if method != PLAIN:
                report.time(method, count, partial(judge, runs, [method]))
