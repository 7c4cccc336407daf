"""The states of jobs and items, a sentence each."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class JobState(StrEnum):
    """Where a job stands: `running <-> paused -> finalizing ->` an end, from there `repairing` or `deleting`."""

    #: Chunks are handed out.
    RUNNING = "running"
    #: Nothing new is handed out until it is resumed.
    PAUSED = "paused"
    #: Every item has its end; the job's summary is being written.
    FINALIZING = "finalizing"
    #: It has ended, and a client compares it with the store and sets it right; for everybody else it is as it was.
    REPAIRING = "repairing"
    #: It has ended, and a client deletes its objects.
    DELETING = "deleting"
    #: Every image was explained.
    SUCCEEDED = "succeeded"
    #: Every image has its end, some failed: its own word, because people miss failures hidden in "completed".
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    #: Something that every image shares is wrong; `error` says what.
    FAILED = "failed"
    #: Somebody stopped it.
    CANCELLED = "cancelled"
    #: Of a list alone: this version cannot read what Redis holds of it; its problem says what.
    UNREADABLE = "unreadable"


#: A job that is in one of these never leaves it by itself.
TERMINAL = frozenset({JobState.SUCCEEDED, JobState.COMPLETED_WITH_ERRORS, JobState.FAILED, JobState.CANCELLED})


def known_state(word: str) -> JobState:
    """The state that Redis has for a job. Raises ValueError: this version does not know it."""
    state = JobState(word)
    if state is JobState.UNREADABLE:
        raise ValueError(word)
    return state


#: A client has a job for itself.
MAINTENANCE = frozenset({JobState.REPAIRING, JobState.DELETING})


class Ingest(StrEnum):
    """Whether more items may come."""

    OPEN = "open"
    CLOSED = "closed"


class ItemState(IntEnum):
    """The two bits an item has in the job table."""

    PENDING = 0
    DONE = 1
    FAILED = 2
