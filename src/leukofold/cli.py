"""What every command line shares: how it ends, and which configuration arguments it takes.

Light on purpose: no library is imported here, so that ``--help`` answers at once.
"""

import argparse
import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from leukofold.errors import UserError
from leukofold.processes import keep_freed_memory

OTHERS_WAIT = 5  # seconds
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def main_guard(main: Callable[[], None]) -> Callable[[], None]:
    """Ends a command on one clear line and exit code 2 where its user made a mistake.

    ``UserError`` and a full disk become one line on standard error; Ctrl-C ends with exit code 130.
    Anything else is a bug of ours and keeps its traceback. Under several processes only the first
    one prints.

    Args:
        main: The command's entry point.

    Returns:
        The guarded entry point.
    """

    @functools.wraps(main)
    def guarded() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        keep_freed_memory()
        try:
            main()
        except UserError as error:
            _end(str(error), 2)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
                _end(f"{error.strerror}{where}; free some space or check the folder's rights, then run again", 2)
            if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
                _end(f"{error.strerror}{where}; name another file or folder", 2)
            raise
        except KeyboardInterrupt:
            _end("interrupted", 130)

    return guarded


def _end(message: str, code: int) -> None:
    """Prints one line, and exits.

    A mistake that every process meets is told by the first one: the others wait, and the launcher
    ends them when the first has gone. One that has waited in vain met something of its own and tells it.
    """
    if os.environ.get("RANK", "0") != "0":
        time.sleep(OTHERS_WAIT)
    sys.stdout.flush()
    if message.startswith("Caught ") and "Traceback" in message:  # torch puts a loader worker's traceback before it
        message = message.strip().splitlines()[-1].partition(": ")[2]
    print(f"error: {' '.join(message.split())}" if code == 2 else message, file=sys.stderr, flush=True)
    sys.exit(code)


def add_config_arguments(
    parser: argparse.ArgumentParser, default: str = "configuration (default: configs/demo.yaml)"
) -> None:
    """Adds ``--config`` and ``--set``, which together give a run's settings; ``default`` begins the former's help."""
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="YAML",
        help=f"{default}; may be given several times, later ones win",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides one key by its dotted name, such as training.epochs=3",
    )
