"""What this machine lends a process: cores, and memory."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def available_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_process() -> int:
    """Returns the cores divided by the processes that a launcher started on this machine, at least 1."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Lets this process use again what memory it has freed, instead of handing it back to the system each time.

    glibc maps every block above 32 MB afresh and unmaps it when it is freed, and the kernel clears each page when it
    is first touched: half the time of a network whose activations are that large. What changes is time, and the
    memory that the process holds between two uses; no result. Other systems' allocators stay as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # None: not glibc
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
