"""A cut of the races of verbs (`make races` runs thousands): done means that pictures are there, whoever was first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import s3_servers
from budget import either
from fault_proxy import HttpFaultProxy
from verb_races import VERBS, race

from deploy.stack import Stack
from producer.client.client import Client


@pytest.fixture
def slow(
    stack: Stack, redis_client: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Client, HttpFaultProxy]]:
    """A client of a database that no worker process looks at, and of a store that can be slow."""
    monkeypatch.setenv("GRADCAM_REDIS_URL", stack.redis.url.removesuffix("/0") + "/1")
    with s3_servers.proxied(stack.s3) as proxy:
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield Client.from_env(), proxy


def test_whichever_two_verbs_race_done_means_that_pictures_are_there(slow: tuple[Client, HttpFaultProxy]) -> None:
    """Every pair once, or a third of them: each verb is three times the first and three times the second."""
    rows = range(len(VERBS))
    pairs = [row * len(VERBS) + column for row in rows for column in rows if (row + column) % either(3, 1) == 0]
    assert len(pairs) == either(27, 81)
    broken = [found for found in race(*slow, pairs, seed=5) if found.problems]
    assert broken == []
