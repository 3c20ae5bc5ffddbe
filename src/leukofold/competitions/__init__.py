"""The competitions, one module each; a new one is one new file here.

Each module holds one ``Competition`` under the name ``COMPETITION``.
"""

from leukofold.competitions.base import Competition
from leukofold.registry import find_object, module_names

__all__ = ["Competition", "get_competition", "names"]


def names() -> list[str]:
    """Returns the names of all competitions."""
    return module_names(__path__)


def get_competition(name: str) -> Competition:
    """Finds a competition by the name of its module.

    Args:
        name: Such as ``wbcbench``.

    Returns:
        The competition.

    Raises:
        UserError: There is none of that name.
    """
    competition = find_object(__name__, __path__, name, "COMPETITION", "data.competition: unknown competition")
    assert isinstance(competition, Competition)
    return competition
