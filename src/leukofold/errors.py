"""The one exception for mistakes a user can repair, and how a command ends on it.

A ``UserError`` carries one line: what is wrong, which file or key, what to do. Command lines turn it
into that line on standard error and exit code 2, without a traceback (see ``leukofold.cli.main_guard``).
"""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the input, the configuration or the call that its user can repair."""


class LostProcessError(UserError):
    """Another process that works on the same has ended."""


class TerminatedError(KeyboardInterrupt):
    """The system, a scheduler or a launcher asks this process to stop, by SIGTERM."""


def suggest(name: str, known: Sequence[str]) -> str:
    """Suggests the nearest known name for one that is not known, or lists them all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known ones: {', '.join(known)}"


def name_some(values: Sequence[str], most: int = 3) -> str:
    """Lists the first few of many values, for a message of one line."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's message, or the error's kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
