"""What a study's networks cost: multiply-adds of one cell, and parameters."""

from pathlib import Path

import torch

from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.experiment import modalities_seen
from leukofold.models.classifier import Classifier
from leukofold.models.complexity import Complexity, complexity
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.grid import Grid, StudyRun

Costs = dict[tuple[str, ...], Complexity]
"""Levels of a row -> its cost."""


def count_costs(grid: Grid, root: Path = RUNS) -> Costs:
    """Counts what each row's networks cost, those of averaged runs together.

    Networks are counted with random weights: no file and no image is read.

    Args:
        grid: The study.
        root: Where runs lie: those that have begun tell how many images of a cell they see.

    Returns:
        The costs, of all rows whose runs are networks.

    Raises:
        UserError: A network cannot be built.
    """
    known: dict[str, Complexity] = {}
    costs: Costs = {}
    for levels in grid.combinations():
        members = grid.members(levels, grid.study.seeds[0])
        if any(run.config.svm is not None for run in members):
            continue
        own = [_cost(run.config, _images_of_a_cell(run, root), known) for run in members]
        costs[tuple(levels.values())] = sum(own[1:], start=own[0])
    return costs


def _images_of_a_cell(run: StudyRun, root: Path) -> int:
    """Returns how many images of a cell a run sees, or is to see."""
    begun = (RunFolder(run.name, root).fold(k).metadata() for k in run.config.folds.numbers)
    seen = next((metadata.get("modalities", ()) for metadata in begun if metadata), modalities_seen(run.config))
    return len(seen) or 1


def _cost(config: Config, images: int, known: dict[str, Complexity]) -> Complexity:
    """Counts one network, each kind once."""
    competition = get_competition(config.data.competition)
    model = config.model.model_copy(update={"pretrained": False})
    key = f"{model.model_dump_json()} {config.image.side} {images} {competition.name}"
    if key not in known:
        network = Classifier(model, config.image, len(competition.class_names), images)
        side = config.image.side
        known[key] = complexity(network, torch.zeros(1, network.channels, side, side, dtype=torch.uint8))
    return known[key]
