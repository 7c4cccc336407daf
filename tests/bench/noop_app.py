"""A Celery worker that claims and commits and computes nothing: what the orchestration itself can carry."""

from __future__ import annotations

from typing import cast

from producer.jobs.broker import celery_app
from producer.jobs.model.settings import Connections, read
from producer.jobs.table.redis_scripts import connect
from producer.jobs.table.table import JobTable
from worker import tasks
from worker.chunks.consumer import Work

LEASE_S = 30.0


class Noop:
    """In place of `worker.chunks.consumer.Work`: the same calls of the job table, and nothing between them."""

    def __init__(self, table: JobTable) -> None:
        self._table = table

    def work(self, name: str, job: str, chunk: int, claim_id: str) -> int:
        """Work at the chunk whose turn it is; how many images."""
        turn = self._table.next_chunk(name, job, chunk, exact=name == "recovery")
        if turn is None:
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
tasks.register(app, "noop", lambda: cast("Work", _noop))
