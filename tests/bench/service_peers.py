"""The contestants beside ours, in processes of their own: pure `explain`, a script, and Celery as people use it."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
from service_rig import WEIGHTS, Rig, Timed, Workers

#: As many images a batch as the worker takes, and as many preloaded arrays.
BATCH, ARRAYS = 16, 64


def serve_pure(pipe: Connection, name: str, paths: list[Path], core: int | None) -> None:
    """Only `explain_classes`, on pictures that are decoded already; in a process of its own."""
    cores = os.sched_getaffinity(0) if core is None else {core}
    os.sched_setaffinity(0, cores)
    import torch

    from worker.device import batches
    from worker.models import networks
    from worker.pictures import decode, geometry

    torch.set_num_threads(len(cores))
    batches.open_device("cpu")
    network = networks.load(name, WEIGHTS[name])
    pictures = []
    for path in paths[:ARRAYS]:
        fitted, _ = geometry.fit(decode.decode(path.read_bytes()), network.size, "squash", network.resize_px)
        pictures.append(fitted)

    def run(images: int) -> tuple[float, float]:
        started, cpu = time.perf_counter(), time.process_time()
        for first in range(0, images, BATCH):
            batch = [pictures[n % len(pictures)] for n in range(first, min(first + BATCH, images))]
            answers = batches.explain_classes(network, batch, [None] * len(batch)).answers()
            assert len(answers) == len(batch)
        return time.perf_counter() - started, time.process_time() - cpu

    run(2 * BATCH)
    pipe.send(None)
    while images := pipe.recv():
        pipe.send(run(images))


def serve_script(pipe: Connection, name: str, _paths: list[Path], _core: int | None) -> None:
    """The script with pytorch-grad-cam, with two threads; in a process of its own."""
    import gradcam_script

    gradcam_script.threads(2)
    script = gradcam_script.Script(name, WEIGHTS[name])
    pipe.send(None)
    while asked := pipe.recv():
        cpu = time.process_time()
        seconds = script.run(*asked)
        pipe.send((seconds, time.process_time() - cpu))


@contextmanager
def process(serve: Any, name: str, paths: list[Path], core: int | None = None) -> Iterator[Connection]:
    """Start one of the above; it idles until asked."""
    context = get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(there, name, paths, core), daemon=True)
    child.start()
    try:
        here.recv()
        yield here
        here.send(None)
        child.join()
    finally:
        child.kill()


class Pure:
    """Pure `explain`."""

    def __init__(self, rig: Rig, pipe: Connection) -> None:
        self._rig, self._pipe = rig, pipe

    def timed(self, images: int) -> Timed:
        """Explain so many arrays."""
        self._pipe.send(images)
        seconds, cpu_s = self._pipe.recv()
        return Timed(images, seconds, {"explain": 1000 * cpu_s / images})


class Script:
    """The script with pytorch-grad-cam."""

    def __init__(self, rig: Rig, pipe: Connection) -> None:
        self._rig, self._pipe = rig, pipe

    def timed(self, images: int) -> Timed:
        """Explain so many images."""
        prefix, spent = f"script/{uuid.uuid4().hex}", []

        def run() -> float:
            names = [f"photos/{self._rig.photos[n % len(self._rig.photos)].name}" for n in range(images)]
            self._pipe.send((names, prefix))
            seconds, cpu_s = self._pipe.recv()
            spent.append(cpu_s)
            return float(seconds)

        found = self._rig.measured(images, run)
        found.core_ms["script"] = 1000 * spent[0] / images
        assert self._rig.count(f"{prefix}/") == 4 * images
        return found


class Naive:
    """Celery as people use it (`naive_app.py`), two processes with one thread each."""

    def __init__(self, rig: Rig, network: str, extra: dict[str, str] | None = None) -> None:
        names = {"NAIVE_NETWORK": network, "OMP_NUM_THREADS": "1", **(extra or {})}
        if weights := WEIGHTS[network]:
            names["NAIVE_WEIGHTS"] = weights
        command = (sys.executable, "-m", "celery", "--app", "naive_app", "worker", "--pool", "prefork")
        options = ("--concurrency", "2", "--loglevel", "WARNING")
        self._rig = rig
        self.workers: Workers = rig.start((*command, *options), extra=names, ready="naive: ready", times=2)
        self._database = redis.Redis.from_url(rig.stack.redis.url)

    def timed(self, images: int) -> Timed:
        """Send a task for each image, and wait until all are done."""
        import naive_app

        run_id = uuid.uuid4().hex
        done = naive_app.DONE.format(run=run_id)

        def run() -> float:
            started = time.perf_counter()
            for index in range(images):
                photo = self._rig.photos[index % len(self._rig.photos)].name
                naive_app.explain.apply_async((run_id, index, f"photos/{photo}"))
            while int(self._database.get(done) or 0) < images:
                assert self.workers.alive, self.workers.log_tail()
                time.sleep(0.02)
            return time.perf_counter() - started

        groups = self.workers.processes()
        before = sum(sum(p.cpu_times()[:2]) for p in groups)
        found = self._rig.measured(images, run)
        found.core_ms["workers"] = 1000 * (sum(sum(p.cpu_times()[:2]) for p in groups) - before) / images
        assert self._rig.count(f"naive/{run_id}/") == 4 * images
        return found

    def stop(self) -> None:
        """End the workers."""
        self.workers.stop(5.0)
        self._database.close()
