"""Parts of a network that do not train."""

import fnmatch
from collections.abc import Sequence

from torch import nn

from leukofold.errors import UserError


def frozen_modules(network: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Finds the modules that patterns name, and freezes their parameters.

    A frozen module also has to stay in evaluation mode while the rest trains: batch statistics are no parameters, and
    would go on moving.

    Args:
        network: Changed in place: the parameters of what is frozen need no gradient.
        patterns: Names of modules as ``named_modules`` gives them, or patterns of them; all inside is frozen too.

    Returns:
        The modules.

    Raises:
        UserError: A pattern names none, or nothing is left to train.
    """
    modules = dict(network.named_modules())
    found: list[nn.Module] = []
    for pattern in patterns:
        named = [module for name, module in modules.items() if name and fnmatch.fnmatchcase(name, pattern)]
        if not named:
            parts = [name for name, _ in network.named_children()]
            raise UserError(
                f"model.frozen: {pattern} names no module of the network; its parts are {', '.join(parts)}, see "
                "named_modules() of the timm model"
            )
        found += named
    for module in found:
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("model.frozen: nothing is left to train; leave the head out")
    return found
