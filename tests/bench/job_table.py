"""What the promise costs: the job table's calls, in milliseconds an image, on a real server on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import click
import redis

from deploy.stack import Stack
from producer.jobs.model.items import Chunk, uri_line
from producer.jobs.model.spec import JobSpec
from producer.jobs.table.table import JobTable

CHUNK, BATCH, CHUNKS = 64, 16, 200
_T = TypeVar("_T")


def measure(table: JobTable) -> dict[str, list[float]]:
    """Work chunks off without any work; verb → milliseconds of each call."""
    took: dict[str, list[float]] = {}

    def timed(verb: str, call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        started = time.perf_counter()
        answer = call(*arguments, **options)
        took.setdefault(verb, []).append(1000 * (time.perf_counter() - started))
        return answer

    spec = JobSpec(chunk_size=CHUNK)
    table.create("bench", spec, lifetime_s=60)
    for number in range(CHUNKS):
        lines = [uri_line(f"s3://bucket/{number:06d}/{n:04d}.jpg") for n in range(CHUNK)]
        table.add_chunk("bench", Chunk.compress(number, lines))
    for number in range(CHUNKS):
        claim = timed("claim", table.claim, "bench", number, spec, claim_id=str(number), lease_s=30)
        assert claim is not None
        for start in range(0, CHUNK, BATCH):
            timed("renew and mark", table.renew, claim, lease_s=30, marked=range(start, start + BATCH))
        timed("commit", table.commit, claim, done=claim.pending, failed=[], lease_s=30)
    return took


def main() -> None:
    """Print what each verb takes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), workers=0) as stack,
        closing(redis.Redis.from_url(stack.redis.url)) as client,
    ):
        took = measure(JobTable(client))
    click.echo(f"job table: {CHUNKS} chunks of {CHUNK} images, batches of {BATCH}; medians")
    total = 0.0
    for verb, times in took.items():
        median, each = statistics.median(times), len(times) / CHUNKS
        total += median * each
        click.echo(f"{verb:<16}{median:8.3f} ms a call, {each:g} calls a chunk")
    click.echo(
        f"together        {total / CHUNK:8.4f} ms an image, {1000 * CHUNK / total:,.0f} images/s with one client"
    )


if __name__ == "__main__":
    main()
