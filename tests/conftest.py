"""Real servers for each lane of the run: they start in about two seconds, and end with it."""

from __future__ import annotations

import functools
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import budget
import hypothesis
import pytest
from lanes import SECONDS

# A thread each: the lanes and their workers share the cores. torch reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it runs in the background ignore Ctrl-C, and what that starts heeds it; here it is to be heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("small", max_examples=50, deadline=None)
hypothesis.settings.register_profile("large", max_examples=200, deadline=None)
hypothesis.settings.load_profile(budget.PROFILE)

with warnings.catch_warnings():
    # Dependencies of dependencies warn while they are imported; what our own code warns of is an error.
    warnings.simplefilter("ignore")
    import redis
    import s3_servers
    from botocore.loaders import JSONFileLoader
    from fault_proxy import HttpFaultProxy

    from producer.client.client import Client
    from producer.jobs.model.settings import Connections, read
    from producer.jobs.store.bucket import Storage

_load_json = JSONFileLoader.load_file


@functools.cache
def _loaded_json(path: str) -> Any:
    return _load_json(JSONFileLoader(), path)


# Each S3 client reads what botocore knows of S3 anew, for a tenth of a second; the suite makes hundreds.
JSONFileLoader.load_file = lambda _, path: _loaded_json(path)  # type: ignore[method-assign,assignment]

if TYPE_CHECKING:
    from deploy.servers import SeaweedFS
    from deploy.stack import Stack


def pytest_report_header() -> str:
    return f"S3 server: {s3_servers.chosen().__name__}; Redis server: Valkey; profile: {budget.PROFILE}"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """A case of bytes that nobody can read is named by its argument and number.

    Compressed bytes hold the time of day: lanes that start a second apart would not find the same tests.
    """
    return argname if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that the lanes end together."""
    items.sort(key=lambda item: -SECONDS.get(item.path.stem, 0))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Valkey and an S3 server, and this process's environment pointing at them."""
    with pytest.MonkeyPatch.context() as patch, s3_servers.make_stack(tmp_path_factory.mktemp("stack")) as running:
        for name in [name for name in os.environ if name.startswith("GRADCAM_") and "_TEST_" not in name]:
            patch.delenv(name)
        for name, value in running.env.items():
            patch.setenv(name, value)
        # Lost work is looked for often, so that tests need not wait.
        patch.setenv("GRADCAM_WORKER_INTERVAL_S", "0.5")
        patch.setenv("GRADCAM_WORKER_LEASE_S", "6")
        patch.setenv("GRADCAM_WORKER_COMMIT_EVERY_S", "0.5")
        patch.setenv("GRADCAM_WORKER_WEIGHTS_CACHE_DIR", str(tmp_path_factory.mktemp("weights")))
        yield running


@pytest.fixture
def worker(stack: Stack) -> Stack:
    """The stack with one worker, as the command `gradcam-worker` starts it; an earlier test may have stopped it."""
    return with_worker(stack)


@pytest.fixture(scope="module")
def module_worker(stack: Stack) -> Stack:
    """The same, for fixtures of a whole module."""
    return with_worker(stack)


def with_worker(stack: Stack) -> Stack:
    """One worker serves all modules of a lane that leave it alive."""
    if stack.worker is None or not stack.worker.alive:
        stack.start_worker()
    return stack


@pytest.fixture(scope="session")
def minio(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """MinIO, which other servers are like: started by the first test that asks for it, beside the stack's server."""
    if isinstance(stack.s3, s3_servers.Minio | s3_servers.Given):
        yield stack.s3
        return
    server = s3_servers.make(s3_servers.minio(), tmp_path_factory.mktemp("minio"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(stack: Stack) -> Client:
    return Client.from_env()


@pytest.fixture
def redis_client(stack: Stack) -> Iterator[redis.Redis]:
    """A database of its own, empty; workers use another."""
    with closing(redis.Redis.from_url(stack.redis.url.removesuffix("/0") + "/1")) as made:
        made.flushdb()
        yield made
        made.flushdb()


@pytest.fixture
def unattended(client: Client, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of that database: no worker process looks at its jobs, nor at what commands of this test send."""
    url = client._services.settings.redis_url.get_secret_value()
    monkeypatch.setenv("GRADCAM_REDIS_URL", url.removesuffix("/0") + "/1")
    return Client.from_env()


@pytest.fixture
def broken(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Storage, HttpFaultProxy]]:
    """A store behind a proxy that breaks what passes."""
    with s3_servers.proxied(stack.s3) as proxy:
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield Storage.from_settings(read(Connections)), proxy
