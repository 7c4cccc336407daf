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

if TYPE_CHECKING:
    from producer.jobs.table.claims import Claim

#: So many chunks are in flight even while the first still has enough images for the device.
_ALWAYS: Final = 2
_LOOK_EVERY_S: Final = 0.25


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
    claim: Claim | None = None


class Slots:
    """The chunks in flight of one process, and why it takes no more; safe to share between threads.

    A further chunk is taken when all images of those in flight are on their way. Beyond two chunks, the device must
    also be about to run out of images: chunks of a few images fill a batch together, large ones are left to others.

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
        slots = self._open.values()
        return (
            len(slots) < self._count
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
            self._changed.notify_all()

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

    def wait_until_exclusive(self, slot: Slot, meanwhile: Callable[[], None], *, limit_s: float) -> None:
        """Wait until nothing else is in flight or running.

        The other chunks never wait so: none is begun beside one that is exclusive.

        Args:
            slot: Whose chunk waits.
            meanwhile: Called again and again; what it raises ends the waiting.
            limit_s: How long a stage may take that a chunk left running which broke off.

        Raises:
            WorkerError: Such a stage hangs. Nobody else looks for it, since its chunk is gone.
        """
        since: float | None = None
        while True:
            with self._changed:
                slot.exclusive = True
                # What a chunk had begun that broke off goes on to its end; what hangs has none.
                if self._changed.wait_for(lambda: self._is_alone(slot), timeout=_LOOK_EVERY_S):
                    return
                if len(self._open) > 1:
                    since = None
                elif since is None:
                    since = time.monotonic()
                elif time.monotonic() - since > limit_s:
                    self._hanging = self._running
                    raise WorkerError("what an earlier chunk left running does not end; this process starts anew")
            meanwhile()

    def _is_alone(self, slot: Slot) -> bool:
        return list(self._open) == [slot.number] and self._running <= self._hanging

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
