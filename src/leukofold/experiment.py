"""Everything that is settled before the first weight is drawn: data, folds and where results go."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from leukofold.cells import CellTable
from leukofold.competitions import Competition, get_competition
from leukofold.config import Config
from leukofold.folds import assign_folds, take_up_folds
from leukofold.images.reading import check_images
from leukofold.provenance import git_commit, library_versions
from leukofold.rendering import is_current, render, rendered_info
from leukofold.runs import RunFolder

DEBUG_IMAGES = 32  # per fold and of the test set


@dataclass(frozen=True)
class Experiment:
    """A configuration that has met its data.

    Attributes:
        config: The resolved configuration.
        run: Where results go.
        competition: Whose files they are.
        table: All cells.
        labelled: n rows to train on and score.
        folds: n fold numbers.
        test: The rows to predict.
        rendered: Whether the project drew the images itself.
        debug: Whether this is a few batches of everything only.
    """

    config: Config
    run: RunFolder
    competition: Competition
    table: CellTable
    labelled: pd.DataFrame
    folds: np.ndarray
    test: pd.DataFrame
    rendered: bool
    debug: bool

    def metadata(self, fold: int) -> dict[str, Any]:
        """Tells all that the fold's result depends on, and where it came from."""
        return {
            "run": self.run.name,
            "fold": fold,
            "competition": self.competition.name,
            "metric": self.competition.metric,
            "class_names": list(self.table.class_names),
            "rendered": self.rendered,
            "debug": self.debug,
            "split_by": self.config.folds.by,
            "input": str(self.config.data.root),
            "data_fingerprint": self.table.fingerprint(),
            "config_digest": self.config.digest(),
            "config": self.config.resolved(),
            "commit": git_commit(),
            "versions": library_versions(),
        }


def open_experiment(config: Config, run: RunFolder, debug: bool = False, progress: bool = True) -> Experiment:
    """Reads the data of a configuration, checks every image, and settles the folds.

    Args:
        config: The resolved configuration.
        run: Where results go.
        debug: Keep a few images of each fold and of the test set, and train two epochs.
        progress: Whether to show progress bars.

    Returns:
        The experiment.

    Raises:
        UserError: Files are missing or unreadable, or the folds cannot be made.
    """
    data = config.data
    competition = get_competition(data.competition)
    if data.render is not None and not is_current(data.root, competition.name, data.render):
        render(competition.name, data.root, data.render, progress=progress)
    table = competition.read(data.root)
    check_images(table.frame, data.cache, progress)
    labelled, test = table.labelled, table.test
    # A split made by other settings is not taken up: either all its folds are replaced, or need_same refuses
    saved = run.folds_csv.exists() and run.split_settings() == config.folds.model_dump(mode="json") and not debug
    folds = take_up_folds(run.split(), labelled, config.folds) if saved else assign_folds(labelled, config.folds)
    if debug:
        kept = np.sort(np.concatenate([np.flatnonzero(folds == k)[:DEBUG_IMAGES] for k in range(config.folds.count)]))
        labelled, folds, test = labelled.iloc[kept].reset_index(drop=True), folds[kept], test.head(DEBUG_IMAGES)
        epochs = min(2, config.training.epochs)
        config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})
    rendered = rendered_info(data.root) is not None
    return Experiment(config, run, competition, table, labelled, folds, test, rendered, debug)


def experiment_summary(experiment: Experiment) -> str:
    """Describes the data and the split in a few lines, for the log."""
    labelled, by = experiment.labelled, experiment.config.folds.by
    counts = np.bincount(labelled.label, minlength=len(experiment.table.class_names))
    classes = "  ".join(f"{name} {n}" for name, n in zip(experiment.table.class_names, counts, strict=True))
    drawn = "  (RENDERED images, drawn by this project: no result on them says anything about patients)"
    leak = "" if by == "group" else "  (image-level: patients cross folds, scores are too high)"
    return "\n".join(
        [
            f"{experiment.competition.title}, {experiment.config.data.root}{drawn if experiment.rendered else ''}",
            f"  {len(labelled)} labelled images of {labelled.group.nunique()} groups, "
            f"{len(experiment.test)} to predict",
            f"  {classes}",
            f"  {experiment.config.folds.count} folds by {by}{leak}",
        ]
    )
