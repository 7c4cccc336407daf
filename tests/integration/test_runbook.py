"""The commands of docs/runbook.md, in its order, in a shell, on real servers and workers of two releases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import releases
import runbook
from releases import ReleaseWorker
from stacks import SMALL, eventually, own_stack

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model.states import JobState

ROOT = Path(__file__).parents[2]
#: The release that is upgraded from.
FROM = "0.4.0"
IMAGES = 12
JOB, ENDED, LATER, DELETED = "at-work", "ended", "later", "deleted"
OPTIONS = "--network squeezenet1_1 --weight-path random --outputs cam --chunk-size 2"
#: One image a batch: a job takes so long that what happens amidst it does.
SETTINGS = {"GRADCAM_WORKER_LEASE_S": "5", "GRADCAM_WORKER_BATCH_SIZE": "1"}
SECTIONS = list(dict.fromkeys(block.section for block in runbook.blocks()))


class Service:
    """What the runbook is about: servers and workers, which its commands stop and start by leaving a wish."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder, self.client = stack, folder, Client.from_env()
        self.old = releases.of(FROM, folder)
        self.workers: list[Worker] = []
        self._frozen: list[psutil.Process] = []
        self._wish = folder / "wish"
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.meanwhile(self._obey)
        self._programs = folder / "bin"
        self._programs.mkdir()
        self._program("on-service", f'echo "$1" > {self._wish}.new; mv {self._wish}.new {self._wish}\n'
                      f"while [ -e {self._wish} ]; do sleep 0.05; done")  # fmt: skip
        self._program("gradcam", f'exec {sys.executable} -m producer.cli "$@"')
        if shutil.which("valkey-cli") is None:
            self._program("valkey-cli", f'exec {sys.executable} {ROOT}/tests/support/valkey_cli.py "$@"')

    def meanwhile(self, does: Callable[[], None]) -> None:
        """Let something happen beside the page's commands."""
        self._threads.append(threading.Thread(target=does))
        self._threads[-1].start()

    def _program(self, name: str, script: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)

    def _obey(self) -> None:
        """Do what is wished, as systemd would."""
        does: dict[str, Callable[[], object]] = {
            "stop-redis": self.stack.redis.stop,
            "start-redis": self.stack.redis.restart,
            "start-workers": self.start_worker,
        }
        while not self._over.wait(0.05):
            if self._wish.exists():
                does[self._wish.read_text().strip()]()
                self._wish.unlink()

    def start_worker(self, *, old: bool = False) -> None:
        """Start a launcher, of this release or of the earlier one."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        environment = {**self.stack.environment(), **SETTINGS}
        worker = (
            ReleaseWorker(self.old, self.stack, log, SETTINGS)
            if old
            else Worker(log, environment, processes=1, devices="cpu")
        )
        self.workers.append(worker)
        worker.start()

    def freeze(self) -> None:
        """The processes of the worker that was started last stand still."""
        launcher = self.workers[-1].process
        assert launcher is not None
        self._frozen = psutil.Process(launcher.pid).children(recursive=True)
        for process in self._frozen:
            process.suspend()

    def thaw(self) -> None:
        """They go on."""
        for process in self._frozen:
            process.resume()
        self._frozen = []

    def stop(self) -> None:
        """End everything."""
        self.thaw()
        self._over.set()
        for thread in self._threads:
            thread.join()
        for worker in self.workers:
            worker.stop()

    def run(self, commands: str) -> str:
        """Run commands as somebody who has read the page's beginning; what they said."""
        launchers = [worker.launcher or "" for worker in self.client.workers()] if self.stack.redis.alive else []
        redis = self.stack.redis
        environment = {
            **self.stack.environment(),
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JOB": JOB,
            "ENDED": ENDED,
            "IMAGES": f"s3://{self.stack.s3.bucket}/photos/",
            "OPTIONS": OPTIONS,
            "LAUNCHER": launchers[0] if launchers else "",
            "START_WORKERS": "on-service start-workers",
            "STOP_REDIS": "on-service stop-redis",
            "START_REDIS": "on-service start-redis",
            "REDIS_DATA": str(redis.directory / "data"),
            "BACKUP": str(self.folder / "backup"),
            "REDIS_PORT": str(redis.ports["redis"]),
            "REDISCLI_AUTH": redis.password,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.returncode}\n{done.stdout}"
        assert "Traceback" not in done.stdout
        assert redis.password not in done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker of the earlier release, and two jobs that it has done."""
    folder = tmp_path_factory.mktemp("runbook")
    with own_stack(folder / "stack", SETTINGS) as stack:
        made = Service(stack, folder)
        try:
            made.start_worker(old=True)
            random = np.random.default_rng(0)
            for number in range(IMAGES):
                picture = cv2.imencode(".jpg", random.integers(0, 255, (40, 40, 3), np.uint8))[1].tobytes()
                made.client.storage.put(f"photos/{number:02d}.jpg", picture)
            for job in (ENDED, DELETED):
                submit(made, job)
                assert made.client.wait(job, timeout_s=60).done == IMAGES
            yield made
        finally:
            made.stop()


def submit(service: Service, job: str) -> None:
    """As the page's OPTIONS have it."""
    service.client.submit([f"s3://{service.stack.s3.bucket}/photos/"], name=job, chunk_size=2, **SMALL)


