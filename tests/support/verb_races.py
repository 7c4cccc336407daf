"""Races of two verbs on one small job: what each client sees is a sentence, and done means that pictures are there.

Each round submits a job under a name, lets two verbs run at it from two threads at random moments, with two workers in
this process and a store that is slow, then lets everything come to rest and looks at what is left.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from in_process_worker import BackgroundWorker

from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, UnknownJob, UsageError
from producer.jobs.model.states import ItemState, JobState

if TYPE_CHECKING:
    from fault_proxy import HttpFaultProxy

    from producer.client.client import Client

IMAGES: Final = tuple(f"s3://photos/{number}.jpg" for number in range(6))
#: These cannot be fetched at first.
GONE: Final = frozenset({IMAGES[1], IMAGES[4]})
_PLAIN: Final = {"chunk_size": 2, "outputs": ["cam"], "network": "resnet18"}
_LEASE_S, _PAUSE_S, _LATEST_S, _SLOW_S = 1.0, 0.004, 0.08, 0.004
_REST_WITHIN_S: Final = 20.0


@dataclass
class Round:
    """One race, and what came of it."""

    number: int
    first: str
    second: str
    pack: str
    began: str
    problems: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """What came of many rounds."""

    rounds: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[Round] = field(default_factory=list)


def race(client: Client, proxy: HttpFaultProxy, numbers: Iterable[int], *, seed: int) -> Iterator[Round]:
    """Run rounds; each one is decided by the seed and its number alone, less what the machine does."""
    pairs = list(itertools.product(VERBS, VERBS))
    for number in numbers:
        dice = random.Random(f"{seed}/{number}")
        one, other = pairs[number % len(pairs)]
        found = Round(number, one, other, dice.choice(["none", "tar"]), dice.choice(["running", "ended", "vanished"]))
        _Race(client, proxy, found, dice).run()
        yield found


class _Race:
    def __init__(self, client: Client, proxy: HttpFaultProxy, round_: Round, dice: random.Random) -> None:
        self.client, self.proxy, self.round, self.dice = client, proxy, round_, dice
        self.job = f"race-{round_.number}"
        self.workers = [
            BackgroundWorker(client, f"worker-{n}", random.Random(dice.random()), lease_s=_LEASE_S, pause_s=_PAUSE_S)
            for n in range(2)
        ]

    def run(self) -> None:
        self.proxy.passing()
        self.client.table.redis.flushdb()
        self.submit()
        for worker in self.workers:
            worker.hands.gone = set(GONE)
            worker.start()
        try:
            if self.round.began != "running":
                self._until_rest()
            for worker in self.workers:
                worker.hands.gone = set()
            if self.round.began == "vanished":
                self.client.storage.delete(self._pictures()[: self.dice.randint(1, 3)])
            self.proxy.delay(_SLOW_S)
            threads = [
                threading.Thread(target=self._do, args=(verb,)) for verb in (self.round.first, self.round.second)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.proxy.passing()
            self._until_rest()
            self._check()
        except Exception:
            self.round.problems.append(traceback.format_exc(limit=-4))
        finally:
            self.proxy.passing()
            for worker in self.workers:
                worker.stop()
                self.round.problems += worker.problems
        with suppress(GradcamError):
            self.client.cancel(self.job)
        with suppress(GradcamError):
            self.client.delete(self.job, objects=True)

    # -- verbs -------------------------------------------------------------------------------------------------------

    def _do(self, verb: str) -> None:
        time.sleep(self.dice.uniform(0, _LATEST_S))
        try:
            VERBS[verb](self)
        except UsageError:
            pass  # a sentence, which says why not
        except Exception:
            self.round.problems.append(f"{verb}: {traceback.format_exc(limit=-4)}")

    def submit(self) -> None:
        """As the user did at first."""
        self.client.submit(IMAGES, name=self.job, pack=self.round.pack, **_PLAIN)  # type: ignore[arg-type]

    def submit_anew(self) -> None:
        """The whole cycle of one who wants to begin again."""
        with suppress(UsageError):
            self.client.cancel(self.job)
        with suppress(UsageError):
            self.client.delete(self.job, objects=True)
        self.submit()

    def wipe(self) -> None:
        """Redis forgets everything; the user submits again."""
        self.client.table.redis.flushdb()
        self.submit()

    def die(self) -> None:
        """A worker dies with a chunk in flight."""
        self.dice.choice(self.workers).deaths = 1

    # -- rest --------------------------------------------------------------------------------------------------------

    def _until_rest(self) -> None:
        until = time.monotonic() + _REST_WITHIN_S
        while time.monotonic() < until:
            try:
                status = self.client.table.queries.status(self.job)
            except UnknownJob:
                return
            if status.state is JobState.PAUSED:
                self.client.resume(self.job)
            if status.ingest == "open" and status.state is JobState.RUNNING:
                with suppress(UsageError):
                    self.submit()
            if status.ended or status.state is JobState.DELETING:
                return
            time.sleep(0.01)
        self.round.problems.append(f"it does not come to rest: {self.client.table.queries.status(self.job)}")

    def _pictures(self) -> list[str]:
        prefix = keys.job_prefix(self.client.storage.prefix, self.job)
        return [key for key in self.client.storage.keys(prefix) if "/images/" in key or "/shards/" in key]

    def _check(self) -> None:
        problems, client, job = self.round.problems, self.client, self.job
        try:
            status = client.table.queries.status(job)
        except UnknownJob:
            return  # deleted: no picture of it is called anything
        if status.state is JobState.DELETING:
            problems.append("a deletion does not end")
            return
        states = b"".join(piece for _, piece in client.table.queries.states(job))
        counts = [states.count(state) for state in (ItemState.DONE, ItemState.FAILED)]
        if counts != [status.done, status.failed]:
            problems.append(f"counters {status.done}, {status.failed} are not the bits {counts}")
        there = set(self._pictures())
        # What somebody deleted from outside is not ours to answer for, unless a repair has said that it is well.
        vanished = self.round.began == "vanished"
        known = {result.index: result for result in client.results(job)}
        for index, state in enumerate(states):
            result = known.get(index)
            if state != ItemState.DONE:
                continue
            if result is None or result.state != "done":
                problems.append(f"image {index} is done, and no record says so")
            elif not vanished and not {key.partition("#")[0] for key in result.objects.values()} <= there:
                problems.append(f"image {index} is done, and {result.objects} is not there: {status}")
        if vanished:
            self._repair()

    def _repair(self) -> None:
        """What had vanished is made again by a repair, all of it."""
        try:
            list(self.client.audit(self.job, repair=True))
        except UsageError:
            return  # cancelled, or nobody knows its address any more
        self._until_rest()
        missing = [finding.key for finding in self.client.audit(self.job) if finding.kind == "missing"]
        if missing:
            self.round.problems.append(f"missing after a repair: {missing}")


VERBS: Final[dict[str, Callable[[_Race], object]]] = {
    "submit": _Race.submit,
    "submit anew": _Race.submit_anew,
    "cancel": lambda race: race.client.cancel(race.job),
    "delete": lambda race: race.client.delete(race.job, objects=True),
    "retry": lambda race: race.client.retry(race.job),
    "repair": lambda race: list(race.client.audit(race.job, repair=True)),
    "pause": lambda race: race.client.pause(race.job),
    "wipe": _Race.wipe,
    "worker dies": _Race.die,
}
