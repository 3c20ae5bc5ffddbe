"""The optimiser, learning rates of parts of the network, and how they change over the training."""

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_class  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from leukofold.config import OptimizerConfig, ParameterGroup
from leukofold.errors import UserError
from leukofold.models.classifier import Classifier

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers that compute a step at once on GPUs and on CPUs."""


def build_optimizer(network: Classifier, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds the optimiser; what is frozen gets none.

    Args:
        network: What is trained.
        config: The optimiser of timm, its learning rates and weight decay.

    Returns:
        The optimiser. A group with a learning rate of its own carries it as ``lr_scale``, over ``optimizer.lr``, as
        in timm's layer-wise decay; biases and normalisation have no weight decay.

    Raises:
        UserError: timm has no such optimiser or it does not take a value, or a group names nothing that trains.
    """
    groups = _parameter_groups(network, config) if config.groups else None
    arguments: dict[str, Any] = {}
    try:
        if get_optimizer_class(config.name, bind_defaults=False) in FUSED:
            arguments["fused"] = True  # one kernel for a whole step instead of a dozen for each tensor
        return create_optimizer_v2(
            network,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=config.betas,
            param_group_fn=(lambda _: groups) if groups else None,
            **arguments,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"optimizer: {config.name}: {error}") from None


def _parameter_groups(network: Classifier, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Divides the parameters that train by the groups' learning rates, each without and with weight decay."""
    stages = _stages(network) if any(group.depth is not None for group in config.groups) else {}
    left = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    names, divided = list(left), list[dict[str, Any]]()
    rest = ParameterGroup(match="*", lr=config.lr)
    for number, group in enumerate((*config.groups, rest)):
        own = [name for name in left if _belongs(name, group, stages)]
        if not own and group is not rest:
            what = group.match if group.match is not None else f"depth {', '.join(map(str, group.depth or ()))}"
            depths = f", depths are 0 to {max(stages.values())}" if stages else ""
            raise UserError(
                f"optimizer.groups.{number}: {what} names no parameter that trains and that no earlier group has; "
                f"parameters are called {', '.join(names[:2])}{depths}"
            )
        parameters = [left.pop(name) for name in own]
        parts = (
            (config.weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
            (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
        )
        scale = group.lr / config.lr
        divided += [{"params": part, "weight_decay": decay, "lr_scale": scale} for decay, part in parts if part]
    return divided


def _belongs(name: str, group: ParameterGroup, stages: Mapping[str, int]) -> bool:
    """Tells whether a group names a parameter."""
    if group.match is not None:
        return fnmatch.fnmatchcase(name, group.match)
    return stages.get(name) in (group.depth or ())


def _stages(network: Classifier) -> dict[str, int]:
    """Returns the stage of each parameter of the backbone, as timm counts them; 0 is the stem."""
    try:
        matcher = network.backbone.group_matcher(coarse=True)
    except AttributeError:
        raise UserError(
            f"optimizer.groups: timm knows no depths of {type(network.backbone).__name__}; name its parameters by match"
        ) from None
    found = group_parameters(network.backbone, matcher)
    return {f"backbone.{name}": int(stage) for stage, names in found.items() for name in names}


class Schedule:
    """How learning rates change over a training.

    Cosine and steps are functions of the number of updates alone; a plateau remembers the validation loss, so its
    state belongs to what a resumed training takes up.

    Args:
        optimizer: With the highest learning rates set.
        config: Kind and parameters.
        updates: Of an epoch.
        epochs: Of the training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimizerConfig, updates: int, epochs: int) -> None:
        self.optimizer = optimizer
        self.by_update: CosineLRScheduler | StepLRScheduler | None = None
        self.by_loss: ReduceLROnPlateau | None = None
        warmup: dict[str, Any] = {
            "warmup_t": round(config.warmup_epochs * updates),
            "warmup_lr_init": config.min_lr,
            "warmup_prefix": True,
            "t_in_epochs": False,
        }
        if config.schedule == "cosine":
            length = max(1, updates * epochs - warmup["warmup_t"])
            self.by_update = CosineLRScheduler(optimizer, t_initial=length, lr_min=config.min_lr, **warmup)
        elif config.schedule == "step":
            length = config.decay_epochs * updates
            self.by_update = StepLRScheduler(optimizer, decay_t=length, decay_rate=config.decay_rate, **warmup)
        else:
            for group in optimizer.param_groups:
                group["lr"] *= group.get("lr_scale", 1.0)
            self.by_loss = ReduceLROnPlateau(
                optimizer,
                factor=config.decay_rate,
                patience=config.decay_epochs,
                min_lr=[config.min_lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups],
            )

    @property
    def rate(self) -> float:
        """The learning rate now, of parameters without one of their own."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"] / group.get("lr_scale", 1.0))

    def start_update(self, update: int) -> None:
        """Sets the learning rates of an update, counted from 0 over the whole training."""
        if self.by_update is not None:
            self.by_update.step_update(update)

    def end_epoch(self, validation_loss: float) -> None:
        """Takes note of an epoch's validation loss."""
        if self.by_loss is not None:
            self.by_loss.step(validation_loss)

    def state(self) -> dict[str, Any] | None:
        """Returns what a resumed training cannot work out for itself."""
        return self.by_loss.state_dict() if self.by_loss is not None else None

    def take_up(self, state: dict[str, Any] | None) -> None:
        """Takes up what ``state`` returned."""
        if self.by_loss is not None and state is not None:
            self.by_loss.load_state_dict(state)
