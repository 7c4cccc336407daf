"""What the parts of the check share: where they run, what they answer, and a stopwatch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.device.batches import PRECISIONS, open_device
from worker.engine.precision import has_tf32


class Skipped(Exception):
    """The part cannot run here; its text says why, and what to do."""


@dataclass
class Found:
    """What a part found out."""

    #: Numbers, for the JSON file.
    values: dict[str, Any] = field(default_factory=dict)
    #: The same for people.
    lines: list[str] = field(default_factory=list)
    #: What is not as it should be, a sentence each.
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """The device to check, and how long that may take. Nothing touches the device before `open`."""

    kind: str
    #: Small networks and few repetitions: whether the check itself works.
    quick: bool

    def open(self) -> torch.device:
        """Set this process up for the device, as a worker does."""
        return open_device(self.kind)

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.kind == "cuda"

    @property
    def network(self) -> str:
        """The network whose speed is measured."""
        return "squeezenet1_1" if self.quick else "resnet50"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of its input in px; None is its own."""
        return (64, 64) if self.quick else None

    def precisions(self) -> list[str]:
        """Those that the device has."""
        device = torch.device(self.kind)
        has = {"tf32": has_tf32(device), "fp16": self.cuda}
        return [name for name in PRECISIONS if has.get(name, True)]


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, *, for_s: float = 1.0, most: int = 30) -> float:
    """Give the median time of a call; two calls before, which choose kernels and get memory, do not count."""
    taken: list[float] = []
    for number in range(2 + most):
        began = time.perf_counter()
        run()
        wait_for(device)
        took = time.perf_counter() - began
        if number >= 2 or took > for_s:
            taken.append(took)
        if sum(taken) > for_s:
            break
    return statistics.median(taken)


def mib(size_bytes: float) -> str:
    """A number of bytes for people."""
    return f"{size_bytes / 2**20:,.0f} MiB"
