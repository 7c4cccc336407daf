"""What a launcher itself knows for its metrics: how its processes are, and what the driver says of its GPUs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from worker import metrics
from worker.supervise.check import State, check_launcher

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

    from producer.jobs.model.metric import Metric


class ProcessCollector(Collector):
    """Counts processes by what `gradcam-worker check` finds.

    Args:
        folder: The launcher's.
        deaths: Gives how many processes have ended though nobody asked them to.
    """

    def __init__(self, folder: Path, deaths: Callable[[], int]) -> None:
        self._folder, self._deaths = folder, deaths

    def describe(self) -> Iterable[Family]:
        """Nothing is known before it is asked."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Look at the processes' files."""
        states: Counter[str] = Counter()
        with suppress(OSError, ValueError):  # a tidier took them, and they are written anew
            states.update(process.state for process in check_launcher(self._folder))
        yield _gauge(metrics.PROCESSES, {state: float(states[state]) for state in State})
        yield CounterMetricFamily(metrics.DEATHS.name, metrics.DEATHS.words, value=self._deaths())


class GpuCollector(Collector):
    """Asks NVIDIA's library, which needs no CUDA context; where it is absent, or says nothing, there is nothing.

    Args:
        gpus: Name and UUID, or part of a GPU's, as CUDA_VISIBLE_DEVICES has it.
    """

    def __init__(self, gpus: Mapping[str, str]) -> None:
        self._gpus = gpus
        #: A driver that hangs holds one thread, and not one for each time that it is asked.
        self._asking = threading.Lock()

    def describe(self) -> Iterable[Family]:
        """Nothing is known before it is asked."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Ask about each GPU."""
        if not self._gpus or not self._asking.acquire(blocking=False):
            return
        try:
            told = _ask(self._gpus)
        finally:
            self._asking.release()
        for metric, values in told.items():
            yield _gauge(metric, values)


def _ask(gpus: Mapping[str, str]) -> Mapping[Metric, dict[str, float]]:
    try:
        import pynvml
    except ImportError:
        return {}
    told: dict[Metric, dict[str, float]] = {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        for name, uuid in gpus.items():
            with suppress(pynvml.NVMLError):  # one of them is lost, or does not tell
                _ask_one(pynvml, name, uuid, told)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return told


def _ask_one(pynvml: Any, name: str, uuid: str, told: dict[Metric, dict[str, float]]) -> None:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    told.setdefault(metrics.GPU_USED, {})[name] = float(memory.used)
    told.setdefault(metrics.GPU_MEMORY, {})[name] = float(memory.total)
    busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    told.setdefault(metrics.GPU_BUSY, {})[name] = busy / 100


def _gauge(metric: Metric, values: Mapping[str, float]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.words, labels=metric.labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family
