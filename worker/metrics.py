"""The metrics of this machine's workers, in Prometheus' format: sums over all processes since the launcher started.

Each process writes its counters to files in the launcher's folder (prometheus_client's multiprocess mode, switched on
by `PROMETHEUS_MULTIPROC_DIR`, which the launcher sets); the launcher serves their sums at `--metrics-port`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

if not os.path.isdir(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "/")):
    # The launcher's folder or its disk is gone: a worker works without metrics until its launcher makes it again.
    del os.environ["PROMETHEUS_MULTIPROC_DIR"]

from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from producer.jobs.model.errors import UsageError
from producer.jobs.model.stage_times import IDLE, WAIT

_IMAGES = Counter("gradcam_images", "Images that are done or failed.", ["state"])
_WORK = Counter("gradcam_stage_work_seconds", "Time of work on images, by stage.", ["stage"])
_WAITED = Counter("gradcam_stage_wait_seconds", "Time that images waited for a stage.", ["stage"])
_IDLE = Counter("gradcam_device_idle_seconds", "Time without a batch while a chunk was in flight.")
_HALVED = Counter("gradcam_batches_halved", "Batches that did not fit into the device's memory.")


def committed(timings: Mapping[str, float], *, done: int, failed: int) -> None:
    """Count what was committed.

    Args:
        timings: As `producer/jobs/model/stage_times.py` says, in seconds.
        done: Images.
        failed: Images.
    """
    _IMAGES.labels("done").inc(done)
    _IMAGES.labels("failed").inc(failed)
    for name, seconds in timings.items():
        if name == IDLE:
            _IDLE.inc(seconds)
        elif name.endswith(WAIT):
            _WAITED.labels(name.removesuffix(WAIT)).inc(seconds)
        else:
            _WORK.labels(name).inc(seconds)


def halved() -> None:
    """Count a batch that did not fit."""
    _HALVED.inc()


def serve(folder: Path, address: str, port: int) -> None:
    """Serve the sums over HTTP, from a thread of its own.

    Args:
        folder: Where the processes write.
        address: Of the network interface.
        port: TCP.

    Raises:
        UsageError: The port cannot be used.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        raise UsageError(
            f"no metrics can be served at {address}:{port} ({error.strerror}): choose another port"
        ) from None
