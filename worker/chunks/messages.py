"""Messages: each lets a worker take one waiting chunk of its priority; what nobody here can use goes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from producer.jobs.model.errors import ServiceError, UnreadableJob
from producer.jobs.table.claims import OnlyRefusedJobs

if TYPE_CHECKING:
    from producer.jobs.broker.celery_app import Pointer
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.table import JobTable

#: Called with queue, job, chunk and the time published.
Publish = Callable[[str, str, int, float], None]
#: Gives the next message and its queue, None when there is none.
Pop = Callable[[], "tuple[str, Pointer] | None"]


@dataclass(frozen=True)
class Message:
    """What a message says; it is untrusted, and old or doubled ones harm nothing."""

    queue: str
    job: str
    chunk: int


class Messages:
    """Reads messages beside Celery, asks the job table which chunk each is good for, and gives back what is not ours.

    Args:
        table: The job table.
        publish: Sends a message.
        pop: Reads the next one.
        queues: The priorities that this worker reads.
        worker: Its name.
        passed_over: Gives the jobs of which this process takes no chunk now.
    """

    def __init__(
        self,
        table: JobTable,
        publish: Publish,
        pop: Pop,
        *,
        queues: Sequence[str],
        worker: str,
        passed_over: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._table, self._publish, self._pop, self._queues, self._worker = table, publish, pop, queues, worker
        self._passed_over = passed_over

    def next(self) -> Message | None:
        """The next message; None when there is none.

        Raises:
            Exception: Whatever a broken message brings out.
        """
        try:
            found = self._pop()
        except ServiceError:
            return None  # a Redis that is away is a fault that the chunk in flight will tell
        return None if found is None else Message(found[0], found[1].job, found[1].chunk)

    def chunk_for(self, message: Message) -> tuple[str, int] | OnlyRefusedJobs | None:
        """The chunk that a message lets this worker take, as job and number.

        Returns:
            None where nothing waits; `OnlyRefusedJobs` where all that waits is of jobs that this worker leaves to
            others: then the message was given back.
        """
        exact = message.queue == "recovery"
        found = self._next_chunk(message.queue, message, exact=exact)
        if not isinstance(found, OnlyRefusedJobs):
            return found
        left = found
        self.give_back(Message(left.queue, message.job, message.chunk))
        # Another priority may have something: else its messages would wait behind these for ever.
        for queue in self._queues:
            if queue == left.queue:
                continue
            found = self._next_chunk(queue, message, exact=False)
            if isinstance(found, tuple):
                return found
        return left

    def _next_chunk(self, queue: str, message: Message, *, exact: bool) -> tuple[str, int] | OnlyRefusedJobs | None:
        return self._table.next_chunk(
            queue, message.job, message.chunk, exact=exact, worker=self._worker, passed_over=self._passed_over()
        )

    def give_back(self, message: Message) -> None:
        """Send a message again, for others; one that cannot be sent now is a lost one, and the reconciler finds it."""
        with suppress(ServiceError):
            self._publish(message.queue, message.job, message.chunk, self._table.registry.now())

    def release(self, claim: Claim, queue: str = "recovery") -> None:
        """Give a chunk back, as far as it is not complete, with a message.

        One that cannot be given back is free when its lease runs out.
        """
        with suppress(ServiceError, UnreadableJob):
            published_at = self._table.release(claim)
            if published_at is not None:
                self._publish(queue, claim.job, claim.chunk, published_at)

    def release_all(self, claims: Sequence[Claim], *, within_s: float) -> None:
        """Give chunks back at the same time, waiting no longer than that."""
        threads = [threading.Thread(target=self.release, args=(claim,), daemon=True) for claim in claims]
        for thread in threads:
            thread.start()
        until = time.monotonic() + within_s
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
