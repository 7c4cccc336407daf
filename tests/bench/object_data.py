"""What moving objects costs a client: core-ms of 20 kB written and read by 8 threads, boto3 beside obstore."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import click

from deploy.stack import Stack
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

THREADS, OBJECTS, ROUNDS = 8, 800, 5
BODY = os.urandom(20_000)


def core_ms(pool: ThreadPoolExecutor, call: Callable[[str], object]) -> float:
    """Core-milliseconds of this process that each object takes."""
    started = time.process_time()
    assert all(pool.map(call, (f"bench/{number}" for number in range(OBJECTS))))
    return 1000 * (time.process_time() - started) / OBJECTS


def calls_of(storage: Storage) -> dict[str, Callable[[str], object]]:
    """What is measured, by its name; each call gives something true."""
    data, client, bucket = storage.object_data, storage.client, storage.bucket
    assert data is not None

    def get(key: str) -> bool:
        answer = data.get(bucket, key)
        assert answer is not None
        with closing(answer):
            return answer.read() == BODY

    return {
        "PUT boto3": lambda key: client.put_object(Bucket=bucket, Key=key, Body=BODY, ContentType="image/jpeg"),
        "PUT obstore": lambda key: data.put(bucket, key, BODY, "image/jpeg"),
        "GET boto3": lambda key: client.get_object(Bucket=bucket, Key=key)["Body"].read() == BODY,
        "GET obstore": get,
    }


def main() -> None:
    """Print what an object costs each way; the ways take turns."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), workers=0) as stack,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        os.environ.update(stack.env)
        calls = calls_of(Storage.from_settings(read(Connections)))
        took: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            core_ms(pool, call)  # connections, and what is made at first
        for _ in range(ROUNDS):
            for name, call in calls.items():
                took[name].append(core_ms(pool, call))
    click.echo(f"object data: objects of {len(BODY):,} bytes, {THREADS} threads, SeaweedFS; medians of {ROUNDS} rounds")
    for name, times in took.items():
        click.echo(f"  {name:12} {statistics.median(times):6.2f} core-ms an object")


if __name__ == "__main__":
    main()
