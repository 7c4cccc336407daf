"""How fast data sets of millions go in, what they take, and what the orchestration itself can carry.

PYTHONPATH=. python tests/bench/ingest.py [--sizes 10000,100000,1000000,5000000]

The jobs are lists of UUID-named addresses in chunks of 256. Nothing is computed: chunks are claimed and committed. The
peer is what people do with Celery: one message an image.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import redis

from deploy.stack import Stack
from producer.client.client import Client
from producer.jobs.broker import celery_app

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK, PEER_MESSAGES, CELERY_IMAGES = 256, 5_000, 200_000
_HERE = Path(__file__).parent


def write_list(path: Path, count: int) -> None:
    """A list file of UUID-named addresses."""
    with path.open("w") as file:
        for _ in range(count):
            file.write(f"s3://bucket/datasets/2026/images/{uuid.uuid4()}.jpg\n")


def submit_and_say(path: str) -> None:
    """In a process of its own: submit a list, and print how long it took and how much memory."""
    # Everything imported and connected, as in a long submission; the imports are a second of any.
    client = Client.from_env()
    first = client.submit([str(Path(path).parent / "few.txt")], network="noop", any_network=True, chunk_size=CHUNK)
    client.cancel(first)
    client.delete(first)
    empty = client.table.redis.info("memory")["used_memory"]
    started, cpu = time.perf_counter(), time.process_time()
    job = client.submit([path], network="noop", any_network=True, chunk_size=CHUNK)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(json.dumps({"job": job, "seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb, "empty": empty}))


def work_off_and_say(job: str) -> None:
    """In a process of its own: claim and commit until a job is done, without Celery."""
    sys.path.insert(0, str(_HERE))
    from noop_app import Noop

    from worker.chunks.messages import Message

    noop, images, count = Noop(Client.from_env().table), 0, 0
    started = time.perf_counter()
    while worked := noop.consume(Message("default", job, 0), f"bench-{count}"):
        images, count = images + worked, count + 1
    click.echo(json.dumps({"images": images, "seconds": time.perf_counter() - started}))


def child(*arguments: str) -> dict[str, Any]:
    """Run one of the above, and read what it says."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@contextmanager
def polled(client: Client, job: str, times_ms: list[float]) -> Iterator[None]:
    """Ask for a job's status again and again meanwhile."""
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.01):
            started = time.perf_counter()
            client.status(job)
            times_ms.append(1000 * (time.perf_counter() - started))

    thread = threading.Thread(target=poll)
    thread.start()
    yield
    over.set()
    thread.join()


def measure(client: Client, database: redis.Redis, folder: Path, count: int) -> None:
    """One row of the table."""
    path = folder / "list.txt"
    write_list(path, count)
    database.flushall()
    sent = child("--submit", str(path))
    waiting = (int(database.info("memory")["used_memory"]) - sent["empty"]) / count
    times_ms: list[float] = []
    with polled(client, sent["job"], times_ms):
        done = child("--work-off", sent["job"])
    assert done["images"] == count, done
    assert client.status(sent["job"]).done == count
    database.delete("gradcam:queue:default")  # the messages, which nobody read here
    time.sleep(2)  # it frees large values in the background
    finished = (int(database.info("memory")["used_memory"]) - sent["empty"]) / count
    p99 = statistics.quantiles(times_ms, n=100)[98] if len(times_ms) > 1 else times_ms[0]
    click.echo(
        f"{count:>10,}{count / sent['seconds']:>14,.0f}{count / sent['cpu_s']:>14,.0f}{sent['peak_mb']:>10.0f}"
        f"{waiting:>10.1f}{finished:>10.2f}{count / done['seconds']:>14,.0f}"
        f"{statistics.median(times_ms):>9.2f}{p99:>9.2f}"
    )


def one_message_an_image(url: str) -> float:
    """Images a second, as people do it with Celery."""
    app = celery_app.make_app(url)
    started = time.perf_counter()
    for _ in range(PEER_MESSAGES):
        app.send_task("explain", args=(f"s3://bucket/datasets/2026/images/{uuid.uuid4()}.jpg", "resnet50"), queue="low")
    return PEER_MESSAGES / (time.perf_counter() - started)


def with_celery(client: Client, folder: Path) -> float:
    """Images a second through a Celery worker that computes nothing."""
    path = folder / "celery.txt"
    write_list(path, CELERY_IMAGES)
    job = client.submit([str(path)], network="noop", any_network=True, chunk_size=CHUNK)
    command = [sys.executable, "-m", "celery", "--app", "noop_app", "--quiet", "worker", "--concurrency", "1"]
    command += ["--queues", ",".join(celery_app.QUEUES), "--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**os.environ, "PYTHONPATH": f"{_HERE}:{_HERE.parent.parent}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        while not client.status(job).done:
            time.sleep(0.01)
        started, before = time.perf_counter(), client.status(job).done
        while (status := client.status(job)).pending:
            time.sleep(0.02)
        speed = (status.done - before) / (time.perf_counter() - started)
        worker.terminate()
    return speed


@click.command()
@click.option("--sizes", default="10000,100000,1000000,5000000", show_default=True)
@click.option("--submit", hidden=True)
@click.option("--work-off", hidden=True)
def main(sizes: str, submit: str | None, work_off: str | None) -> None:
    """Print the table."""
    if submit or work_off:
        submit_and_say(submit) if submit else work_off_and_say(str(work_off))
        return
    with tempfile.TemporaryDirectory() as name, Stack(Path(name), workers=0) as stack:
        os.environ.update(stack.environment())
        folder = Path(name)
        write_list(folder / "few.txt", 10)
        client = Client.from_env()
        with closing(redis.Redis.from_url(stack.redis.url)) as database:
            click.echo(f"ingest: lists of UUID-named addresses, {CHUNK} a chunk; {os.cpu_count()} cores; no-op work")
            click.echo(
                f"{'images':>10}{'images/s in':>14}{'per core s':>14}{'peak MB':>10}{'B waiting':>10}{'B done':>10}"
                f"{'images/s off':>14}{'status ms':>9}{'p99':>9}"
            )
            for size in sizes.split(","):
                measure(client, database, folder, int(size))
            database.flushall()
            peer = one_message_an_image(stack.redis.url)
            database.flushall()
            click.echo(f"one Celery message an image: {peer:,.0f} images/s in")
            click.echo(f"through a Celery worker:     {with_celery(client, folder):,.0f} images/s off")


if __name__ == "__main__":
    main()
