"""The embedded stack: Valkey, SeaweedFS and a worker on this machine, for a demo, a first look or a test.

with Stack(Path("somewhere"), workers=0) as stack:
    stack.env             # the settings that producer and worker read
    stack.redis.kill()    # as a crash would
    stack.redis.restart() # same port, same data
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from deploy.directory_lock import OF_LAUNCHER, DirectoryLock, make_private, write_private
from deploy.programs import Program
from deploy.servers import REGION, SeaweedFS, Valkey
from producer.jobs.model.errors import ServiceError
from producer.jobs.model.setting_files import FILE, held_in_file

#: The settings that lead to Redis and the store; each may be given by a file, too.
_CONNECTIONS = (
    "GRADCAM_REDIS_URL",
    "GRADCAM_S3_BUCKET",
    "GRADCAM_S3_ENDPOINT_URL",
    "GRADCAM_S3_PUBLIC_ENDPOINT_URL",
    "GRADCAM_S3_PREFIX",
)
#: Variables that a user may have set for other services; with our keys they would break or lead elsewhere.
FOREIGN = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    *(f"{name}{end}" for name in _CONNECTIONS for end in ("", FILE)),
)
#: How long a worker may finish its current batches when the stack ends.
WORKER_GRACE_S = 30.0
#: How long it gives itself at most, so that it has ended before it is killed.
_OWN_GRACE_S = 25.0
_GRACE = "GRADCAM_WORKER_GRACE_S"
#: What a worker gets that ends its processes at once.
_AT_ONCE_S = 5.0
#: The exit code of a worker that cannot start with its settings.
_REFUSED = 2


class Worker(Program):
    """The command `gradcam-worker`, which supervises the Celery workers."""

    # On SIGTERM it ends its own children; a killed one could not.
    death_signal = signal.SIGTERM

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str],
        *,
        processes: int,
        devices: str,
        options: Sequence[str] = (),
        lock: DirectoryLock | None = None,
    ) -> None:
        super().__init__("gradcam-worker", log, lock)
        self._environment = environment
        self._arguments = ("--devices", devices, "--processes-per-device", str(processes), *options)

    def start(self) -> None:
        """Start the worker; it reads its first message some seconds later, after importing PyTorch."""
        command = (sys.executable, "-m", "worker.cli", *self._arguments)
        # In the project's own directory: a trial needs no installation.
        self.launch(command, self._environment, Path(__file__).parent.parent)

    def restart(self) -> None:
        """End the worker and what it left behind, and start it again."""
        self.stop()
        self.start()

    @property
    def left(self) -> bool:
        """Return whether it ended because somebody asked it to: `gradcam workers drain`, or SIGTERM."""
        return self.process is not None and self.process.poll() == 0

    @property
    def refusal(self) -> str:
        """Return why it cannot start with its settings, however often it is tried; empty where it can."""
        if self.process is None or self.process.poll() != _REFUSED:
            return ""
        return self.log_tail().splitlines()[-1].strip().removeprefix("Error: ")

    def check(self) -> None:
        """Raise ServiceError if the worker has ended by itself."""
        if not self.alive:
            raise ServiceError(f"the worker ended; its log ({self.log}) says:", excerpt=self.log_tail())

    def stop(self, grace_s: float = WORKER_GRACE_S) -> None:
        """Let the worker finish its current batches, then end it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        # A second signal: it ends its processes at once, which have sessions of their own. A killed one could not.
        super().stop(_AT_ONCE_S)


