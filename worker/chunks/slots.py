"""What a process has in flight, what must run alone, and whether it begins anything more: one owner, one lock."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import WorkerError
from producer.jobs.model.spec import PRIORITIES

if TYPE_CHECKING:
    from producer.jobs.table.claims import Claim

#: So many chunks are in flight even while the first still has enough images for the device.
_ALWAYS: Final = 2
_LOOK_EVERY_S: Final = 0.25
#: So many chunks at most wait for the weights of their models to be fetched; the other places are for chunks at work.
_MOST_FETCHING: Final = 4
#: From then on a fetch is one that takes time, and other chunks are begun beside it.
_FETCHES_LONG_S: Final = 1.0


@dataclass(eq=False)
class Slot:
    """The place of one chunk in flight. Only `Slots` changes it."""

    #: Which of the process's busy files is its own.
    number: int
    #: The lower, the earlier it was taken; the device computes the lowest first.
    order: int
    #: What it claims its chunk with.
    claim_id: str
    #: Whether all its images are on their way.
    all_dispatched: bool = False
    #: Whether nothing may be begun beside it: an image of it, or its model, may have killed a process.
    exclusive: bool = False
    #: Whether it waits until nothing else is in flight.
    waits: bool = False
    #: Since when the weights of its model are fetched, in seconds of the monotonic clock; None where they are not.
    fetching_since: float | None = None
    #: Whether that shall end, for a chunk of a higher priority.
    gives_way: bool = False
    claim: Claim | None = None

    @property
    def fetching(self) -> bool:
        """Whether the weights of its model are being fetched."""
        return self.fetching_since is not None


class Slots:
    """The chunks in flight of one process, and why it takes no more; safe to share between threads.

    A further chunk is taken when all images of those in flight are on their way. Beyond two chunks, the device must
    also be about to run out of images: chunks of a few images fill a batch together, large ones are left to others.
    A chunk whose weights take long to be fetched is in nobody's way meanwhile; four may be fetched for at a time.

    Args:
        count: The most chunks in flight.
        drained: Whether this process was told to stop from outside.
        hungry: Whether fewer images are on their way to the device than one batch has.
    """

    def __init__(self, count: int, *, drained: Callable[[], bool], hungry: Callable[[], bool]) -> None:
        self._count, self._drained, self._hungry = count, drained, hungry
        self._changed = threading.Condition()
        self._orders = itertools.count()
        self._open: dict[int, Slot] = {}
        #: How many stages of images and batches are running, also of chunks that broke off.
        self._running = 0
        #: How many threads an image keeps from ever ending.
        self._hanging = 0
        self._paused_until = 0.0
        self._retires: str | None = None
        self._worn_out: str | None = None
        self._told = False
        #: Jobs whose weights are to be fetched when others have been.
        self._postponed: set[str] = set()

    # -- whether anything is begun ---------------------------------------------------------------------------------

    def stopping(self) -> bool:
        """Whether this process comes to an end: it was told to, or it makes way for a new one."""
        with self._changed:
            return self._is_stopping()

    def told_to_stop(self) -> bool:
        """Whether it was told to from outside."""
        with self._changed:
            return self._is_told_to_stop()

    def retire(self, why: str) -> None:
        """Make way for a new process now: nothing more is begun, not even of the chunks in flight."""
        with self._changed:
            self._retires = self._retires or why
            self._changed.notify_all()

    def wear_out(self, why: str) -> None:
        """Make way for a new process when the chunks in flight are done."""
        with self._changed:
            self._worn_out = self._worn_out or why
            self._changed.notify_all()

    def why_it_ends(self) -> str | None:
        """Why this process makes way for a new one; None when it does not."""
        with self._changed:
            return self._retires or self._worn_out

    def pause(self, seconds: float) -> None:
        """Begin nothing for a while; a pause that lasts longer stays."""
        with self._changed:
            self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def paused(self) -> bool:
        """Whether nothing is begun for a while."""
        with self._changed:
            return self._is_paused()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether another chunk may be begun, waiting for it while one is in flight."""
        with self._changed:
            if self._open:
                self._changed.wait_for(self._has_room, timeout_s)
            return self._has_room()

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait for a change while there is room for another chunk, but no message for it."""
        with self._changed:
            if self._open and self._has_room():
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        """Look again whether there is room: images have left for the device."""
        with self._changed:
            self._changed.notify_all()

    def _has_room(self) -> bool:
        long_ago = time.monotonic() - _FETCHES_LONG_S
        slots = [slot for slot in self._open.values() if slot.fetching_since is None or slot.fetching_since > long_ago]
        return (
            len(self._open) < self._count
            and all(slot.all_dispatched and not slot.exclusive for slot in slots)
            and (len(slots) < _ALWAYS or self._hungry())
            and self._worn_out is None
            and not self._is_paused()
            and not self._is_stopping()
        )

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _is_stopping(self) -> bool:
        return self._retires is not None or self._is_told_to_stop()

    def _is_told_to_stop(self) -> bool:
        # Once told, for ever: what was dropped for it is not taken up again, should the file be tidied away.
        self._told = self._told or self._drained()
        return self._told

    # -- chunks in flight ------------------------------------------------------------------------------------------

    def take(self, delivery: str) -> Slot:
        """Take a place for a chunk.

        Args:
            delivery: What its claim id begins with.
        """
        with self._changed:
            number = next(number for number in range(self._count) if number not in self._open)
            order = next(self._orders)
            slot = self._open[number] = Slot(number, order, f"{delivery}/{order}")
            return slot

    def free(self, slot: Slot) -> None:
        """Give a place back."""
        with self._changed:
            del self._open[slot.number]
            self._fetched(slot)

    def claimed(self, slot: Slot, claim: Claim) -> None:
        """Take note of the chunk in a place; one with suspects runs alone."""
        with self._changed:
            slot.claim, slot.exclusive = claim, bool(claim.suspects)

    def all_dispatched(self, slot: Slot) -> None:
        """All images of a chunk are on their way: another chunk may be begun."""
        with self._changed:
            slot.all_dispatched = True
            self._changed.notify_all()

    def claims(self) -> list[Claim]:
        """The chunks in flight."""
        with self._changed:
            return [slot.claim for slot in self._open.values() if slot.claim is not None]

    def empty(self) -> bool:
        """Whether no chunk is in flight."""
        with self._changed:
            return not self._open

    # -- fetching weights ------------------------------------------------------------------------------------------

    def begin_fetch(self, slot: Slot) -> bool:
        """Whether the weights of a chunk's model may be fetched now; else its job is left alone until others have been.

        One of a lower priority gives way.
        """
        with self._changed:
            fetching = [each for each in self._open.values() if each.fetching and not each.gives_way]
            if len(fetching) >= _MOST_FETCHING:
                last = max(fetching, key=_rank)
                if _rank(last)[0] <= _rank(slot)[0]:
                    self._postpone(slot)
                    return False
                last.gives_way = True
                self._postpone(last)
            slot.fetching_since = time.monotonic()
            return True

    def gives_way(self, slot: Slot) -> bool:
        """Whether a chunk's fetch shall end, as one of a higher priority has come."""
        with self._changed:
            return slot.gives_way

    def end_fetch(self, slot: Slot, meanwhile: Callable[[], None]) -> None:
        """The weights are there: the chunk goes on, as soon as none runs that must be alone.

        Args:
            slot: The chunk's.
            meanwhile: Called again and again; what it raises ends the waiting.
        """
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._may_go_on(slot), timeout=_LOOK_EVERY_S):
                    self._fetched(slot)
                    return
            meanwhile()

    def passed_over(self) -> list[str]:
        """The jobs of which no chunk is taken now: their weights are being fetched, or others' are."""
        with self._changed:
            fetching = {slot.claim.job for slot in self._open.values() if slot.fetching and slot.claim is not None}
            return sorted(fetching | self._postponed)

    def _may_go_on(self, slot: Slot) -> bool:
        return not any(each.exclusive and not each.fetching for each in self._open.values() if each is not slot)

    def _postpone(self, slot: Slot) -> None:
        if slot.claim is not None:
            self._postponed.add(slot.claim.job)

    def _fetched(self, slot: Slot) -> None:
        if slot.fetching:
            slot.fetching_since = None
            # One that gave way left its place to another.
            if not slot.gives_way:
                self._postponed.clear()
        self._changed.notify_all()

    # -- alone -----------------------------------------------------------------------------------------------------

    def wait_until_exclusive(self, slot: Slot, meanwhile: Callable[[], None], *, limit_s: float) -> None:
        """Wait until nothing else is in flight or running.

        None is begun beside one that is exclusive. Of several that wait, as weights were fetched for one of them, the
        one that was taken first goes first.

        Args:
            slot: Whose chunk waits.
            meanwhile: Called again and again; what it raises ends the waiting.
            limit_s: How long a stage may take that a chunk left running which broke off.

        Raises:
            WorkerError: Such a stage hangs. Nobody else looks for it, since its chunk is gone.
        """
        slot.waits = True
        try:
            self._wait_until_exclusive(slot, meanwhile, limit_s)
        finally:
            slot.waits = False

    def _wait_until_exclusive(self, slot: Slot, meanwhile: Callable[[], None], limit_s: float) -> None:
        since: float | None = None
        while True:
            with self._changed:
                slot.exclusive = True
                # What a chunk had begun that broke off goes on to its end; what hangs has none.
                if self._changed.wait_for(lambda: self._is_alone(slot), timeout=_LOOK_EVERY_S):
                    return
                if self._others(slot):
                    since = None
                elif since is None:
                    since = time.monotonic()
                elif time.monotonic() - since > limit_s:
                    self._hanging = self._running
                    raise WorkerError("what an earlier chunk left running does not end; this process starts anew")
            meanwhile()

    def _is_alone(self, slot: Slot) -> bool:
        return not self._others(slot) and self._running <= self._hanging

    def _others(self, slot: Slot) -> list[Slot]:
        """The chunks that a chunk which must be alone waits for."""
        return [
            each
            for each in self._open.values()
            if each is not slot and not each.fetching and not (each.waits and each.order > slot.order)
        ]

    # -- stages ----------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a stage of an image or of a batch while it runs."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                if self._running <= self._hanging:
                    self._changed.notify_all()

    def hangs(self) -> int:
        """Count a thread that an image keeps from ever ending; how many there are."""
        with self._changed:
            self._hanging += 1
            return self._hanging

    def hanging(self) -> int:
        """How many threads an image keeps from ever ending."""
        with self._changed:
            return self._hanging


def _rank(slot: Slot) -> tuple[int, int]:
    """How late a chunk comes: by its job's priority, then by when it was taken."""
    return (0 if slot.claim is None else PRIORITIES.index(slot.claim.spec.queue), slot.order)
