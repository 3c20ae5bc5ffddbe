"""Real processes of the scripts, started fast; of scripts/train_fold.py also several, ended at any moment.

They are forked off a server that has imported torch and the others once. Each is a session of its own, so that it can
be killed together with its loaders, and several can meet as a launcher's would.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_fold.py"
PATIENCE = 150  # seconds; nothing here takes a tenth of that, unless it hangs
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # as the scripts do, for the server
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        f"leukofold.{name}"
        for name in ("training.fold", "training.machine", "prediction", "report.page", "labels.folder", "blending")
    ]
)


@dataclass(frozen=True)
class Started:
    """A process of a training.

    Attributes:
        process: The process.
        log: What it prints, on both streams.
        events: Once it has ended well, the number of its ``kill_at``'s events.
        left: Once it has ended by itself, the files below ``oof`` as it saw them.
    """

    process: Any
    log: Path
    events: Path
    left: Path

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def kill(self, number: int = signal.SIGKILL, alone: bool = False) -> None:
        """Sends a signal to the process and its loaders, or to the process alone."""
        try:
            (os.kill if alone else os.killpg)(self.process.pid, number)
        except ProcessLookupError:  # it has ended by itself, or has not begun its session
            if self.process.is_alive():
                os.kill(self.process.pid, number)

    def end(self) -> int:
        """Waits for the end; returns the exit code, or the negative signal."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"hangs: {self.printed[-2000:]}")
        return int(self.process.exitcode)

    def go_on(self) -> None:
        """Lets a process go on that has paused."""
        self.kill(signal.SIGCONT)

    def wait_for(self, text: str) -> None:
        """Waits until it has printed something, or has ended."""
        self.wait_until(lambda: text in self.printed)

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Waits until something is true, or it has ended."""
        until = time.monotonic() + PATIENCE
        while not true() and self.process.is_alive():
            assert time.monotonic() < until, self.printed[-2000:]
            time.sleep(0.01)


def start(
    folder: Path,
    *arguments: str,
    processes: int = 1,
    kill_at: int | None = None,
    before: Callable[[], None] | None = None,
) -> list[Started]:
    """Starts a training.

    Args:
        folder: Its working folder.
        *arguments: Of the command line.
        processes: Number of processes that train together.
        kill_at: The first process kills itself just before the so manieth time that it opens a file for writing, or
            renames or removes one.
        before: What each process does to itself first; of a module's own.

    Returns:
        The processes.
    """
    meeting = {} if processes == 1 else {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    if meeting:
        meeting |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    started = []
    for rank in range(processes):
        own = {**meeting, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if meeting else {})}
        log, events, left = (folder / f"{name}{rank}" for name in ("log", "events", "left"))
        log.unlink(missing_ok=True)
        process = _SERVER.Process(
            target=_run, args=(folder, arguments, own, (log, events, left), kill_at if rank == 0 else None, before)
        )
        process.start()
        started.append(Started(process, log, events, left))
    return started


def train(folder: Path, *arguments: str, processes: int = 1) -> list[Started]:
    """Runs a training to its good end."""
    started = start(folder, *arguments, processes=processes)
    for one in started:
        assert one.end() == 0, one.printed[-3000:]
    return started


def pause_after_the_first_epoch() -> None:
    """Stops this process right after it has told of its first epoch, as SIGSTOP does: for ``start``'s ``before``."""
    from tqdm import tqdm

    write = tqdm.write

    def writing(text: str, *arguments: Any, **settings: Any) -> None:
        write(text, *arguments, **settings)
        sys.stdout.flush()
        if "epoch   1/" in text:
            os.kill(os.getpid(), signal.SIGSTOP)

    setattr(tqdm, "write", writing)  # noqa: B010 - else it is typed as a method


def run_script(
    script: Path, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Runs one script to its end, with an environment of its own; like ``subprocess.run`` but for the imports."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _SERVER.Process(target=_run_script, args=(script, arguments, cwd, dict(environment), files))
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"{script.name} hangs: {files[1].read_text(encoding='utf-8')[-2000:]}")
        printed = [path.read_text(encoding="utf-8") for path in files]
    return subprocess.CompletedProcess([str(script), *arguments], int(process.exitcode or 0), *printed)


def _run_script(
    script: Path, arguments: Sequence[str], cwd: Path, environment: dict[str, str], files: Sequence[Path]
) -> None:
    """What the process does."""
    os.chdir(cwd)
    for number, path in enumerate(files, start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server has it ignored
    multiprocessing.set_start_method("fork", force=True)  # not the server's own
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _run(
    folder: Path,
    arguments: Sequence[str],
    environment: dict[str, str],
    files: tuple[Path, Path, Path],
    kill_at: int | None,
    before: Callable[[], None] | None,
) -> None:
    """What the process does."""
    log, events, left = files
    os.setsid()
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server has it ignored
    multiprocessing.set_start_method("fork", force=True)  # not the server's own
    if before is not None:
        before()
    count = _count_writes(kill_at)
    sys.argv = [str(SCRIPT), *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        events.write_text(str(count()))
    finally:
        left.write_text("\n".join(sorted(path.as_posix() for path in Path("oof").rglob("*") if path.is_file())))


def _count_writes(kill_at: int | None) -> Callable[[], int]:
    """Counts this process's own changes of files below the working folder, and kills it just before one of them."""
    own, folder, seen = os.getpid(), str(Path.cwd()), 0
    changes = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in changes) or os.getpid() != own or not isinstance(arguments[0], (str, bytes)):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(folder):
            return
        seen += 1
        if seen == kill_at:
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(watch)
    return lambda: seen
