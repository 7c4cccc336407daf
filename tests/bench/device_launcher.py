"""`gradcam-worker` whose processes have the benchmark's device in place of the real one (`fake_device.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from worker import cli
from worker.supervise import launcher
from worker.supervise.process_plan import PlannedProcess

_command = launcher.command


def command(planned: PlannedProcess, queues: Sequence[str]) -> list[str]:
    """The Celery worker of a process, of the benchmark's application."""
    return ["device_app" if word == "worker.main" else word for word in _command(planned, queues)]


if __name__ == "__main__":
    launcher.command = command
    cli.main()