def at_work(service: Service) -> None:
    """JOB has begun and is not done."""
    submit(service, JOB)
    eventually(lambda: service.client.status(JOB).done, every_s=0.005)


# -- what happens between the sections, to be mended by the next -------------------------------------------------------


def before_upgrade(service: Service) -> None:
    """A job is at work when its worker is asked to leave: the worker stands still until then."""
    at_work(service)
    service.freeze()

    def resume() -> None:
        eventually(lambda: any(worker.draining for worker in service.client.workers()))
        service.thaw()

    service.meanwhile(resume)


def before_backup(service: Service) -> None:
    """The copy is made amidst a job, with a worker's leases in it."""
    service.client.delete(JOB, objects=True)
    at_work(service)
    service.freeze()
    assert service.client.status(JOB).pending > 0


def before_restore(service: Service) -> None:
    """After the copy was made a job ended, one was made, one was deleted."""
    service.thaw()
    client = service.client
    assert client.wait(JOB, timeout_s=60).done == IMAGES
    submit(service, LATER)
    assert client.wait(LATER, timeout_s=60).done == IMAGES
    client.delete(DELETED, objects=True)


def before_loss(service: Service) -> None:
    """A job was paused amidst its work when Redis is lost."""
    service.client.delete(DELETED)
    service.client.delete(JOB, objects=True)
    at_work(service)
    assert service.client.pause(JOB).state is JobState.PAUSED


def before_bucket(service: Service) -> None:
    """All objects of a job are gone."""
    storage = service.client.storage
    storage.delete(list(storage.keys(f"jobs/{ENDED}/")))


BEFORE: dict[str, Callable[[Service], None]] = {
    "Upgrade": before_upgrade,
    "Back Redis up": before_backup,
    "Restore Redis from a copy": before_restore,
    "Redis is gone for good": before_loss,
    "The bucket is gone, Redis is there": before_bucket,
}

# -- what must be so at a section's end --------------------------------------------------------------------------------


def whole(service: Service, *jobs: str) -> None:
    """All images of jobs are done, once, with their pictures."""
    for job in jobs:
        status = service.client.status(job)
        assert (job, status.state, status.done, status.total) == (job, JobState.SUCCEEDED, IMAGES, IMAGES)
        assert list(service.client.audit(job)) == []


def after_upgrade(service: Service) -> None:
    """The old launcher has ended by itself; the job was done by both."""
    old, new = service.workers
    assert old.process is not None
    assert old.process.wait(30) == 0
    for worker in (old, new):
        assert f"action=committed job={JOB} " in worker.log.read_text()
    whole(service, JOB, ENDED, DELETED)


def after_restore(service: Service) -> None:
    """What was there before the copy, and after it, is there; what was deleted is told."""
    whole(service, JOB, ENDED, LATER)
    assert service.client.status(DELETED).objects_gone


def after_loss(service: Service) -> None:
    """The bucket brought everything back."""
    whole(service, JOB, ENDED, LATER)
    assert len(list((service.folder / "checked").glob("*.jpg"))) == IMAGES


AFTER: dict[str, Callable[[Service], None]] = {
    "Upgrade": after_upgrade,
    "Restore Redis from a copy": after_restore,
    "Redis is gone for good": after_loss,
    "The bucket is gone, Redis is there": lambda service: whole(service, ENDED),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_commands_of_a_section_do_what_it_says(service: Service, section: str) -> None:
    """One section after the other: the next one finds what this one left."""
    BEFORE.get(section, lambda _: None)(service)
    began = time.monotonic()
    for block in runbook.blocks():
        if block.section == section:
            said = service.run(block.commands)
            assert block.missing(said) == [], f"{block.commands}\n{said}"
    AFTER.get(section, lambda _: None)(service)
    assert time.monotonic() - began < 120


def test_each_section_that_something_happens_before_or_after_is_on_the_page() -> None:
    assert BEFORE.keys() | AFTER.keys() < set(SECTIONS)


def test_an_append_only_redis_ignores_a_snapshot(service: Service) -> None:
    """Why the page puts it where Redis looks: who restores by the file alone starts with nothing, and is not told."""
    data = service.stack.redis.directory / "data"
    service.run("$STOP_REDIS")
    shutil.rmtree(data / "appendonlydir")
    shutil.copy(service.folder / "backup" / "dump.rdb", data / "dump.rdb")
    service.run("$START_REDIS")
    assert service.client.list() == []
