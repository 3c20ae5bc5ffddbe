"""All numbers of a report, from the out-of-fold logits of one or several runs and what their trainings noted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix

from leukofold.blending.combining import Blend, competition_scores
from leukofold.calibration import Calibration, calibrate
from leukofold.metrics import Interval
from leukofold.metrics import metric_titles as all_titles
from leukofold.metrics.bootstrap import intervals
from leukofold.metrics.tables import group_accuracies, per_class
from leukofold.reopening import ReopenedRun
from leukofold.runs import Predictions

MEAN = "mean of logits"
SHOWN = (
    "macro_f1",
    "weighted_f1",
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_specificity",
    "macro_auc",
)  # what two classes have besides, such as sensitivity, stands in the table of classes


@dataclass(frozen=True)
class Scores:
    """What one run, or the mean of all, scores on the competition's images.

    Attributes:
        name: The run's name, or ``MEAN``.
        metrics: Metric of ``SHOWN``, or subject accuracy -> value with its interval, as
            ``metrics.bootstrap.intervals``.
        folds: Fold -> the headline metric on its images alone.
    """

    name: str
    metrics: Mapping[str, Interval]
    folds: Mapping[int, float]


@dataclass(frozen=True)
class Numbers:
    """All numbers of a report.

    Attributes:
        metric: The competition's headline metric.
        scores: Of each run and, if they are several, of the mean of their logits, which comes last.
        classes: Per class, of the mean; as ``metrics.tables.per_class``.
        confusion: K x K images of the mean, rows given labels.
        groups: Accuracy per patient; as ``metrics.tables.group_accuracies``. None where no patients are known.
        calibration: Of the mean.
        histories: Run -> fold -> one row per epoch.
        costs: One row per run: see ``_cost``.
    """

    metric: str
    scores: Sequence[Scores]
    classes: pd.DataFrame
    confusion: np.ndarray
    groups: pd.DataFrame | None
    calibration: Calibration
    histories: Mapping[str, Mapping[int, pd.DataFrame]]
    costs: pd.DataFrame

    @property
    def headline(self) -> Interval:
        """The competition's metric of the run, or of the mean of several."""
        return self.scores[-1].metrics[self.metric]

    def as_json(self) -> dict[str, Any]:
        """Returns what a program can go on with; what is undefined is null."""
        calibration = self.calibration
        plain = {
            "metric": self.metric,
            "scores": [
                {
                    "name": each.name,
                    **{metric: asdict(found) for metric, found in each.metrics.items()},
                    "folds": {str(fold): value for fold, value in each.folds.items()},
                }
                for each in self.scores
            ],
            "classes": self.classes.to_dict("records"),
            "confusion": self.confusion.tolist(),
            "groups": None if self.groups is None else self.groups.to_dict("records"),
            "calibration": {
                "temperature": calibration.temperature,
                "ece_before": calibration.before.ece,
                "ece_after": None if calibration.after is None else calibration.after.ece,
                "nll_before": calibration.nll_before,
                "nll_after": calibration.nll_after,
            },
            "costs": self.costs.to_dict("records"),
        }
        result = _without_nan(plain)
        assert isinstance(result, dict)
        return result


def metric_titles(classes: int) -> dict[str, str]:
    """Returns metric -> its name for people, of the metrics that a report shows."""
    titles = all_titles(classes)
    return {**{metric: titles[metric] for metric in SHOWN}, "subject_accuracy": "subject accuracy"}


def collect_numbers(blend: Blend, reopened: Sequence[ReopenedRun]) -> Numbers:
    """Computes all numbers of a report; the competition's images alone count in scores.

    Args:
        blend: The mean of the runs.
        reopened: The runs with their data, in the same order.

    Returns:
        The numbers.
    """
    metric, has_patients = blend.metadata["metric"], reopened[0].has_patients
    named = [(run.name, run.oof, run.folds) for run in blend.runs]
    if len(named) > 1:
        named.append((MEAN, blend.oof, blend.folds))
    scores = [_scores(*each, metric, has_patients) for each in named]
    labels, logits, groups, own = _own_rows(blend.oof)
    histories = {
        run.name: {int(k): pd.read_csv(run.folder.fold(int(k)).history) for k in np.unique(run.folds)}
        for run in blend.runs
    }
    return Numbers(
        metric,
        scores,
        per_class(labels, logits, groups, blend.oof.class_names),
        confusion_matrix(labels, logits.argmax(axis=1), labels=range(logits.shape[1])),
        group_accuracies(labels, logits, groups) if has_patients else None,
        calibrate(labels, logits, blend.folds[own]),
        histories,
        pd.DataFrame([_cost(each, histories[each.run.name]) for each in reopened]),
    )


def _own_rows(oof: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels, logits and groups of the competition's images, and which rows they are."""
    own = ~oof.is_external
    assert oof.label is not None
    return oof.label[own], oof.logits[own], oof.group[own], own


def _scores(name: str, oof: Predictions, folds: np.ndarray, metric: str, has_patients: bool) -> Scores:
    """Scores one set of out-of-fold logits; groups that are no patients have no accuracy of their own."""
    labels, logits, groups, own = _own_rows(oof)
    per_fold = {int(k): competition_scores(oof, folds == k)[metric] for k in np.unique(folds[own])}
    found = intervals(labels, logits, groups)
    shown = (*SHOWN, "subject_accuracy") if has_patients else SHOWN
    metrics = {key: value for key, value in found.items() if key in shown}
    return Scores(name, metrics, per_fold)


def _cost(reopened: ReopenedRun, history: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """Tells what a run's network is, and what training it took; seconds and epochs are of all folds together."""
    run = reopened.run
    weights = reopened.network(next(iter(history)), torch.device("cpu")).parameters()
    machines = sorted({f"{made['processes']} x {made['device'].upper()}" for made in run.provenance.values()})
    return {
        "run": run.name,
        "backbone": reopened.config.model_title,
        "parameters": sum(weight.numel() for weight in weights),
        "size": reopened.config.image.side,
        "folds": len(history),
        "epochs": sum(len(table) for table in history.values()),
        "seconds": float(sum(table.seconds.sum() for table in history.values())),
        "images_per_second": float(np.mean(np.concatenate([table.images_per_second for table in history.values()]))),
        "machines": ", ".join(machines),
        "precision": ", ".join(sorted({made["precision"] for made in run.provenance.values()})),
    }


def _without_nan(value: Any) -> Any:
    """Puts None in the place of NaN, which JSON does not know, and plain numbers in that of numpy's."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
