"""What a worker process tells of itself with its sign of life, and what a list of workers has of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from producer.jobs.model.frozen import Frozen

#: Nothing longer is read of a worker's record.
MAX_RECORD_BYTES = 4096
_Word = Annotated[str, Field(max_length=200)]
_Count = Annotated[int, Field(ge=0, le=10**9)]


class WorkerFacts(Frozen):
    """What a process tells: bounded, since one record a worker lies in Redis, and anybody may write there.

    A worker of a newer release may tell more: that is passed over, what is known here is told.
    """

    model_config = ConfigDict(extra="ignore")

    host: _Word
    #: The name of its launcher; none where it was started without one.
    launcher: _Word | None = None
    #: `cpu`, or which GPU of its machine: `gpu0`, `gpu0-mig1`; `cuda` of releases up to 0.4.0 and without a launcher.
    device: _Word
    version: _Word
    #: The network and the images of its last batch; none before the first.
    network: _Word | None = None
    batch_size: _Count | None = None
    #: Over the last minute at most.
    images_per_s: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    #: Share of that time in which its device had a batch.
    busy: Annotated[float, Field(ge=0, le=1)] = 0.0
    #: Images in the chunks that it holds.
    in_hand: _Count = 0


class WorkerRecord(Frozen):
    """A worker process that is alive, as Redis knows it; where its record cannot be read, little is known."""

    name: str
    #: Whether a record of it could be read: releases up to 0.3.0 write none.
    known: bool = False
    host: str = ""
    launcher: str | None = None
    device: str = ""
    version: str = ""
    network: str | None = None
    batch_size: int | None = None
    images_per_s: float | None = None
    busy: float | None = None
    in_hand: int | None = None
    #: The priorities that it reads, by commas; empty where it reads all.
    queues: str = ""
    #: What keeps it from working, in a sentence.
    problem: str | None = None
    #: Whether it was asked to finish and leave.
    draining: bool = False
    #: For how many seconds nothing was heard of it.
    silent_s: float


class Drained(Frozen):
    """Who was asked to finish and leave."""

    name: str
    #: `launcher` or `process`.
    kind: str
    #: The processes that end.
    processes: tuple[str, ...]
