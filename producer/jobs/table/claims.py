"""What the job table answers: a created job, a claimed chunk, a commit, the right to end a job."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from producer.jobs.model.items import Item
from producer.jobs.model.spec import MAX_CHUNK_SIZE, JobSpec
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.table.redis_scripts import text
from producer.jobs.tracing.traces import read_traceparent

_SUSPECT = re.compile(r"([0-9]{1,3})=([0-9]{1,9})(?![0-9])")
#: What `create` makes a job's life of; it becomes a part of object keys.
_LIFE = re.compile(r"[0-9A-Za-z-]{0,64}")


@dataclass(frozen=True)
class CreatedJob:
    """A job that is there now."""

    #: Whether it was not there before.
    new: bool
    life: str
    #: The first token that records of it may have.
    since: int


@dataclass(frozen=True)
class Claim:
    """A claimed chunk: what to do, and the token that proves who holds it."""

    job: str
    chunk: int
    token: int
    attempt: int
    spec: JobSpec
    #: offset → item, of all that still need work; others may be among them.
    items: dict[int, Item]
    #: The offsets of the items that still need work.
    pending: list[int]
    #: offset → weight of the deaths in which the item was alone under the mark of the dead holder.
    suspects: dict[int, int] = field(default_factory=dict)
    #: The job's: one more with each retry.
    generation: int = 1
    #: The job's life. A name can be used again: what belongs to another life of it does not count.
    life: str = ""
    #: A number that grows with each generation, also when Redis was wiped in between.
    epoch: int = 0
    #: Whether a worker had trouble with the job.
    troubled: bool = False
    #: Whether a process died while it loaded the job's model, which nobody has loaded since.
    load_suspect: bool = False
    #: The address of its submission's span; empty where that was not traced.
    traceparent: str = ""

    def index(self, offset: int) -> int:
        """The index in the job of the item at that offset."""
        return self.chunk * self.spec.chunk_size + offset


@dataclass(frozen=True)
class OnlyRefusedJobs:
    """Chunks of that priority wait, but only of jobs that this worker has refused: other workers take them."""

    queue: str


@dataclass(frozen=True)
class Committed:
    """What a commit changed."""

    done: int
    failed: int
    complete: bool
    state: JobState


@dataclass(frozen=True)
class Finalizing:
    """The right to write a job's summary and to enter its end."""

    end: JobState
    at: datetime
    generation: int
    life: str


def read_claim(job: str, chunk: int, spec: JobSpec, answer: list[Any]) -> Claim:
    """Read what `claim.lua` answers, but for the items. Raises ValueError: somebody else wrote what stands there."""
    _, token, attempt, _, states, suspects, generation, life, epoch, traceparent = answer
    weighed, troubled, loads = suspects.decode(errors="replace").partition(";")
    if not _LIFE.fullmatch(text(life)):
        raise ValueError("a job's life is a short word")
    return Claim(
        job,
        chunk,
        token,
        attempt,
        spec,
        items={},
        pending=[offset for offset, state in enumerate(states) if state == ItemState.PENDING],
        suspects={
            int(offset): int(weight) for offset, weight in _SUSPECT.findall(weighed) if int(offset) < MAX_CHUNK_SIZE
        },
        generation=generation,
        life=text(life),
        epoch=int(epoch),
        troubled=bool(troubled),
        load_suspect=bool(loads),
        traceparent=read_traceparent(traceparent.decode(errors="replace")),
    )
