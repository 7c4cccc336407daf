"""The states of jobs and items, and why a job waits, a sentence each."""

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


class WaitReason(StrEnum):
    """Why a job does not go on; `docs/operations.md` has a table of them."""

    #: Somebody paused it.
    PAUSED = "paused"
    #: Redis is full: nobody can send a message, or a submission waits for room.
    REDIS_FULL = "redis_full"
    #: No worker is alive.
    NO_WORKER = "no_worker"
    #: Workers are alive, and none of them reads its priority.
    PRIORITY_UNREAD = "priority_unread"
    #: Nothing of it is left to do until its submission sends more.
    SENDING = "sending"
    #: The same, and nothing was heard of its submission for minutes: it was interrupted.
    SENDER_SILENT = "sender_silent"
    #: A worker that has it loads its model.
    MODEL_LOADING = "model_loading"
    #: Workers wait for the object store.
    STORE_UNWELL = "store_unwell"
    #: Workers wait for another server, or for a step of their own.
    WORKERS_WAIT = "workers_wait"
    #: Each worker that reads its priority says that it cannot work.
    WORKERS_FAULTY = "workers_faulty"
    #: Each worker that reads its priority has refused this job.
    WORKERS_REFUSE = "workers_refuse"
    #: It is in trouble, and others go first for a moment.
    DELAYED = "delayed"
    #: Others' images are before it.
    TURN = "turn"
    #: Nothing is before it: a message is on its way, or was lost and is sent again.
    SOON = "soon"


class Ingest(StrEnum):
    """Whether more items may come."""

    OPEN = "open"
    CLOSED = "closed"


class ItemState(IntEnum):
    """The two bits an item has in the job table."""

    PENDING = 0
    DONE = 1
    FAILED = 2
