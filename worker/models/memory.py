"""The device's memory: how much of it models may take, and giving back what nothing uses any more."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

from producer.jobs.model.errors import NoRoom, WorkerError

#: Models may take this share of a GPU's memory: what a batch leaves on its way is larger than most networks.
_GPU_SHARE: Final = 0.3
#: And this of a machine's: pictures and the C library need memory there too, and a network takes up to seven times its
#: size while it is loaded.
_MACHINE_SHARE: Final = 0.2
#: A control group's limit → what it uses, in versions 2 and 1 of the interface.
_USED_BESIDE: Final = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


class DeviceFull(NoRoom):
    """The model does not fit into the device's memory beside what else is there."""


def models_bytes(device: str, processes: int, root: Path = Path("/")) -> int:
    """Tell how many bytes the models of this process should take at most.

    Args:
        device: `cpu` or `cuda`, the one GPU that is visible.
        processes: How many processes share the device, this one included.
        root: Where the kernel's files are.

    Raises:
        WorkerError: The device does not answer.
    """
    if device != "cuda":
        return int(_MACHINE_SHARE * machine_bytes(root) / processes)
    try:
        _free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        raise WorkerError(f"the GPU does not tell how much memory it has: {str(error).splitlines()[0]}") from None
    return int(_GPU_SHARE * total / processes)


def machine_bytes(root: Path = Path("/")) -> int:
    """Return the memory of this machine in bytes, or what this process's control groups leave it, if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files(root):
        try:
            text = file.read_text().strip()
        except OSError:  # not this version of control groups, or a group without limits
            continue
        if text.isdigit():  # else it is `max`
            limits.append(int(text))
    return min(limits)


def available_bytes(root: Path = Path("/")) -> int:
    """Return how many bytes of the host's memory can be had now without making others swap."""
    free = machine_bytes(root)
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = min(free, 1024 * int(lines["MemAvailable"].split()[0]))
    for file in _limit_files(root):
        with suppress(OSError, ValueError):  # ValueError: the limit is `max`
            used = file.with_name(_USED_BESIDE[file.name])
            free = min(free, int(file.read_text()) - int(used.read_text()))
    return free


def _limit_files(root: Path) -> Iterator[Path]:
    """The limits of this process's control group and of all above it: version 2 of the interface, then version 1."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        if not controllers:
            yield from (top / above / "memory.max" for above in (group, *group.parents))
        if "memory" in controllers.split(","):
            yield from (top / "memory" / above / "memory.limit_in_bytes" for above in (group, *group.parents))


def give_back(device: str) -> None:
    """Let others have the memory that nothing here uses: for after a model was loaded or let go; takes about 0.2 s.

    PyTorch keeps what is freed on a GPU, and glibc, as `open_device` sets it up, what is freed on the host: good
    for batches, one like the other, but a model leaves holes that a larger one cannot use.
    """
    gc.collect()  # errors and hooks make cycles
    if device == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it; others do without
    if trim is not None:
        trim(0)


def is_full(error: Exception) -> bool:
    """Whether an error says that there was no memory to be had."""
    # The CPU's allocator has no error class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def explain_full_disk() -> Iterator[None]:
    """Make a sentence of PyTorch's error when a model does not fit into memory.

    Raises:
        DeviceFull: It does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
    else:
        return
    # Raised outside of the except block: the caught error's traceback would keep alive what did not fit.
    raise DeviceFull(
        "a model does not fit into the device's memory beside what else is there: use fewer processes on it, "
        "or set a lower GRADCAM_WORKER_MODEL_CACHE_BYTES"
    )
