"""Why jobs do not go on, counted: each reason as the status of a job gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.states import JobState, WaitReason
from producer.jobs.model.why import Standing, Surroundings, is_asked, why

if TYPE_CHECKING:
    from producer.jobs.table.overview import JobFacts, Overview

#: As `_strikes.lua` has it: a job is not delayed for longer.
_LONGEST_DELAY_S: Final = 30.0


@dataclass(frozen=True)
class _Priority:
    """What all jobs of a priority have in common."""

    alive: int
    readers: int
    #: Of the readers.
    faulty: int
    fit: frozenset[str]
    #: Whether chunks of more urgent jobs wait.
    urgent: bool
    #: Of its jobs with a waiting chunk, the one whose turn is next: it was taken or made longest ago.
    first: str


def reasons(overview: Overview) -> Mapping[WaitReason, int]:
    """How many jobs do not go on for each reason."""
    found = Counter(dict.fromkeys(WaitReason, 0))
    in_hand = sum(job.in_flight for job in overview.jobs if job.state is JobState.RUNNING)
    priorities = {str(one): _priority(overview, n) for n, one in enumerate(PRIORITIES)}
    for job in overview.jobs:
        if job.priority in priorities and (reason := _reason(job, overview, priorities[job.priority], in_hand)):
            found[reason] += 1
    return found


def _priority(overview: Overview, place: int) -> _Priority:
    priority = PRIORITIES[place]
    alive = [one for one in overview.workers if one.state != "silent"]
    readers = [one for one in alive if priority in one.priorities]
    fit = frozenset(one.name for one in readers if one.state != "faulty")
    waiting = [
        job for job in overview.jobs if job.state is JobState.RUNNING and job.waiting and job.not_before <= overview.at
    ]
    row = [job for job in waiting if job.priority == priority]
    return _Priority(
        alive=len(alive),
        readers=len(readers),
        faulty=len(readers) - len(fit),
        fit=fit,
        urgent=any(job.priority in PRIORITIES[:place] for job in waiting),
        first=min(row, key=lambda job: job.went_on_at).job if row else "",
    )


def _reason(job: JobFacts, overview: Overview, of: _Priority, in_hand: int) -> WaitReason | None:
    in_flight = job.leased - job.overdue
    if not is_asked(job.state, in_flight=in_flight, begun=job.begun, still_s=job.seen_at - job.went_on_at):
        return None
    if job.state is JobState.PAUSED:
        return WaitReason.PAUSED
    delayed_s = job.not_before - overview.at
    found = Surroundings(
        queue=job.priority,
        loading=job.loading,
        delayed_s=delayed_s if delayed_s <= _LONGEST_DELAY_S else 0.0,
        sender_silent_s=job.seen_at - (job.sent_at or job.seen_at),
        alive=of.alive,
        readers=of.readers,
        faulty=of.faulty,
        fault="",
        refusing=len(job.refused_by & of.fit),
        refusal="",
        # Some, or none: that is all a reason needs.
        ahead=int(of.urgent or of.first != job.job),
        in_hand=in_hand,
        more=False,
    )
    standing = Standing(
        job=job.job,
        named=True,
        waiting=job.waiting,
        in_flight=in_flight,
        open=job.sent_at is not None,
    )
    told = why(standing, found, overview.waits, overview.memory.fullness)
    return told[0] if told else None
