"""How many cores there are, and how many of them are this process's share."""

import os


def available_cores() -> int:
    """Returns the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_process() -> int:
    """Returns the cores divided by the processes that a launcher started on this machine, at least 1."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
