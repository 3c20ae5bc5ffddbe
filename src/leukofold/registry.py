"""Packages whose modules each hold one object of the same name, so that a new one is one new file."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from leukofold.errors import UserError, suggest


def module_names(path: Iterable[str]) -> list[str]:
    """Returns the names of a package's modules, but for its ``base``.

    Args:
        path: The package's ``__path__``.
    """
    return sorted(module.name for module in pkgutil.iter_modules(path) if module.name != "base")


def find_object(package: str, path: Iterable[str], name: str, attribute: str, what: str) -> Any:
    """Finds the object of one module.

    Args:
        package: The package's name.
        path: Its ``__path__``.
        name: The module's name.
        attribute: The object's name, the same in every module.
        what: The key that named it and what it is, for the message.

    Returns:
        The object.

    Raises:
        UserError: There is no such module.
    """
    known = module_names(path)
    if name not in known:
        raise UserError(f"{what} '{name}'; {suggest(name, known)}")
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)