class Stack:
    """Servers and workers that live as long as a `with`, and never longer than this process.

    Args:
        directory: Where data, secrets and logs go; made if missing. The next stack there finds them again.
        workers: How many Celery workers to run; 0 for the servers alone.
        devices: What the workers compute on.
        bucket: The bucket to make.
    """

    def __init__(self, directory: Path, workers: int = 1, devices: str = "cpu", *, bucket: str = "gradcam") -> None:
        self.directory = make_private(directory.absolute())
        self.workers = workers
        self.devices = devices
        self.worker: Worker | None = None
        self._lock = DirectoryLock(self.directory)
        self._settings = self.directory / "settings.json"
        kept = json.loads(self._settings.read_text()) if self._settings.exists() else _new_settings()
        self._secrets: dict[str, str] = kept["secrets"]
        self.redis = Valkey(self._part("valkey"), kept["ports"]["redis"], self._secrets["redis_password"])
        self.s3 = SeaweedFS(self._part("seaweedfs"), kept["ports"]["s3"], self._secrets, bucket)

    def _part(self, name: str) -> Path:
        return make_private(self.directory / name)

    def __enter__(self) -> Self:
        self._lock.acquire()
        try:
            self._save()
            self.redis.start()
            self.s3.start()
            self._save()
            if self.workers:
                self.start_worker(self.workers)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything: the worker first, as it needs the servers to give its chunks back."""
        try:
            self.stop_worker()
        finally:
            try:
                self.redis.stop()
            finally:
                self.s3.stop()
                self._lock.release()

    def start_worker(self, processes: int = 1) -> Worker:
        """Start a launcher with so many Celery workers; returns at once, and its log shows the progress."""
        self.stop_worker()
        log = self.directory / "worker.log"
        lock = DirectoryLock(self.directory, OF_LAUNCHER)
        environment = _ending_in_time(self.environment())
        self.worker = Worker(log, environment, processes=processes, devices=self.devices, lock=lock)
        self.worker.start()
        return self.worker

    def stop_worker(self, grace_s: float = WORKER_GRACE_S) -> None:
        """End the launcher and its workers, if there is one."""
        if self.worker is not None:
            self.worker.stop(grace_s)
            self.worker = None

    @property
    def env(self) -> dict[str, str]:
        """Return the settings of this stack as environment variables."""
        return {
            "GRADCAM_REDIS_URL": self.redis.url,
            "GRADCAM_S3_ENDPOINT_URL": self.s3.endpoint_url,
            "GRADCAM_S3_BUCKET": self.s3.bucket,
            "GRADCAM_S3_PREFIX": "jobs",
            "AWS_ACCESS_KEY_ID": self.s3.access_key,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            # An outgoing proxy must not get requests for our own loopback address.
            "NO_PROXY": _with_loopback(os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""),
            "no_proxy": _with_loopback(os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""),
        }

    def environment(self) -> dict[str, str]:
        """Return an environment for a process that uses this stack: ours, without what is for other services."""
        return {name: value for name, value in os.environ.items() if name not in FOREIGN} | self.env

    def _save(self) -> None:
        ports = {"redis": self.redis.ports, "s3": self.s3.ports}
        write_private(self._settings, json.dumps({"secrets": self._secrets, "ports": ports}))


def _ending_in_time(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a worker that gives itself less time to end than it has before it is killed."""
    try:
        asked_s = float(held_in_file(_GRACE) or environment.get(_GRACE) or 0)
    except ValueError:
        return environment  # the worker says what is wrong
    if asked_s <= _OWN_GRACE_S:
        return environment
    environment.pop(f"{_GRACE}{FILE}", None)
    return environment | {_GRACE: f"{_OWN_GRACE_S:g}"}


def _new_settings() -> dict[str, Any]:
    return {
        "secrets": {
            "redis_password": secrets.token_urlsafe(24),
            "s3_access_key": "GRADCAM" + secrets.token_hex(6).upper(),
            "s3_secret_key": secrets.token_urlsafe(30),
            "s3_signing_key": secrets.token_urlsafe(30),
        },
        "ports": {"redis": {}, "s3": {}},
    }


def _with_loopback(hosts: str) -> str:
    names = [host for host in hosts.split(",") if host]
    return ",".join([*names, *(host for host in ("127.0.0.1", "localhost") if host not in names)])
