"""The one reader of manifests beside the real job table: it says what the bits say, whatever happened on the way."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from budget import either
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.jobs.model import keys
from producer.jobs.model.items import Chunk, Item
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.maintenance.retry import RetryItem, reopen, retry_failed
from producer.output.manifest import ChunkRecords

if TYPE_CHECKING:
    import redis

SIZE, JOB, DEAD_S, LIVE_S = 3, "job", 0.0005, 60.0
SPEC = JobSpec(chunk_size=SIZE)
ITEMS = [Item(uri=f"s3://b/{index}.jpg") for index in range(SIZE)]
WORDS = {ItemState.DONE: "done", ItemState.FAILED: "failed"}

#: Of a chunk's images some end as done and some as failed; the rest stays pending.
ends = st.tuples(*[st.sampled_from(["", "", "done", "failed"])] * SIZE)
#: Who claims (and is dead at once, or lives), who of all holders so far writes a part and commits it (or dies between
#: the two), and what users do.
steps = st.one_of(
    st.tuples(st.just("claim"), st.booleans()),
    st.tuples(st.just("record"), st.integers(0, 9), ends, st.booleans()),
    st.tuples(st.just("work"), st.tuples(*[st.sampled_from(["done", "failed"])] * SIZE)),
    st.tuples(st.just("retry")),
    st.tuples(st.just("repair"), st.sets(st.integers(0, SIZE - 1))),
)


class Job:
    """One chunk of one job, and the parts of its manifest, in memory."""

    def __init__(self, table: JobTable) -> None:
        self.table = table
        self.claims: list[Claim] = []
        self.parts: list[tuple[keys.ManifestPart, str, bytes]] = []
        #: Indices with a record that nobody committed.
        self.uncommitted: set[int] = set()
        table.create(JOB, SPEC, lifetime_s=60)
        table.add_chunk(JOB, Chunk.compress(0, [item.line for item in ITEMS]))
        table.close(JOB, chunks=1, items=SIZE)

    def claim(self, dead: bool) -> None:
        lease_s = DEAD_S if dead else LIVE_S
        claim = self.table.claim(JOB, 0, SPEC, claim_id=uuid.uuid4().hex, lease_s=lease_s)
        if claim is not None:
            self.claims.append(claim)

    def record(self, who: int, ends: tuple[str, ...], commits: bool) -> None:
        if not self.claims or not any(ends):
            return
        claim = self.claims[who % len(self.claims)]
        key = keys.manifest("p", JOB, 0, claim.token, len(self.parts), claim.epoch)
        lines = [
            Result(index=n, uri=ITEMS[n].uri, state="done" if end == "done" else "failed", id=key).line
            for n, end in enumerate(ends)
            if end
        ]
        part = keys.manifest_part(key)
        assert part is not None
        self.parts.append((part, key, "\n".join(lines).encode()))
        done = [n for n, end in enumerate(ends) if end == "done"]
        failed = [
            Failure(index=n, item=ITEMS[n], reason="fetch", message="gone")
            for n, end in enumerate(ends)
            if end == "failed"
        ]
        if not commits or self.table.commit(claim, done=done, failed=failed, lease_s=LIVE_S) is None:
            self.uncommitted |= {n for n, end in enumerate(ends) if end}
        self.end()

    def work(self, ends: tuple[str, ...]) -> None:
        """A new holder works everything off that is pending."""
        before = len(self.claims)
        self.claim(False)
        if len(self.claims) > before:
            pending = self.claims[-1].pending
            self.record(len(self.claims) - 1, tuple(end if n in pending else "" for n, end in enumerate(ends)), True)

    def end(self) -> None:
        mine = self.table.finalize(JOB, "me")
        if mine is not None:
            self.table.finish(JOB, "me", mine)

    def retry(self) -> None:
        status = self.table.queries.status(JOB)
        if status.ended and status.failed:
            retry_failed(self.table, lambda chunk, at: None, JOB, "default")

    def repair(self, indices: set[int]) -> None:
        if self.table.queries.status(JOB).ended and indices:
            self.table.actions.maintain(JOB, JobState.REPAIRING, me := uuid.uuid4().hex)
            generation = self.table.actions.retry(JOB, "default", retry_id=me, mode="repair")
            reopen(
                self.table, lambda chunk, at: None, JOB, generation, [RetryItem(n, ITEMS[n]) for n in sorted(indices)]
            )

    def read(self, states: bytes | None) -> ChunkRecords:
        chunk = ChunkRecords(0, 0, states)
        for part, key, content in sorted(self.parts):
            chunk.add(key, part, content, SIZE)
        return chunk

    def check(self) -> None:
        states = self.table.queries.states_at(JOB, 0, SIZE).ljust(SIZE, b"\0")
        status = self.table.queries.status(JOB)
        known, alone = self.read(states), self.read(None)
        assert known.unknown() == 0  # what the bits call ended has been written before
        counts = [sum(result.state == word for result in known.results()) for word in ("done", "failed")]
        assert counts == [status.done, status.failed]
        for index, state in enumerate(states):
            result, rebuilt = known.result(index), alone.result(index)
            assert (None if result is None else result.state) == WORDS.get(ItemState(state))
            if state and index not in self.uncommitted:
                assert rebuilt is not None
                assert rebuilt.state == WORDS[ItemState(state)]


@given(st.lists(steps, max_size=25))
@settings(
    deadline=None,
    max_examples=either(50, 150),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_the_reader_says_what_the_bits_say_with_the_table_and_after_a_wipe(
    redis_client: redis.Redis, todo: list[tuple[object, ...]]
) -> None:
    redis_client.flushdb()
    job = Job(JobTable(redis_client))
    for verb, *arguments in todo:
        getattr(job, str(verb))(*arguments)
        job.check()
