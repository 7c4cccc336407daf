"""Which worker processes a launcher starts: how many on each device, with which name, cores and threads."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from worker.supervise import cgroups, cores, gpus

#: How many processes share a device by default. Fetching, decoding and encoding wait for the interpreter's lock of one
#: process, and a GPU would idle meanwhile. On a CPU one process already keeps the cores busy.
PROCESSES_PER_GPU: Final = 2
PROCESSES_PER_CPU: Final = 1


@dataclass(frozen=True)
class PlannedProcess:
    """Where and how one worker process runs."""

    name: str
    #: `cpu` or `cuda`.
    device: str
    #: The value of CUDA_VISIBLE_DEVICES: the UUID of a GPU or a MIG instance, or nothing.
    visible: str
    #: Threads of torch; processes times threads stay within the cores.
    threads: int
    #: The cores it is pinned to; none where it may run on all.
    cores: tuple[int, ...] = ()
    #: How many processes share the device, this one included.
    sharing: int = 1
    #: The device's name on this machine: `gpu0`, `gpu0-mig1`; empty of a CPU.
    place: str = ""


def plan(devices: str, processes_per_device: int | None = None) -> list[PlannedProcess]:
    """Decide which processes to start.

    Args:
        devices: As `worker.supervise.gpus.find_gpus` reads it.
        processes_per_device: How many processes share each device; None for the default.

    Raises:
        UsageError: The devices are written in a way that nobody understands.
        WorkerError: There is no such GPU, or the driver does not work.
    """
    places = gpus.find_gpus(devices)
    each = processes_per_device or (PROCESSES_PER_GPU if places else PROCESSES_PER_CPU)
    there, granted = cores.usable(), cgroups.cpu_cores()
    host = socket.gethostname().split(".")[0]

    def names(device: str) -> list[str]:
        return [f"{host}-{device}-{n}" if each > 1 else f"{host}-{device}" for n in range(each)]

    if places:
        processes = each * len(places)
        threads = cores.threads(len(there) // processes, processes, granted)
        return [
            PlannedProcess(name, "cuda", place.uuid, threads, sharing=each, place=place.name)
            for place in places
            for name in names(place.name)
        ]
    if each == 1 or not hasattr(os, "sched_setaffinity"):
        threads = cores.threads(len(there) // each, each, granted)
        return [PlannedProcess(name, "cpu", "", threads, sharing=each) for name in names("cpu")]
    shares = cores.share_out(there, each)
    return [
        PlannedProcess(name, "cpu", "", cores.threads(len(share), each, granted), share, each)
        for name, share in zip(names("cpu"), shares, strict=True)
    ]
