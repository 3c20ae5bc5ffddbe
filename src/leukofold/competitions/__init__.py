"""The competitions, one module each; a new one is one new file here.

Each module holds one ``Competition`` under the name ``COMPETITION``.
"""

import importlib
import pkgutil

from leukofold.competitions.base import Competition
from leukofold.errors import UserError, suggest

__all__ = ["Competition", "get_competition", "names"]


def names() -> list[str]:
    """Returns the names of all competitions."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def get_competition(name: str) -> Competition:
    """Finds a competition by the name of its module.

    Args:
        name: Such as ``wbcbench``.

    Returns:
        The competition.

    Raises:
        UserError: There is none of that name.
    """
    if name not in names():
        raise UserError(f"data.competition: unknown competition '{name}'; {suggest(name, names())}")
    competition = importlib.import_module(f"{__name__}.{name}").COMPETITION
    assert isinstance(competition, Competition)
    return competition
