"""A device of a GPU's shape for the service benchmark: a fixed time a batch, however many images are in it.

As a GPU it works by itself once it was told: the host is free, and launches the next batch meanwhile. It does one thing
at a time, so processes take turns by a lock on a file. What it answers was explained and drawn before, and is copied as
what comes from a GPU would be.

`BENCH_DEVICE_MS` is the time a batch, `BENCH_DEVICE_LOCK` the file. `BENCH_DEVICE_THREAD`, where given, is a file for
what the device's thread did itself: batches and its CPU seconds.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

#: How many different answers there are.
_KNOWN: Final = 4
#: What a worker draws on its device if nothing else is said.
_OUTPUTS: Final = ("heatmap", "cam", "gb", "cam_gb")


class Sleeping:
    """A batch that the device works at: it sleeps."""

    overlaps = True

    def __init__(self, known: list[Any], images: int, seconds: float, lock: Path) -> None:
        self._known, self._images, self._seconds, self._lock = known, images, seconds, lock

    def answers(self) -> list[Any]:
        """Wait for its end."""
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            time.sleep(self._seconds)
        return [[_copied(each) for each in self._known[number % _KNOWN]] for number in range(self._images)]


def _copied(explained: Any) -> Any:
    pictures = {name: picture.copy() for name, picture in explained.drawn.pictures.items()}
    return replace(explained, drawn=replace(explained.drawn, pictures=pictures))


def install() -> None:
    """Put the device in place of the real one, wherever it was imported already."""
    from worker.chunks import stages
    from worker.device import batches

    real = batches.explain_classes
    known: list[Any] = []
    seconds, lock = float(os.environ["BENCH_DEVICE_MS"]) / 1000, Path(os.environ["BENCH_DEVICE_LOCK"])
    note = _note()

    def explain_classes(network: Any, pictures: Any, class_ids: Any, **options: Any) -> Any:
        if not known:
            options |= {"draw": _OUTPUTS, "numbers": False}
            known.extend(real(network, pictures[:1] * _KNOWN, [None] * _KNOWN, **options).answers())
        batches._transfers(network.device).to_device(pictures)
        note()
        return Sleeping(known, len(pictures), seconds, lock)

    for name, module in list(sys.modules.items()):
        if name.startswith("worker.") and getattr(module, "explain_classes", None) is real:
            vars(module)["explain_classes"] = explain_classes
    # As on a GPU: the host draws nothing.
    vars(stages)["drawn_by_device"] = lambda _network, spec: spec.outputs


def _note() -> Callable[[], None]:
    """Write down, after each batch, how many there were and what CPU time their thread took since the first."""
    file = os.environ.get("BENCH_DEVICE_THREAD")
    began: list[float] = []

    def note() -> None:
        began.append(time.thread_time())
        if file:
            Path(f"{file}.{os.getpid()}").write_text(f"{len(began) - 1} {began[-1] - began[0]}")

    return note
