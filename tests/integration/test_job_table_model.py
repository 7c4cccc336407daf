"""Random interleavings of all verbs of the job table, with repeats, stale tokens and lost replies, beside a model.

The model is plain Python in memory; after every step it and the table must agree on every bit, every counter, every
failure, on what waits and what is leased. It knows objects, too: workers write pictures before they commit, clients
that repair or delete remove them, and whatever is done has its pictures. A name has several lives; workers and clients
of an earlier one, and of an earlier generation, go on as if nothing had happened.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import redis
from budget import either
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from producer.jobs.model.errors import UnknownJob, UsageError
from producer.jobs.model.items import Chunk, Item
from producer.jobs.model.keys import QUEUE_PREFIX
from producer.jobs.model.results import Failure
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.states import TERMINAL, JobState
from producer.jobs.table.claims import Claim
from producer.jobs.table.table import JobTable
from producer.jobs.table.user_actions import Generation

if TYPE_CHECKING:
    from producer.jobs.table.claims import Finalizing

SIZE, CHUNKS, LIVE_S, DEAD_S, LIFETIME_S = 3, 3, 60.0, 0.0005, 3600.0
REASONS = ("fetch", "image")
ENDS = {str(state) for state in TERMINAL}
MAINTAINED = {"repairing", "deleting"}
SPEC = JobSpec(chunk_size=SIZE)

chunks = st.integers(0, CHUNKS - 1)
offsets = st.sets(st.integers(0, SIZE - 1))
clients = st.sampled_from(["client-a", "client-b"])


def class_of(index: int) -> str:
    return f"{index % 2} tabby"


def item(index: int) -> Item:
    return Item(uri=f"s3://b/{index}.jpg")


@dataclass
class Held:
    token: int
    claim_id: str
    dead: bool
    marks: set[int] = field(default_factory=set)


@dataclass
class Model:
    #: Who holds the job for maintenance, what it was before, and whether that client is silent for too long.
    held_by: str | None = None
    before: str = ""
    silent: bool = False
    #: Whether this holder has deleted anything of a job that is being deleted, and whether another one may have.
    deleted: bool = False
    taken_over: bool = False
    life: str = ""
    epoch: int = 0
    state: str = "running"
    closed: bool = False
    outcome: str | None = None
    generation: int = 1
    ends: int = 0
    reopening: int | None = None
    #: Index → pending, done, or the reason of its failure.
    items: dict[int, str] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)
    payload: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    leases: dict[int, Held] = field(default_factory=dict)
    suspects: dict[int, dict[int, int]] = field(default_factory=dict)
    reclaimed: dict[int, str] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return self.state in {"running", "paused"}

    @property
    def held(self) -> bool:
        return self.held_by is not None and not self.silent

    def settle(self) -> None:
        """A repair whose client died is over."""
        if self.state == "repairing" and self.silent:
            self.state, self.held_by = self.before, None

    def count(self, *words: str) -> int:
        return sum(state in words for state in self.items.values())

    def reclaim_from_dead(self, chunk: int, weight: int) -> None:
        self.suspect(chunk, self.leases.pop(chunk).marks, weight)
        self.waiting.add(chunk)

    def suspect(self, chunk: int, marks: set[int], weight: int) -> None:
        for offset in marks:
            known = self.suspects.setdefault(chunk, {})
            known[offset] = known.get(offset, 0) + (weight if len(marks) == 1 else 0)

    def finish_if_complete(self) -> None:
        if self.open and self.closed and self.reopening is None and not self.count("pending"):
            self.state = "finalizing"


class Table(RuleBasedStateMachine):
    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.table = JobTable(self.client, patience_s=1)
        self.model = Model()
        self.claims: list[Claim] = []
        self.names = 0
        self.mine: list[tuple[str, Finalizing]] = []
        self.generations: list[Generation] = []
        #: Indices whose pictures are in the store, and those that somebody else took away.
        self.objects: set[int] = set()
        self.vanished: set[int] = set()
        #: (life, token) → offsets whose pictures that holder has written.
        self.written: dict[tuple[str, int], set[int]] = {}
        #: Client → indices that it has listed, and will delete.
        self.listed: dict[str, set[int]] = {}

    @initialize(chunks=st.integers(0, CHUNKS), closed=st.booleans())
    def begin(self, chunks: int, closed: bool) -> None:
        self.create()
        self._send(chunks, closed)

    def _send(self, chunks: int, closed: bool) -> None:
        for chunk in range(chunks):
            self.add_chunk(chunk, twice=False)
        if closed:
            self.close(right=True)

    def create(self) -> None:
        created = self.table.create("job", SPEC, lifetime_s=LIFETIME_S)
        assert created.new
        again = self.table.create("job", SPEC, lifetime_s=LIFETIME_S)
        assert (again.new, again.life, again.since) == (False, created.life, created.since)
        assert created.since >= self.model.epoch
        self.model = Model(life=created.life)
        self._see_generation(1)
        self.objects, self.vanished = set(), set()

    def _see_generation(self, number: int) -> None:
        epoch = int(self.client.hget("gradcam:job:job", "epoch") or 0)
        assert epoch > self.model.epoch
        self.model.epoch, self.model.generation = epoch, number
        self.generations.append(Generation(number, self.model.life))

    def name(self, word: str) -> str:
        self.names += 1
        return f"{word}-{self.names}"

    def stale(self, data: st.DataObject) -> Claim:
        return data.draw(st.sampled_from(self.claims))

    def holds(self, claim: Claim) -> bool:
        held = self.model.leases.get(claim.chunk)
        return held is not None and held.token == claim.token and claim.life == self.model.life

    # -- the producer ---------------------------------------------------------------------------------------------

    @rule(chunk=chunks, twice=st.booleans(), held=st.booleans())
    def add_chunk(self, chunk: int, twice: bool, held: bool = False) -> None:
        """`held`: the sender takes over what is known of the chunk, which nobody can take before."""
        model, indices = self.model, range(chunk * SIZE, chunk * SIZE + SIZE)
        claim_id = self.name("claim") if held else ""
        packed = Chunk.compress(chunk, [item(index).line for index in indices])
        for _ in range(1 + twice):
            if chunk in model.added:
                assert self.table.add_chunk("job", packed) is None
            elif not model.open or model.closed:
                with pytest.raises(UsageError):
                    self.table.add_chunk("job", packed)
            else:
                assert self.table.add_chunk("job", packed, claim_id=claim_id, lease_s=LIVE_S) is not None
                model.added.add(chunk)
                model.payload.add(chunk)
                model.items.update(dict.fromkeys(indices, "pending"))
                if not held:
                    model.waiting.add(chunk)
                    continue
                claim = self.table.claim("job", chunk, SPEC, claim_id=claim_id, lease_s=LIVE_S, producer=True)
                assert claim is not None
                assert (claim.attempt, claim.pending) == (1, list(range(SIZE)))
                assert all(claim.token > one.token for one in self.claims if one.life == claim.life)
                model.leases[chunk] = Held(claim.token, claim_id, dead=False)
                self.claims.append(claim)

    @precondition(lambda self: self.model.added)
    @rule(right=st.booleans())
    def close(self, right: bool) -> None:
        count = len(self.model.added)
        here = self.table.close("job", chunks=count + (not right), items=SIZE * (count + (not right)))
        assert here == SIZE * count
        if right:
            self.model.closed = True
            self.model.finish_if_complete()

    # -- the worker -----------------------------------------------------------------------------------------------

    @rule(chunk=chunks, dead=st.booleans(), twice=st.booleans(), producer=st.booleans())
    def claim(self, chunk: int, dead: bool, twice: bool, producer: bool = False) -> None:
        model, claim_id = self.model, self.name("claim")
        held = model.leases.get(chunk)
        goes_on = model.state == "running" or (producer and model.state == "paused")
        free = goes_on and chunk in model.payload and (held is None or held.dead)
        got: list[Claim | None] = []
        for _ in range(1 + (twice and not dead)):
            lease_s = DEAD_S if dead else LIVE_S
            got.append(self.table.claim("job", chunk, SPEC, claim_id=claim_id, lease_s=lease_s, producer=producer))
        if dead:
            time.sleep(4 * DEAD_S)
        assert all((claim is not None) == free for claim in got)
        if not free:
            return
        if held is not None:
            model.reclaim_from_dead(chunk, 1)
        first = got[0]
        assert first is not None
        assert all(claim is not None and claim.token == first.token for claim in got)
        assert all(first.token > claim.token for claim in self.claims if claim.life == first.life)
        assert (first.life, first.epoch, first.generation) == (model.life, model.epoch, model.generation)
        assert first.suspects == model.suspects.get(chunk, {})
        pending = [n for n in range(SIZE) if model.items[chunk * SIZE + n] == "pending"]
        assert first.pending == pending
        assert {n: first.items[n] for n in pending} == {n: item(chunk * SIZE + n) for n in pending}
        model.waiting.discard(chunk)
        model.leases[chunk] = Held(first.token, claim_id, dead)
        self.claims.append(first)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), marked=st.none() | offsets, twice=st.booleans())
    def renew(self, data: st.DataObject, marked: set[int] | None, twice: bool) -> None:
        claim, model = self.stale(data), self.model
        right = self.holds(claim) and model.state == "running"
        for _ in range(1 + twice):
            assert self.table.renew(claim, lease_s=LIVE_S, marked=None if marked is None else sorted(marked)) == right
        if right:
            held = model.leases[claim.chunk]
            held.dead = False
            held.marks = held.marks if marked is None else set(marked)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), offsets=offsets)
    def write(self, data: st.DataObject, offsets: set[int]) -> None:
        """Pictures go to the store; also, a little late, those of a holder that has lost its lease."""
        self._write(self.stale(data), offsets)

    def _write(self, claim: Claim, offsets: set[int]) -> None:
        self.written.setdefault((claim.life, claim.token), set()).update(offsets)
        self.objects |= {claim.index(n) for n in offsets}
        self.vanished -= self.objects

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), failed=offsets, reason=st.sampled_from(REASONS), twice=st.booleans())
    def commit(self, data: st.DataObject, failed: set[int], reason: str, twice: bool) -> None:
        """What is committed as done has been written before, by whoever says so."""
        self._commit(self.stale(data), failed, reason, twice=twice)

    def _commit(self, claim: Claim, failed: set[int], reason: str, *, twice: bool) -> None:
        model = self.model
        done = set(self.written.get((claim.life, claim.token), ()))
        mine = self.holds(claim)
        taken = model.open and (claim.life, claim.epoch) == (model.life, model.epoch)
        failures = [
            Failure(index=claim.index(n), item=item(claim.index(n)), reason=reason, message="x") for n in sorted(failed)
        ]
        answers = [
            self.table.commit(claim, done={n: class_of(claim.index(n)) for n in done}, failed=failures, lease_s=LIVE_S)
            for _ in range(1 + twice)
        ]
        if not taken:
            assert answers == [None] * len(answers)
            return
        first = claim.chunk * SIZE
        model.items.update({first + n: "done" for n in done})
        if mine:
            model.items.update({first + n: reason for n in failed if model.items[first + n] == "pending"})
        here = [model.items[first + n] for n in range(SIZE)]
        if "pending" not in here:
            model.payload.discard(claim.chunk)
            model.waiting.discard(claim.chunk)
            model.leases.pop(claim.chunk, None)
            model.suspects.pop(claim.chunk, None)
            model.reclaimed.pop(claim.chunk, None)
        elif mine:
            model.leases[claim.chunk].dead = False
        model.finish_if_complete()
        last = answers[-1]
        # The end may have been reached by the first of two.
        assert last is None or last.complete == ("pending" not in here)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), twice=st.booleans())
    def release(self, data: st.DataObject, twice: bool) -> None:
        self._release(self.stale(data), twice=twice)

    def _release(self, claim: Claim, *, twice: bool) -> None:
        model = self.model
        right = self.holds(claim) and model.open
        answers = [self.table.release(claim) for _ in range(1 + twice)]
        assert (answers[0] is not None) == (right and model.state == "running")
        assert answers[1:] in ([], [None])
        if right:
            del model.leases[claim.chunk]
            model.waiting.add(claim.chunk)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), weight=st.integers(1, 4), twice=st.booleans())
    def reclaim_from_dead(self, data: st.DataObject, weight: int, twice: bool) -> None:
        claim, model = self.stale(data), self.model
        held = model.leases.get(claim.chunk)
        claim_id = data.draw(st.sampled_from([held.claim_id if held else "nobody", "another"]))
        right = held is not None and held.claim_id == claim_id and model.open
        marks = sorted(held.marks) if held else [0]
        for _ in range(1 + twice):
            self.table.reclaim_from_dead(
                "job", claim.chunk, claim_id=claim_id, weight=weight, marked=marks, life=claim.life
            )
        right = right and claim.life == model.life
        late = model.open and weight > 1 and claim.chunk in model.payload and claim.life == model.life
        if right:
            model.reclaim_from_dead(claim.chunk, weight)
            model.reclaimed[claim.chunk] = claim_id
        # What a parent saw counts also when the lease is another's by now; said twice, it counts once.
        elif late and model.reclaimed.get(claim.chunk) != claim_id:
            model.suspect(claim.chunk, set(marks), weight)
            model.reclaimed[claim.chunk] = claim_id

    # -- repair and control ---------------------------------------------------------------------------------------

    @rule()
    def reconcile(self) -> None:
        model = self.model
        found = self.table.recovery.reconcile("job")
        model.settle()
        dead = {chunk for chunk, held in model.leases.items() if held.dead}
        assert set(found.expired) == (dead if model.state == "running" else set())
        for chunk in found.expired:
            model.reclaim_from_dead(chunk, 1)

    @rule(messages=st.integers(0, 4))
    def missing_messages(self, messages: int) -> None:
        """So many messages are missing as chunks wait, less those there are."""
        model = self.model
        self.client.rpush(QUEUE_PREFIX + "default", *["m"] * (messages + 1))
        self.client.rpop(QUEUE_PREFIX + "default")
        missing = self.table.recovery.missing_messages("default", grace_s=0)
        self.client.delete(QUEUE_PREFIX + "default")
        waiting = model.waiting if model.state == "running" else set()
        assert len(missing) == max(0, len(waiting) - messages)
        assert {chunk for _, chunk in missing} <= waiting

    @rule(chunk=chunks, exact=st.booleans())
    def next_chunk(self, chunk: int, exact: bool) -> None:
        """A message is worth a chunk that waits, as long as there is one; the one it names where that is meant."""
        waiting = self.model.waiting if self.model.state == "running" else set()
        found = self.table.next_chunk("default", "job", chunk, exact=exact)
        assert (found is not None) == bool(waiting)
        assert found is None or (isinstance(found, tuple) and found[1] in waiting)
        in_trouble = self.client.hexists("gradcam:job:job", "not_before")
        if exact and chunk in waiting and not in_trouble:
            assert found == ("job", chunk)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def verdict(self, data: st.DataObject) -> None:
        """A worker says that the job cannot be done: it counts only while it holds the chunk."""
        # Most often of a chunk that is held, by whoever holds it or held it.
        held = [claim for claim in self.claims if claim.chunk in self.model.leases] or self.claims
        self._verdict(data.draw(st.sampled_from(held)))

    def _verdict(self, claim: Claim) -> None:
        model = self.model
        self.table.fail("job", "no weights", claim=claim)
        if self.holds(claim) and model.open:
            model.state, model.reopening, model.outcome = "finalizing", None, "failed"

    @rule(verb=st.sampled_from(["cancel", "pause", "resume", "fail"]), twice=st.booleans())
    def control(self, verb: str, twice: bool) -> None:
        model = self.model
        for _ in range(1 + twice):
            if verb == "fail":
                self.table.fail("job", "no weights")
            elif model.state in MAINTAINED:
                with pytest.raises(UsageError):
                    getattr(self.table.actions, verb)("job")
            else:
                getattr(self.table.actions, verb)("job")
        match verb, model.state:
            case ("cancel" | "fail", "running" | "paused"):
                model.state, model.reopening = "finalizing", None
                model.outcome = "cancelled" if verb == "cancel" else "failed"
            case "pause", "running":
                model.state = "paused"
            case "resume", "paused":
                model.state = "running"

    # -- whole stretches, so that few steps lead far --------------------------------------------------------------

    @rule(chunk=chunks, offsets=offsets, failed=offsets, commits=st.booleans())
    def work(self, chunk: int, offsets: set[int], failed: set[int], commits: bool) -> None:
        """A worker claims a chunk and writes pictures; it commits now, or perhaps much later."""
        before = len(self.claims)
        self.claim(chunk, dead=False, twice=False)
        if len(self.claims) > before:
            self._write(self.claims[-1], offsets)
            if commits:
                self._commit(self.claims[-1], failed, "fetch", twice=False)

    @rule(how=st.sampled_from(["cancel", "fail", "complete"]), closed=st.booleans())
    def run_to_the_end(self, how: str, closed: bool) -> None:
        """The job ends."""
        if closed and self.model.open:
            self.close(right=True)
        if how == "complete" and self.model.state == "paused":
            self.control("resume", twice=False)
        if how == "complete" and self.model.state == "running":
            for chunk in sorted(self.model.payload - self.model.leases.keys()):
                self.work(chunk, {0, 1}, {2}, commits=True)
        elif how != "complete":
            self.control(how, twice=False)
        if self.model.state == "finalizing":
            self._finalize("a")
            who, mine = self.mine[-1]
            self._finish(who, mine, twice=False)

    @precondition(lambda self: self.model.state in ENDS and self.model.closed)
    @rule(dies=st.booleans())
    def try_again(self, dies: bool) -> None:
        """Failed images are reopened and explained again, unless the client dies in between."""
        model = self.model
        if not model.count(*REASONS) or model.state == "cancelled":
            return
        self.retry(None, twice=False)
        for chunk in sorted(model.added):
            again = [n for n in range(SIZE) if model.items[chunk * SIZE + n] in REASONS]
            if again and not (dies and chunk):
                self._reopen(chunk, again, REASONS, self.generations[-1], twice=False)
        if not dies:
            self.reopened(twice=False)

    @precondition(lambda self: self.model.state in ENDS)
    @rule(who=clients, chunks=st.integers(1, CHUNKS), closed=st.booleans())
    def delete_all_and_submit_again(self, who: str, chunks: int, closed: bool) -> None:
        """The job and its objects are deleted, and the same images submitted under its name."""
        self.maintain(who, "deleting", dies=False)
        self.list_objects()
        self.delete_objects(who)
        self.delete(who)
        self._send(chunks, closed)

    @precondition(lambda self: self.model.state in ENDS)
    @rule(who=clients)
    def repair_all(self, who: str) -> None:
        """A client deletes what belongs to no done image, and gives the job back."""
        self.maintain(who, "repairing", dies=False)
        self.list_objects()
        self.delete_objects(who)
        self.give_back(who, incomplete=False)

    @rule(who=clients, another_life=st.booleans(), late=st.sampled_from(["commit", "verdict", "release", "renew"]))
    def much_happens_while_a_worker_is_away(self, who: str, another_life: bool, late: str) -> None:
        """A worker comes back with pictures that it wrote before the job ended, and was deleted or tried again."""
        model = self.model
        before = len(self.claims)
        for chunk in sorted(model.payload - model.leases.keys()):
            self.claim(chunk, dead=False, twice=False)
        if len(self.claims) == before:
            return
        claim = self.claims[-1]
        self._write(claim, {0, 1, 2})
        self.run_to_the_end("cancel" if another_life else "fail", closed=True)
        if model.state not in ENDS:
            return
        if another_life:
            self.delete_all_and_submit_again(who, CHUNKS, closed=True)
        else:
            self.repair_all(who)
            self.retry(None, twice=False)
        if late == "commit":
            self._commit(claim, {2}, "fetch", twice=False)
        elif late == "verdict":
            self._verdict(claim)
        elif late == "release":
            self._release(claim, twice=False)
        else:
            assert not self.table.renew(claim, lease_s=LIVE_S, marked=[0])

    @rule(who=st.sampled_from("ab"))
    def finalize(self, who: str) -> None:
        self._finalize(who)

    def _finalize(self, who: str) -> None:
        mine = self.table.finalize("job", who)
        assert mine is None or self.model.state == "finalizing"
        if mine is not None:
            self.mine.append((who, mine))

    @precondition(lambda self: self.mine)
    @rule(data=st.data(), twice=st.booleans())
    def finish(self, data: st.DataObject, twice: bool) -> None:
        """Any finalizer of any generation, also one whose job was retried meanwhile."""
        self._finish(*data.draw(st.sampled_from(self.mine)), twice=twice)

    def _finish(self, who: str, mine: Finalizing, *, twice: bool) -> None:
        model = self.model
        ended = [self.table.finish("job", who, mine) for _ in range(1 + twice)]
        assert not any(ended[1:])
        if not ended[0]:
            return
        assert model.state == "finalizing"
        assert (mine.generation, mine.life) == (model.generation, model.life)
        expected = model.outcome or ("completed_with_errors" if model.count(*REASONS) else "succeeded")
        assert mine.end == expected
        model.state, model.ends = expected, model.ends + 1
        if expected == "failed":
            model.waiting |= set(model.leases)
        else:
            model.waiting, model.payload, model.suspects, model.reclaimed = set(), set(), {}, {}
        model.leases = {}

    @precondition(lambda self: self.model.state in ENDS | MAINTAINED)
    @rule(reason=st.none() | st.sampled_from(REASONS), twice=st.booleans())
    def retry(self, reason: str | None, twice: bool) -> None:
        model, retry_id = self.model, self.name("retry")
        model.settle()
        wanted = model.count(reason) if reason else model.count(*REASONS)
        allowed = model.state != "cancelled" and model.closed
        allowed = allowed and (wanted > 0 or (model.state == "failed" and reason is None))
        allowed = allowed and model.state not in MAINTAINED
        if not allowed:
            with pytest.raises(UsageError):
                self.table.actions.retry("job", "default", retry_id=retry_id, only=reason)
            return
        for _ in range(1 + twice):
            generation = self.table.actions.retry("job", "default", retry_id=retry_id, only=reason)
            assert generation == Generation(model.generation + 1, model.life)
        model.state, model.outcome, model.reopening = "running", None, 0
        self._see_generation(model.generation + 1)

    @precondition(lambda self: self.model.state == "failed" and not self.model.closed)
    @rule(twice=st.booleans())
    def go_on_sending(self, twice: bool) -> None:
        """A submission goes on with a job that failed while it was being sent."""
        model, retry_id = self.model, self.name("submit")
        for _ in range(1 + twice):
            self.table.actions.retry("job", "default", retry_id=retry_id, mode="submit")
        model.state, model.outcome = "running", None
        self._see_generation(model.generation + 1)

    # -- two clients that repair and delete -----------------------------------------------------------------------

    @rule(who=clients, state=st.sampled_from(["repairing", "deleting"]), dies=st.booleans())
    def maintain(self, who: str, state: str, dies: bool) -> None:
        model = self.model
        taken = model.state in ENDS
        if model.state in MAINTAINED:
            mine = model.held_by == who or not model.held
            taken = mine and not (model.state == "deleting" and state == "repairing")
        lease_s = DEAD_S if dies else LIVE_S
        if not taken:
            with pytest.raises(UsageError):
                self.table.actions.maintain("job", JobState(state), who, lease_s=lease_s)
            return
        self.table.actions.maintain("job", JobState(state), who, lease_s=lease_s)
        if dies:
            time.sleep(4 * DEAD_S)
        self._hold(who, state)
        model.silent = dies
        self.listed.pop(who, None)

    def _hold(self, who: str, state: str) -> None:
        model = self.model
        if model.state not in MAINTAINED:
            model.before, model.deleted, model.taken_over = model.state, False, False
        elif model.held_by != who:
            model.taken_over = model.taken_over or model.state == "deleting"
            model.deleted = False
        model.state, model.held_by, model.silent = state, who, False

    @precondition(lambda self: self.model.held)
    @rule()
    def list_objects(self) -> None:
        """What belongs to no done image; of a job that is being deleted, all of it."""
        model = self.model
        done = {index for index, word in model.items.items() if word == "done"}
        self.listed[str(model.held_by)] = self.objects - (done if model.state == "repairing" else set())

    @rule(who=clients)
    def delete_objects(self, who: str) -> None:
        """A client deletes what it has listed, once it has made sure that the job is still its own."""
        model = self.model
        state = model.state if model.state in MAINTAINED and model.held_by == who else "repairing"
        try:
            self.table.actions.maintain("job", JobState(state), who, lease_s=LIVE_S)
        except UsageError:
            self.listed.pop(who, None)
            return
        if model.held_by != who or model.state != state:
            self.listed.pop(who, None)  # taken anew: listed anew
        self._hold(who, state)
        gone = self.listed.pop(who, set())
        model.deleted = model.deleted or (state == "deleting" and bool(gone))
        self.objects -= gone

    @precondition(lambda self: self.model.items)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """Somebody else deletes a picture."""
        index = data.draw(st.sampled_from(sorted(self.model.items)))
        self.objects.discard(index)
        self.vanished.add(index)

    @rule(who=clients, incomplete=st.booleans())
    def give_back(self, who: str, incomplete: bool) -> None:
        model = self.model
        # A client says so when it has deleted anything; what one that died did, nobody knows.
        incomplete = model.state == "deleting" and (incomplete or model.deleted)
        self.table.actions.maintained("job", who, incomplete=incomplete)
        if model.state in MAINTAINED and model.held_by == who:
            if incomplete or model.taken_over:
                model.silent = True
            else:
                model.state, model.held_by = model.before, None

    @precondition(lambda self: self.model.state == "repairing" and self.model.held)
    @rule(twice=st.booleans())
    def repair(self, twice: bool) -> None:
        """The holder goes on to a new generation, in which done images are reopened."""
        model = self.model
        who = str(model.held_by)
        if model.before == "cancelled" or not model.closed:
            with pytest.raises(UsageError):
                self.table.actions.retry("job", "default", retry_id=who, mode="repair")
            return
        # A client's id is used once; here it is one of two.
        self.client.hdel("gradcam:job:job", "retry")
        for _ in range(1 + twice):
            self.table.actions.retry("job", "default", retry_id=who, mode="repair")
        model.state, model.outcome, model.reopening, model.held_by = "running", None, 0, None
        self._see_generation(model.generation + 1)

    @precondition(lambda self: self.model.state in ENDS | MAINTAINED)
    @rule(who=clients)
    def delete(self, who: str) -> None:
        """A job is deleted, and another one made under its name."""
        model = self.model
        model.settle()
        allowed = model.state in ENDS or (model.state == "deleting" and (model.held_by == who or not model.held))
        if not allowed:
            with pytest.raises(UsageError):
                self.table.actions.delete("job", who=who)
            return
        self.table.actions.delete("job", who=who)
        assert not self.client.keys("gradcam:job:job*")
        assert self.table.recovery.active() == []
        with pytest.raises(UnknownJob):
            self.table.actions.cancel("job")
        self.create()

    @precondition(lambda self: self.model.generation > 1 and self.model.added)
    @rule(data=st.data(), twice=st.booleans())
    def reopen(self, data: st.DataObject, twice: bool) -> None:
        model = self.model
        generation = data.draw(st.sampled_from(self.generations))
        chunk = data.draw(st.sampled_from(sorted(model.added)))
        # A repair reopens done items, a retry failed ones.
        words = data.draw(st.sampled_from([REASONS, ("done",)]))
        again = [n for n in range(SIZE) if model.items[chunk * SIZE + n] in words]
        self._reopen(chunk, again, words, generation, twice=twice)

    def _reopen(
        self, chunk: int, again: list[int], words: tuple[str, ...], generation: Generation, *, twice: bool
    ) -> None:
        model = self.model
        stale = generation != Generation(model.generation, model.life)
        classes = {n: class_of(chunk * SIZE + n) if words == ("done",) else "" for n in again}
        items = self.table.queries.items_of("job", chunk) | {n: item(chunk * SIZE + n) for n in range(SIZE)}
        right = model.open and not stale and model.reopening is not None and chunk >= model.reopening
        answers = [self.table.actions.reopen("job", generation, chunk, items, classes) for _ in range(1 + twice)]
        assert (answers[0] is not None) == right
        assert answers[1:] in ([], [None])
        if not right:
            return
        model.reopening = chunk + 1
        model.items.update({chunk * SIZE + n: "pending" for n in again})
        model.payload.add(chunk)
        model.suspects.pop(chunk, None)
        model.reclaimed.pop(chunk, None)
        if chunk not in model.leases:
            model.waiting.add(chunk)

    @precondition(lambda self: self.model.generation > 1)
    @rule(twice=st.booleans())
    def reopened(self, twice: bool) -> None:
        model = self.model
        for _ in range(1 + twice):
            self.table.actions.reopened("job", Generation(model.generation, model.life))
        if model.reopening is not None:
            model.reopening = None
            model.finish_if_complete()

    # -- what is always true --------------------------------------------------------------------------------------

    @invariant()
    def table_and_model_agree(self) -> None:
        model, client = self.model, self.client
        if not client.exists("gradcam:job:job"):
            return  # before `create`
        status = self.table.queries.status("job")
        counts = (model.count("done"), model.count(*REASONS), len(model.items))
        assert (status.done, status.failed, status.total) == counts
        assert (status.state, status.generation) == (model.state, model.generation)
        words = {0: "pending", 1: "done", 2: "failed"}
        states = b"".join(piece for _, piece in self.table.queries.states("job")).ljust(CHUNKS * SIZE, b"\0")
        bits = [words[state] for state in states]
        shown = [model.items.get(n, "pending") for n in range(len(states))]
        assert bits == ["failed" if word in REASONS else word for word in shown]
        failed = {n: word for n, word in model.items.items() if word in REASONS}
        assert {failure.index: failure.reason for failure in self.table.queries.failures("job")} == failed
        assert status.failures == {word: model.count(word) for word in REASONS if model.count(word)}
        names = {word: self._members(word) for word in ("waiting", "leases", "items")}
        assert names == {"waiting": model.waiting, "leases": set(model.leases), "items": model.payload}
        done = Counter(class_of(n) for n, word in model.items.items() if word == "done")
        assert self.table.queries.histogram("job") == dict(done)
        assert client.hget("gradcam:job:job", "ends") == str(model.ends).encode()
        if model.state not in MAINTAINED:
            assert (self.table.recovery.active() == []) == (model.state in ENDS)
        fields = client.hmget("gradcam:job:job", "n_chunks", "n_open")
        assert [int(number or 0) for number in fields] == [len(model.added), len(model.payload)]
        assert client.hget("gradcam:job:job", "damaged") is None

    def _members(self, part: str) -> set[int]:
        key = f"gradcam:job:job:{part}"
        found: Any = self.client.hkeys(key) if part == "items" else self.client.zrange(key, 0, -1)
        return {int(name) for name in found}

    @invariant()
    def done_means_that_pictures_are_there(self) -> None:
        if self.model.state == "deleting":
            return
        done = {index for index, word in self.model.items.items() if word == "done"}
        assert done <= self.objects | self.vanished

    @invariant()
    def every_key_of_an_ended_job_has_a_lifetime_and_no_other_key_has_one(self) -> None:
        for key in self.client.scan_iter("gradcam:job:job*"):
            if key.endswith(b":history"):
                assert self.client.ttl(key) > 0, key  # workers of 0.3.0, which know of none, may end its job
            elif not key.endswith(b":finalizer"):
                assert (self.client.ttl(key) > 0) == (self.model.state in ENDS | MAINTAINED), key


def test_whatever_happens_in_whichever_order_counters_equal_the_bits(redis_client: redis.Redis) -> None:
    Table.client = redis_client
    run_state_machine_as_test(
        Table,
        settings=settings(
            max_examples=either(40, 80), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
