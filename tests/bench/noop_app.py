"""A Celery worker that claims and commits and computes nothing: what the orchestration itself can carry."""

from __future__ import annotations

from producer.jobs.broker import celery_app
from producer.jobs.model.settings import Connections, read
from producer.jobs.table.redis_scripts import connect
from producer.jobs.table.table import JobTable
from worker import tasks
from worker.chunks.messages import Message

LEASE_S = 30.0


class Noop:
    """In place of `worker.chunks.consumer.ChunkConsumer`: the same calls of the job table, and nothing between them."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def consume(self, message: Message, claim_id: str) -> int:
        """Work at the chunk that a message lets us take; how many images."""
        exact = message.queue == "recovery"
        turn = self._table.next_chunk(message.queue, message.job, message.chunk, exact=exact)
        if not isinstance(turn, tuple):
            return 0
        found = self._table.queries.spec(turn[0])
        assert found is not None
        claim = self._table.claim(*turn, found[0], claim_id=claim_id, lease_s=LEASE_S)
        if claim is None:
            return 0
        self._table.renew(claim, lease_s=LEASE_S, marked=claim.pending[:16])
        done = dict.fromkeys(claim.pending, "281 tabby")
        self._table.commit(claim, done=done, failed=[], lease_s=LEASE_S, seconds={"explain": 1.0})
        return len(claim.pending)


_connections = read(Connections)
app = celery_app.make_app(_connections.redis_url.get_secret_value())
app.conf.include = ["noop_app"]
_noop = Noop(JobTable(connect(_connections)))
tasks.register(app, "noop", lambda: _noop)
