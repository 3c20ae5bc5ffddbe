"""Public data sets that expand a competition's training data, one module each; a new one is one new file here.

Each module holds one ``ExternalSource`` under the name ``SOURCE``. External images are trained on and never
scored in the headline metric.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from leukofold.external.base import ExternalSource
from leukofold.registry import find_object, module_names

__all__ = ["ExternalSource", "get_source", "names", "read_source"]


def names() -> list[str]:
    """Returns the names of all external data sets."""
    return module_names(__path__)


def get_source(name: str) -> ExternalSource:
    """Finds an external data set by the name of its module.

    Args:
        name: Such as ``acevedo``.

    Returns:
        The data set.

    Raises:
        UserError: There is none of that name.
    """
    source = find_object(__name__, __path__, name, "SOURCE", "data.external: unknown data set")
    assert isinstance(source, ExternalSource)
    return source


def read_source(
    name: str, root: Path, class_names: Sequence[str], take: Sequence[str] | None, partial: bool
) -> pd.DataFrame:
    """Reads an external data set as rows of a competition's table of cells.

    Args:
        name: The data set's module.
        root: Folder that holds its files as downloaded.
        class_names: The competition's classes in the order of its label indices.
        take: Classes to take, by the data set's own names; None: all that the competition has.
        partial: Whether a subset is read on purpose, so that counts need not be the published ones.

    Returns:
        One row per image with the columns of ``leukofold.cells.COLUMNS``; see ``ExternalSource.read``.

    Raises:
        UserError: The data set is unknown, or as ``ExternalSource.read``.
    """
    return get_source(name).read(root, class_names, take, partial)
