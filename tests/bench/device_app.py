"""The worker's Celery application with the benchmark's device; `device_launcher.py` starts it."""

from __future__ import annotations

from typing import Any

from celery import signals

from worker.main import app

# A spawned child imports what is named here.
app.conf.include = ["worker.main", "device_app"]


@signals.worker_process_init.connect
def _install(**_: Any) -> None:
    import fake_device

    fake_device.install()
