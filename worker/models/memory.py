"""The device's memory: how much of it models may take, and how to give back what nothing uses any more."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

from producer.jobs.model.errors import NoRoom, WorkerError
from worker.engine.explain import is_out_of_memory
from worker.supervise import cgroups

#: The share of a GPU's memory for models: the activations of a batch are larger than most networks.
_GPU_SHARE: Final = 0.3
#: The share of a machine's memory for models. Pictures and the C library need memory there too, and a network takes
#: up to seven times its size while it loads.
_MACHINE_SHARE: Final = 0.2


class DeviceFull(NoRoom):
    """The model does not fit into the device's memory beside what is there already."""


def models_bytes(device: str, processes: int, root: Path = cgroups.ROOT) -> int:
    """Return how many bytes the models of this process should take at most.

    Args:
        device: `cpu` or `cuda`, the one GPU that is visible.
        processes: How many processes share the device, this one included.
        root: Where the kernel's files are.

    Raises:
        WorkerError: The device does not answer.
    """
    if device != "cuda":
        return int(_MACHINE_SHARE * cgroups.machine_bytes(root) / processes)
    try:
        _free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        raise WorkerError(f"the GPU does not tell how much memory it has: {str(error).splitlines()[0]}") from None
    return int(_GPU_SHARE * total / processes)


def available_bytes(root: Path = cgroups.ROOT) -> int:
    """Return how many bytes of the host's memory a process can have now without making others swap."""
    free = cgroups.machine_bytes(root)
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = min(free, 1024 * int(lines["MemAvailable"].split()[0]))
    return min([free, *(granted - used for granted, used in cgroups.memory_limits(root) if used is not None)])


def give_back(device: str) -> None:
    """Give others the memory that nothing here uses, after a model was loaded or evicted; takes about 0.2 s.

    PyTorch keeps freed memory of a GPU, and glibc, as `open_device` sets it up, freed memory of the host. That is good
    for batches of one size, but a model leaves holes that a larger one cannot use.
    """
    gc.collect()  # errors and hooks make cycles
    if device == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; others do without
    if trim is not None:
        trim(0)


@contextmanager
def say_when_full() -> Iterator[None]:
    """Turn PyTorch's error into a sentence when a model does not fit into memory.

    Raises:
        DeviceFull: It does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return
    # Raised outside of the except block: the caught error's traceback would keep alive what did not fit.
    raise DeviceFull(
        "a model does not fit into the device's memory beside what else is there: use fewer processes on it, "
        "or set a lower GRADCAM_WORKER_MODEL_CACHE_BYTES"
    )
