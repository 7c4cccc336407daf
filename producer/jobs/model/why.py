"""Why a job does not go on, in one line: the first reason that applies; `docs/operations.md` has them in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from producer.jobs.model.history import Action
from producer.jobs.model.limits import FULL_SHARE
from producer.jobs.model.states import JobState, WaitReason
from producer.jobs.model.status import Wait
from producer.jobs.model.text import counted
from producer.jobs.model.waits import REDIS, STORE

#: Redis refuses messages and signs of life when it holds more than this share of its `maxmemory`.
FULL = 0.99
#: A job of which something was recorded within this time goes on.
MOVES_S = 10.0
#: A submission of which nothing was heard for so long has most likely been interrupted.
SENDER_SILENT_S = 300.0
#: What somebody else wrote, a worker's sentence say, is shown up to here.
_LONGEST_QUOTE = 300


class Surroundings(NamedTuple):
    """What of the job table bears on a job that does not go on, as `why.lua` gives it."""

    queue: str
    #: Whether each of its chunks in flight has its model loading.
    loading: bool
    #: For how many seconds it is delayed.
    delayed_s: float
    #: For how many seconds nothing was heard of whoever sends its images.
    sender_silent_s: float
    #: Of the workers that are alive: how many, and how many of them read its priority.
    alive: int
    readers: int
    #: Of these: how many say that they cannot work, and what one of them says; how many have refused the job, likewise.
    faulty: int
    fault: str
    refusing: int
    refusal: str
    #: Images of other jobs that are taken before its next one, and those that workers have in hand.
    ahead: int
    in_hand: int
    #: Whether there are more jobs than were looked at.
    more: bool


class Standing(NamedTuple):
    """Where a running job stands that does not go on."""

    job: str
    #: Whether its user named it, so that it can be submitted again.
    named: bool
    #: Its chunks.
    waiting: int
    in_flight: int
    #: Whether more images may come.
    open: bool


def is_asked(state: JobState, *, in_flight: int, begun: bool, still_s: float) -> bool:
    """Whether a job may be waiting for something; one that goes on needs no second look.

    Args:
        state: Of the job.
        in_flight: Its chunks that a worker holds.
        begun: Whether an image of it has its end.
        still_s: For how many seconds nothing has been recorded of it.
    """
    if state is JobState.PAUSED:
        return True
    if state is not JobState.RUNNING:
        return False
    # Before its first image has its end, its model may be loading.
    return not (in_flight and begun and still_s < MOVES_S)


def why(
    standing: Standing, found: Surroundings, waited_for: Sequence[Wait], full: float
) -> tuple[WaitReason, str] | None:
    """Say why a job does not go on: the reason and a line for a person; None where it goes on, or nobody can tell.

    Args:
        standing: Where it stands; of a running job for which `is_asked` is true.
        found: What is around it.
        waited_for: What workers wait for, the longest wait first.
        full: The share of its `maxmemory` that Redis holds.
    """
    if full >= FULL:
        return WaitReason.REDIS_FULL, (
            f"Redis is full ({full:.0%} of its maxmemory), nobody can send messages: give it more memory, or delete "
            "jobs that have ended"
        )
    if _is_broken_off(standing, found, full):
        go_on = "submit it again under this name to go on, or " if standing.named else ""
        return WaitReason.SENDER_SILENT, (
            f"the program that sends its images has not been heard of for {found.sender_silent_s / 60:.0f} min: "
            f"{go_on}`gradcam cancel {standing.job}`"
        )
    if not found.alive:
        return WaitReason.NO_WORKER, "no worker is running: start `gradcam-worker`"
    if not found.readers and not standing.in_flight:
        return WaitReason.PRIORITY_UNREAD, (
            f"no worker reads the priority `{found.queue}`, {counted(found.alive, 'worker reads', 'workers read')} "
            f"others: start `gradcam-worker --queues {found.queue}`"
        )
    if standing.in_flight:
        return _in_flight(found, waited_for)
    return _not_taken(standing, found, waited_for, full)


def why_paused(job: str, last: Action | None) -> tuple[WaitReason, str]:
    """Say who paused a job and why, by what was done to it last."""
    said = "paused"
    if last is not None and last.verb == "pause":
        said += f" by {_quoted(last.who)}" if last.who else ""
        said += f" at {last.at:%Y-%m-%d %H:%M:%S} UTC"
        said += f" ({_quoted(last.reason)})" if last.reason else ""
    if last is not None and last.verb == "recover":
        by = f" by {_quoted(last.who)}" if last.who else ""
        return WaitReason.PAUSED, (
            f"is being recovered{by} since {last.at:%Y-%m-%d %H:%M:%S} UTC: if that was broken off, "
            f"`gradcam recover {job}` goes on with it"
        )
    return WaitReason.PAUSED, f"{said}: `gradcam resume {job}` goes on with it"


def _is_broken_off(standing: Standing, found: Surroundings, full: float) -> bool:
    """Whether all that was sent of a job has its end, and nobody seems to send the rest; one may wait for room."""
    is_idle = not standing.waiting and not standing.in_flight
    is_open = standing.open and full <= FULL_SHARE
    return is_idle and is_open and found.sender_silent_s > SENDER_SILENT_S


def _in_flight(found: Surroundings, waited_for: Sequence[Wait]) -> tuple[WaitReason, str] | None:
    if found.loading:
        return WaitReason.MODEL_LOADING, "its model is being loaded"
    return _servers(waited_for)


def _servers(waited_for: Sequence[Wait]) -> tuple[WaitReason, str] | None:
    for wait in waited_for:
        if wait.what != REDIS:  # the one that has just answered
            kind = WaitReason.STORE_UNWELL if wait.what == STORE else WaitReason.WORKERS_WAIT
            who, what = counted(wait.workers, "worker waits", "workers wait"), _quoted(wait.what)
            return (
                kind,
                f"{who} for {what}, {wait.longest_s:.0f} s by now",
            )
    return None


def _not_taken(
    standing: Standing, found: Surroundings, waited_for: Sequence[Wait], full: float
) -> tuple[WaitReason, str]:
    if not standing.waiting and standing.open:
        if full > FULL_SHARE:
            return WaitReason.REDIS_FULL, f"Redis is {full:.0%} full: its submission waits until there is room"
        return WaitReason.SENDING, "its images are still being sent: nothing of it waits for a worker"
    return _workers(found) or _turn(found, waited_for)


def _workers(found: Surroundings) -> tuple[WaitReason, str] | None:
    if found.faulty >= found.readers:
        who = "the only worker that reads" if found.readers == 1 else f"all {found.readers} workers that read"
        return WaitReason.WORKERS_FAULTY, f"{who} `{found.queue}` cannot work: {_quoted(found.fault)}"
    if found.refusing + found.faulty >= found.readers:
        return WaitReason.WORKERS_REFUSE, f"no worker takes it, they refuse it or are faulty: {_quoted(found.refusal)}"
    return None


def _turn(found: Surroundings, waited_for: Sequence[Wait]) -> tuple[WaitReason, str]:
    if found.delayed_s > 0:
        return WaitReason.DELAYED, f"it is in trouble, others go first for {found.delayed_s:.0f} s more"
    if found.ahead or found.in_hand:
        before = ("at least " if found.more else "") + counted(found.ahead + found.in_hand, "image")
        return WaitReason.TURN, f"waits its turn behind {before}, workers have {found.in_hand} of them"
    return _servers(waited_for) or (
        WaitReason.SOON,
        "nothing is before it: a worker takes it in a moment, or its message was lost and is sent again",
    )


def _quoted(text: str) -> str:
    """What somebody else wrote, on one line and of a bounded length."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"
