"""What every command line shares: how it ends, and which configuration arguments it takes.

Light on purpose: no library is imported here, so that ``--help`` answers at once.
"""

import argparse
import errno
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from leukofold.errors import LostProcessError, TerminatedError, UserError
from leukofold.processes import keep_freed_memory

OTHERS_WAIT = 5  # seconds
FAULTS = {
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM): (
        "free some space or check the folder's rights, then run again"
    ),
    (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG): "name another file or folder",
    (errno.ENOENT, errno.ESTALE): "it was there before; put it back, then run again",
    (errno.ENOLCK,): "this file system cannot lock files; work in a folder on another one",
    (errno.EIO,): "look after the disk, then run again",
}
"""What the system refuses -> what its user can do about it."""
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def main_guard(main: Callable[[], None]) -> Callable[[], None]:
    """Ends a command on one clear line and exit code 2 where its user made a mistake.

    ``UserError`` and a full disk become one line on standard error; Ctrl-C ends with exit code 130, and SIGTERM, by
    which schedulers and launchers ask a process to stop, with 143, both in one line too. Anything else is a bug of ours
    and keeps its traceback. Under several processes only the first one prints.

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
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            main()
        except LostProcessError as error:  # which the first process may be: each tells it, at once
            _end(str(error), 2, wait=False)
        except UserError as error:
            _end(str(error), 2)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            for numbers, advice in FAULTS.items():
                if error.errno in numbers:
                    _end(f"{error.strerror}{where}; {advice}", 2)
            raise
        except TerminatedError as error:
            _end(f"stopped by SIGTERM{error}", 143)
        except KeyboardInterrupt as error:
            _end(f"interrupted{error}", 130)
        finally:
            signal.signal(signal.SIGTERM, before)

    return guarded


def _stop(*_: object) -> None:
    """Ends what is being done as Ctrl-C does."""
    raise TerminatedError


def _end(message: str, code: int, wait: bool = True) -> None:
    """Prints one line, and exits.

    A mistake that every process meets is told by the first one: the others wait, and the launcher
    ends them when the first has gone. One that has waited in vain met something of its own and tells it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGCHLD"):  # torch's own handler would raise over loaders that end meanwhile
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if wait and os.environ.get("RANK", "0") != "0":
        time.sleep(OTHERS_WAIT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself, and says why
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
