"""What a release wrote, in `tests/golden/<version>/`: Redis and the store, to be read by later ones.

- `queued.json`: Redis with two jobs that no worker has seen. `plain` has all defaults, `many` has every parameter that
  the release knew.
- `worked.json`: Redis while a worker was alive. `worked` has ended with a failed image, `half` was paused amidst its
  images.
- `objects.json`: the objects of these jobs. Of JSON the text, of pictures how many bytes.

`make release-files` makes them, by running the release.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis
import s3_servers

from producer.jobs.store.bucket import Storage

FOLDER: Final = Path(__file__).parents[1] / "golden"
#: Where the jobs of all of them lie: the bucket and prefix of the tests' stacks.
PLACE: Final = f"{s3_servers.BUCKET}/jobs"
_SECONDS: Final = 3600


def versions() -> list[str]:
    """The releases that have golden files, the oldest first."""
    return sorted(
        (path.name for path in FOLDER.iterdir() if path.is_dir()), key=lambda name: [*map(int, name.split("."))]
    )


def read(version: str, name: str) -> dict[str, Any]:
    """One of a release's files."""
    found: dict[str, Any] = json.loads((FOLDER / version / f"{name}.json").read_text())
    return found


def field(version: str, name: str, key: str, field: str) -> str:
    """A field of a hash that a release wrote."""
    return str(read(version, name)[key]["value"][field])


def _packed(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def unpacked(value: Any) -> bytes:
    """A value of Redis as it was."""
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else str(value).encode()


def dump_redis(client: redis.Redis) -> dict[str, Any]:
    """Everything that a database holds, in words."""
    reads: dict[str, Callable[[bytes], Any]] = {
        "string": lambda key: _packed(cast("bytes", client.get(key))),
        "hash": lambda key: {
            name.decode(): _packed(value) for name, value in cast("dict[bytes, bytes]", client.hgetall(key)).items()
        },
        "list": lambda key: [_packed(value) for value in cast("list[bytes]", client.lrange(key, 0, -1))],
        "set": lambda key: sorted(_packed(value) for value in cast("set[bytes]", client.smembers(key))),
        "zset": lambda key: [
            [_packed(member), score]
            for member, score in cast("list[tuple[bytes, float]]", client.zrange(key, 0, -1, withscores=True))
        ],
    }
    found = {}
    for key in sorted(cast("list[bytes]", client.keys())):
        kind = cast("bytes", client.type(key)).decode()
        found[key.decode()] = {"type": kind, "ends": client.ttl(key) > 0, "value": reads[kind](key)}
    return found


def load_redis(client: redis.Redis, held: dict[str, Any]) -> None:
    """Put what `dump_redis` gave into a database; what had a lifetime has one again."""
    with client.pipeline() as pipe:
        for key, entry in held.items():
            value = entry["value"]
            match entry["type"]:
                case "string":
                    pipe.set(key, unpacked(value))
                case "hash":
                    pipe.hset(key, mapping={name: unpacked(one) for name, one in value.items()})
                case "list":
                    pipe.rpush(key, *map(unpacked, value))
                case "set":
                    pipe.sadd(key, *map(unpacked, value))
                case "zset":
                    pipe.zadd(key, {unpacked(member): score for member, score in value})
            if entry["ends"]:
                pipe.expire(key, _SECONDS)
        pipe.execute()


def dump_objects(storage: Storage) -> dict[str, Any]:
    """The objects of all jobs: text, or how many bytes."""
    return {
        key: storage.get(key).decode() if key.endswith((".json", ".jsonl")) else size
        for key, size in storage.sizes(f"{storage.prefix}/")
    }


def load_objects(storage: Storage, version: str) -> None:
    """Put a release's objects into the store; pictures are as long as they were, and nothing else of them is true."""
    if storage.place != PLACE:
        pytest.skip(f"the golden files are of jobs in {PLACE}")
    held = read(version, "objects")
    for job in {key.split("/")[1] for key in held}:
        if there := list(storage.keys(f"{storage.prefix}/{job}/")):  # of another release
            storage.delete(there)
    for key, content in held.items():
        storage.put(key, content.encode() if isinstance(content, str) else bytes(content))
