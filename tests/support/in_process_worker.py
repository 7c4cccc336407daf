"""A worker in this process: real claims, leases, manifests, shards and commits, and a few bytes for each picture.

It has no network, so that thousands of small jobs go through it in minutes, and a test can stop it between any two
steps.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer.jobs.broker import celery_app
from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, JobError, StoreError, WorkerError
from producer.jobs.model.items import Item
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.states import JobState
from producer.jobs.store.finalize import finalize
from worker.chunks.chunk import Ended
from worker.chunks.lease import Lease, LeaseLost
from worker.chunks.recorder import ResultRecorder
from worker.chunks.shard import Shard
from worker.chunks.stages import shard_of
from worker.recover.reconciler import reconcile

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.jobs.table.claims import Claim

LEASE_S = 60.0


@dataclass
class Chunk:
    """A chunk in flight."""

    claim: Claim
    lease: Lease
    recorder: ResultRecorder
    shard: Shard | None
    open: ExitStack = field(default_factory=ExitStack)
    #: Everything of it that was written, not recorded yet.
    ended: list[Ended] = field(default_factory=list)


class InProcessWorker:
    """Takes chunks through their steps, one step a call.

    Args:
        client: Whose job table and store.
        name: The worker's.
        lease_s: How long its chunks stay its own when it dies.
    """

    def __init__(self, client: Client, name: str = "hand", *, lease_s: float = LEASE_S) -> None:
        self.table, self.storage = client.table, client.storage
        self.name, self._lease_s = name, lease_s
        #: Addresses that cannot be fetched.
        self.gone: set[str] = set()
        self._claims = 0

    def claim(self, job: str, chunk: int) -> Chunk | None:
        """Claim a chunk; None when there is nothing to do."""
        found = self.table.queries.spec(job)
        if found is None or found[1] is not JobState.RUNNING:
            return None
        self._claims += 1
        claim_id = f"{self.name}/{self._claims}"
        claim = self.table.claim(job, chunk, found[0], claim_id=claim_id, lease_s=self._lease_s)
        if claim is None:
            return None
        lease = Lease(self.table, claim, claim_id=claim_id, lease_s=self._lease_s)
        made = Chunk(claim, lease, None, None)  # type: ignore[arg-type]
        made.open.enter_context(lease)
        if claim.spec.pack == "tar":
            made.shard = made.open.enter_context(Shard(self.storage, shard_of(self.storage, claim), hold=lease.hold))
        made.recorder = ResultRecorder(
            self.table,
            self.storage,
            claim,
            lease,
            lease_s=self._lease_s,
            commit_every_s=60,
            shard=made.shard,
        )
        return made

    def write(self, chunk: Chunk, offset: int) -> None:
        """Explain an image: its pictures go to the store, or into the shard."""
        claim = chunk.claim
        item, index = claim.items[offset], claim.index(offset)
        if item.uri in self.gone:
            result = Result(index=index, uri=item.uri, id=item.id, state="failed", reason="fetch", message="gone")
            failure = Failure(index=index, item=item, reason="fetch", message="gone", attempts=claim.attempt)
            chunk.ended.append(Ended(offset, result, failure))
            return
        chunk.lease.hold()
        content = f"picture of {item.uri}".encode()
        if chunk.shard is None:
            name = keys.picture_name("x", claim.spec.network, "cam", claim.spec.format)
            key = keys.picture(self.storage.prefix, claim.job, index, name)
            self.storage.put(key, content)
            chunk.ended.append(Ended(offset, _done(index, item, key), None))
            return
        member = keys.member(index, f"cam.{claim.spec.format}")
        result = _done(index, item, keys.in_shard(chunk.shard.key, member))
        chunk.ended.append(Ended(offset, result, None, {member: content}))

    def record(self, chunk: Chunk) -> bool:
        """Write the manifest and commit; whether the chunk is complete.

        Raises:
            LeaseLost: The job takes no more.
        """
        for ended in chunk.ended:
            chunk.recorder.record(ended)
        chunk.ended = []
        chunk.recorder.commit()
        return chunk.recorder.complete

    def release(self, chunk: Chunk) -> None:
        """Give the chunk back, as far as it is not complete."""
        chunk.open.close()
        self.table.release(chunk.claim)

    def die(self, chunk: Chunk) -> None:
        """Stop renewing the lease, and say nothing to anybody."""
        chunk.open.close()

    def explain(self, job: str, chunk: int) -> bool:
        """A chunk from claim to commit; False when there was nothing to do."""
        made = self.claim(job, chunk)
        if made is None:
            return False
        for offset in made.claim.pending:
            self.write(made, offset)
        self.record(made)
        self.release(made)
        finalize(self.table, self.storage, job, self.name)
        return True

    def explain_all(self, job: str) -> None:
        """Every chunk of a job, and its end."""
        for chunk in self.table.queries.chunks(job):
            self.explain(job, chunk)
        finalize(self.table, self.storage, job, self.name)


def _done(index: int, item: Item, address: str) -> Result:
    return Result(index=index, uri=item.uri, id=item.id, state="done", class_id=1, objects={"cam": address})


class BackgroundWorker(threading.Thread):
    """Works off whatever comes, slowly, and reconciles; now and then it dies with a chunk in flight."""

    def __init__(self, client: Client, name: str, dice: random.Random, *, lease_s: float, pause_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self.hands = InProcessWorker(client, name, lease_s=lease_s)
        self._table, self._storage = client.table, client.storage
        self._dice, self._pause_s = dice, pause_s
        self._over = threading.Event()
        #: How many times it shall die with a chunk in flight.
        self.deaths = 0
        #: What it did not expect.
        self.problems: list[str] = []

    def stop(self) -> None:
        """End after the chunk in flight."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Go on until stopped."""
        reconciled = 0.0
        while not self._over.is_set():
            try:
                if time.monotonic() - reconciled > 0.1:
                    reconciled = time.monotonic()
                    self._reconcile()
                if not self._next():
                    time.sleep(0.005)
            except LeaseLost:
                continue
            except (JobError, WorkerError, StoreError) as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}")

    def _reconcile(self) -> None:
        def publish(_queue: str, job: str, chunk: int, _at: float) -> None:
            self._messages.append((job, chunk))

        reconcile(
            self._table,
            self._storage,
            lambda job, chunk, at: publish("recovery", job, chunk, at),
            publish=publish,
            who=self.name,
            grace_s=0.2,
        )

    _messages: list[tuple[str, int]] = []  # noqa: RUF012 - the thread's own

    def _next(self) -> bool:
        message = celery_app.pop_message(self._table, ("default",))
        pointer = (message[1].job, message[1].chunk) if message else self._messages.pop() if self._messages else None
        if pointer is None:
            return False
        turn = self._table.next_chunk("default", *pointer, exact=False)
        if not isinstance(turn, tuple):
            return True
        chunk = self.hands.claim(*turn)
        if chunk is None:
            return True
        try:
            for offset in chunk.claim.pending:
                self._nap()
                self.hands.write(chunk, offset)
            self._nap()
            if self.deaths > 0:
                self.deaths -= 1
                self.hands.die(chunk)
                return True
            self.hands.record(chunk)
            self._nap()
        except LeaseLost:
            pass
        finally:
            chunk.open.close()
        with suppress(GradcamError):
            self.hands.table.release(chunk.claim)
        finalize(self._table, self._storage, turn[0], self.name)
        return True

    def _nap(self) -> None:
        time.sleep(self._dice.uniform(0, self._pause_s))
