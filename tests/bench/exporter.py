"""What a look of `gradcam metrics` costs, by jobs and images: its time, Redis' commands and Redis' processor time."""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import click
import redis

from deploy.stack import Stack
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.settings import Connections
from producer.jobs.model.spec import JobSpec
from producer.jobs.table.table import JobTable
from producer.monitoring.exporter import make_exporter

CHUNK, LOOKS, WORKERS = 500, 30, 64


class Cost(NamedTuple):
    """Of one look."""

    ms: float
    commands: float
    redis_ms: float
    kb: float


def fill(table: JobTable, jobs: int, images: int) -> None:
    """Make jobs with so many images in all, each of them open."""
    spec = JobSpec(chunk_size=CHUNK)
    size = min(CHUNK, images // jobs)
    chunk = Chunk.compress(0, [uri_line(f"s3://bucket/{number:06d}.jpg") for number in range(size)])
    for job in range(jobs):
        table.create(f"job{job}", spec, lifetime_s=3600)
        for number in range(images // jobs // size):
            table.add_chunk(f"job{job}", chunk.model_copy(update={"number": number}))
    for worker in range(WORKERS):
        table.registry.heartbeat(f"host-gpu{worker // 2}-{worker % 2}-00aa", ["default"])


def measure(client: redis.Redis, settings: Connections) -> Cost:
    """Ask an exporter that keeps nothing, again and again."""

    def stats() -> tuple[int, float]:
        told = client.info()
        return int(told["total_commands_processed"]), 1000 * (told["used_cpu_user"] + told["used_cpu_sys"])

    with make_exporter(
        settings, "127.0.0.1", 0, images_per_s=20, tell=lambda _, sentence: click.echo(sentence), keep_s=0
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        def look() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=60) as answer:
                return len(answer.read())

        look()
        took, commands, redis_ms = [], *stats()
        for _ in range(LOOKS):
            started = time.perf_counter()
            length = look()
            took.append(1000 * (time.perf_counter() - started))
        after = stats()
        server.shutdown()
    return Cost(
        statistics.median(took), (after[0] - commands - 1) / LOOKS, (after[1] - redis_ms) / LOOKS, length / 1000
    )


def main() -> None:
    """Print a row for each number of jobs and images."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), workers=0) as stack,
        closing(redis.Redis.from_url(stack.redis.url)) as client,
    ):
        settings = Connections(redis_url=stack.redis.url, s3_bucket="none")
        click.echo("jobs  images     ms   commands  ms of Redis  kB")
        for jobs, images in ((1, 1000), (10, 1000), (10, 1_000_000), (1000, 1_000_000)):
            client.flushall()
            fill(JobTable(client), jobs, images)
            cost = measure(client, settings)
            click.echo(
                f"{jobs:<5} {images:<9} {cost.ms:6.1f} {cost.commands:8.0f} {cost.redis_ms:10.2f} {cost.kb:9.1f}"
            )


if __name__ == "__main__":
    main()
