"""The figures that a report draws of its numbers."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from leukofold.figures.calibration import reliability_figure
from leukofold.figures.classes import class_bars
from leukofold.figures.confusion import confusion_figure
from leukofold.figures.curves import learning_curves
from leukofold.figures.folds import fold_spread_figure
from leukofold.figures.groups import group_accuracy_figure
from leukofold.metrics import METRICS
from leukofold.report.numbers import Numbers


def draw_charts(
    numbers: Numbers, class_names: Sequence[str], lineages: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Figure]]:
    """Draws the numbers.

    Args:
        numbers: The numbers.
        class_names: K names.
        lineages: Lineage -> its classes, boxed together in confusion matrices.

    Yields:
        A name and a figure.
    """
    title = METRICS[numbers.metric]
    folds = [(each.name, fold, value) for each in numbers.scores for fold, value in each.folds.items()]
    whole = {each.name: each.metrics[numbers.metric] for each in numbers.scores}
    yield (
        "fold_spread",
        fold_spread_figure(
            pd.DataFrame(folds, columns=["run", "fold", "value"]),
            {name: (found.value, found.low, found.high) for name, found in whole.items()},
            title,
        ),
    )
    yield "classes", class_bars(numbers.classes, "")
    for normalised in (False, True):
        name = "confusion_shares" if normalised else "confusion_counts"
        yield name, confusion_figure(numbers.confusion, class_names, lineages, "", normalised)
    if numbers.groups is not None:
        groups = numbers.groups
        if "subject_accuracy" in numbers.scores[-1].metrics:  # every patient has one class alone
            groups = groups.assign(label=[class_names[k] for k in groups.majority_label])
        yield "groups", group_accuracy_figure(groups, "")
    yield "reliability", reliability_figure(numbers.calibration.before, numbers.calibration.after)
    yield "learning_curves", learning_curves(numbers.histories, numbers.metric, title)
