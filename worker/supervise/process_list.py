"""The processes of a launcher, as it lists them in `launcher.json` for `gradcam-worker check`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from worker.supervise.small_file import replace_text

_LIST: Final = "launcher.json"
#: Host, port and database in the rest of a Redis address, without its secret.
_PLACE: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d+))?(?:/(\d*))?/?", re.IGNORECASE)


@dataclass(frozen=True)
class ListedProcess:
    """One process, as its launcher knows it."""

    name: str
    device: str
    #: None while it does not run.
    pid: int | None
    #: In seconds since 1970.
    started_at: float
    #: Why it does not run.
    problem: str | None = None
    #: Whose jobs it works off, as `stack_of` says it; empty where that is not known.
    stack: str = ""
    #: What makes its work slower, or is left open: sentences without the last dot; empty where there is nothing.
    note: str = ""


def stack_of(redis_url: str) -> str:
    """Name a stack by what makes it one: the Redis with its jobs, as `host:port/database`; no secret is in it.

    Empty where the address is missing or cannot be read: whoever starts something with it is told what is wrong.
    """
    found = _PLACE.fullmatch(redis_url.partition("://")[2].partition("?")[0].rpartition("@")[2])
    return f"{found[1].lower()}:{found[2] or 6379}/{found[3] or 0}" if found else ""


def publish(folder: Path, processes: Sequence[ListedProcess]) -> None:
    """Write the list of a launcher's processes; they work on where the disk is full."""
    with suppress(OSError):
        replace_text(folder / _LIST, json.dumps([asdict(process) for process in processes]))


def published(folder: Path) -> bool:
    """Return whether the list is there."""
    return (folder / _LIST).exists()


def read(folder: Path) -> list[ListedProcess]:
    """Return the processes that a launcher lists; none while it starts or ends."""
    try:
        return [ListedProcess(**entry) for entry in json.loads((folder / _LIST).read_text())]
    except FileNotFoundError:
        return []
