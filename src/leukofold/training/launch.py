"""Devices, processes and precision of a training, through accelerate."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, broadcast_object_list

from leukofold.config import TrainingConfig
from leukofold.errors import LostProcessError, TerminatedError, UserError, first_line
from leukofold.processes import cores_per_process
from leukofold.runs import RunFolder

T = TypeVar("T")


def make_accelerator(training: TrainingConfig, run: RunFolder) -> Accelerator:
    """Sets up devices, processes, precision and determinism.

    Args:
        training: The configuration's section.
        run: Where trackers write.

    Returns:
        A fresh accelerator; a fold gets its own, so that no gradient scale or tracker outlives a fold.

    Raises:
        UserError: The processes that were started did not join, or the precision needs a GPU.
    """
    on_cpu = not torch.accelerator.is_available()
    precision = _best_precision() if training.precision == "auto" else training.precision
    if on_cpu and (precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
        raise UserError("training.precision: fp16 needs a GPU; on a CPU use bf16 or no")
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS sums in any order
    accelerator = Accelerator(
        cpu=on_cpu,  # else processes that torchrun starts would not join on a CPU
        mixed_precision=precision,
        gradient_accumulation_steps=training.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=list(training.trackers) or None,
        project_dir=str(run.path),
        # the others wait while the first process decodes all images once
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would train alone and write over the others
        raise UserError(
            f"{started} processes were started, but only {accelerator.num_processes} joined; see the launcher"
        )
    if on_cpu:  # accelerate launch leaves one thread; the loaders' work is small beside it
        torch.set_num_threads(cores_per_process())
    # Not warn_only: with it, fused attention keeps its non-deterministic backward pass
    torch.use_deterministic_algorithms(training.deterministic)
    # It finds bugs, at the cost of a write of each new tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not training.deterministic
    return accelerator


def make_inference_accelerator(precision: str | None) -> Accelerator:
    """Sets up devices and processes for scoring alone.

    Args:
        precision: ``no``, ``bf16`` or ``fp16``; None: bf16 on GPUs that compute in it, else none.

    Returns:
        The accelerator.

    Raises:
        UserError: fp16 was asked for without a GPU.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and precision == "fp16":
        raise UserError("--precision fp16 needs a GPU; on a CPU use bf16 or no")
    if precision is None:
        precision = "bf16" if _best_precision() == "bf16" else "no"
    if on_cpu:
        torch.set_num_threads(cores_per_process())
    return Accelerator(
        cpu=on_cpu, mixed_precision=precision, dataloader_config=DataLoaderConfiguration(split_batches=True)
    )


def _best_precision() -> str:
    """Returns the mixed precision that suits the device: bf16, fp16 on GPUs that lack it, none on CPUs."""
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def joined_processes() -> Iterator[None]:
    """Parts a launcher's processes when all work is done, so that none aborts at another's end.

    Not after each training: once parted they could not meet again, as the launcher's store still holds the
    addresses of the first meeting.

    Raises:
        LostProcessError: Another process, or one that loads images, has ended before this one's work was done.
        TerminatedError: This process and those that load images are asked to stop, and they were faster.
    """
    try:
        yield
    except RuntimeError as error:
        meant = _lost_process(error)
        if meant is None:
            raise
        raise meant from None
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _lost_process(error: RuntimeError) -> BaseException | None:
    """Returns what an error means that torch raises where another process has ended; None: it is another error."""
    told = str(error)
    if "DataLoader worker" in told and "Terminated" in told:
        return TerminatedError()
    if "DataLoader worker" in told and "Bus error" in told:
        return LostProcessError(
            "a process that loads images has ended for want of shared memory: enlarge /dev/shm, or lower data.workers"
        )
    if "DataLoader worker" in told and ("killed by signal" in told or "exited unexpectedly" in told):
        return LostProcessError(
            "the system has ended a process that loads images, for want of memory perhaps: lower data.workers"
        )
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    gloos = ("by peer", "pair closure", "Connection", "Broken pipe")  # it has no kind of error of its own
    if isinstance(error, torch.distributed.DistError) or any(text in told for text in gloos):
        return LostProcessError(
            "another process of this command has ended: what it said last tells why, or the system has ended it, for "
            f"want of memory perhaps ({first_line(error)[:200]})"
        )
    return None


def main_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Runs ``work`` on the main process, then on the others, which find its files ready.

    Args:
        accelerator: The processes.
        work: What to do; repeating it is cheap.

    Returns:
        Each process's own result.

    Raises:
        UserError: The main process met one.
    """
    result = main_only(accelerator, work)
    return work() if result is None else result


def main_only(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """Runs ``work`` on the main process; a user's mistake or a fault of the disk ends every process in the same way.

    Without this, the others would wait for the main process for ever.

    Args:
        accelerator: The processes.
        work: What to do.

    Returns:
        The result; None on the other processes.

    Raises:
        UserError: The main process met one, or, on the others, an ``OSError``.
        OSError: The main process met one.
    """
    fault: list[str | None] = [None]
    result, met = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except (UserError, OSError) as error:
            fault, met = [str(error)], error
    if accelerator.num_processes > 1:
        broadcast_object_list(fault)
        accelerator.wait_for_everyone()  # all have heard of it before the first one ends
    if met is not None:
        raise met
    if fault[0] is not None:
        raise UserError(fault[0])
    return result
