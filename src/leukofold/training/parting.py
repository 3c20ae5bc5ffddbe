"""A process that a launcher started beside others, and that is to work alone.

Light on purpose: tqdm reads its settings when it is imported, so this has to come before torch and accelerate.
"""

import os
import sys

from leukofold.errors import UserError

MEETING = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    # by which accelerate finds other processes on CPUs: srun sets some for its tasks, and launchers hand them on
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    # by which accelerate launch asks for one network on several processes
    *("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"),
    *("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"),
)
"""Environment variables by which torch or accelerate would join a group. ``LOCAL_WORLD_SIZE`` is none of them: by it
the processes share the cores of their machine."""


def part_from_others() -> tuple[int, int]:
    """Parts this process from those that a launcher started beside it: one GPU, and a line for its progress bars.

    Nothing may have imported tqdm or used CUDA before. Without a launcher, nothing is changed.

    Returns:
        The process's number, from 0, and how many there are over all machines; 0 and 1 without a launcher.

    Raises:
        UserError: This machine has GPUs, but fewer than processes. On CPUs they share the cores.
    """
    if "RANK" not in os.environ:
        return 0, 1
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if sys.stderr.isatty():  # in a file, every line further down would be an empty one
        os.environ["TQDM_POSITION"] = str(rank)
    gpu = _own_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        _need_one_gpu()
    for name in MEETING:
        os.environ.pop(name, None)
    return rank, processes


def _need_one_gpu() -> None:
    """Refuses to go on where CUDA was looked at before it was told of the one GPU: all would share the first."""
    import torch

    count = torch.cuda.device_count()
    if count != 1:
        raise UserError(
            f"--fold-per-process: this process still sees {count} GPUs; start one process per fold yourself, with "
            "CUDA_VISIBLE_DEVICES=K and --fold K"
        )


def _own_gpu(number: int, processes: int) -> str | None:
    """Names the GPU of one of so many processes on this machine as CUDA_VISIBLE_DEVICES does; None without GPUs."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return None
    if count < processes:
        raise UserError(
            f"--fold-per-process: {processes} processes on this machine, but only {count} GPU(s) for them; start as "
            "many as there are GPUs (--num_processes, --nproc_per_node)"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if visible is None else visible.split(",")[number].strip()
