"""What a study's networks cost: multiply-adds of one cell, and parameters."""

import torch

from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.experiment import modalities_seen
from leukofold.models.classifier import Classifier
from leukofold.models.complexity import Complexity, complexity
from leukofold.studies.grid import Grid

Costs = dict[tuple[str, ...], Complexity]
"""Levels of a row -> its cost."""


def count_costs(grid: Grid) -> Costs:
    """Counts what each row's networks cost, those of averaged runs together.

    Networks are counted with random weights: no file and no image is read.

    Args:
        grid: The study.

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
        own = [_cost(run.config, known) for run in members]
        costs[tuple(levels.values())] = sum(own[1:], start=own[0])
    return costs


def _cost(config: Config, known: dict[str, Complexity]) -> Complexity:
    """Counts one network, each kind once."""
    competition = get_competition(config.data.competition)
    images = len(modalities_seen(config)) or 1
    model = config.model.model_copy(update={"pretrained": False})
    key = f"{model.model_dump_json()} {config.image.side} {images} {competition.name}"
    if key not in known:
        network = Classifier(model, config.image, len(competition.class_names), images)
        side = config.image.side
        known[key] = complexity(network, torch.zeros(1, network.channels, side, side, dtype=torch.uint8))
    return known[key]
