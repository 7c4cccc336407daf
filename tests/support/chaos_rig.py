"""What the chaos suite runs on: real servers behind fault-injecting proxies, two real workers, real images.

A job is submitted, something is done to it, and at the end `Rig.check` holds it to the promise: every image has its
end, done means that all its objects exist and decode to the pictures of an undisturbed run, counters are the bits, the
end was entered once, nothing is left over.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import cv2
import numpy as np
import psutil
import redis
import s3_servers
from fault_proxy import FaultProxy
from numpy.typing import NDArray
from stacks import POISON, children_of, eventually, mains_of, settings_of

from deploy.stack import Stack, Worker
from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.settings import Connections
from producer.jobs.model.states import ItemState, JobState
from producer.jobs.model.status import JobStatus

NETWORK, KINDS, CHUNK = "efficientnet_lite0", ("cam", "gb"), 8
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png")
#: What two runs of the same image may differ by, in gray levels: batches of other sizes round otherwise, and one level
#: of a map moves a channel of its color by four, before JPEG.
MEAN_LEVELS, MOST_LEVELS = 1.0, 48


def make_images(count: int, seed: int = 0) -> list[bytes]:
    """Distinct JPEGs: seeded crops of photos that scikit-image ships."""
    folder = Path(str(__import__("skimage").__file__)).parent / "data"
    photos = [cv2.imread(str(folder / name)) for name in PHOTOS]
    dice = random.Random(seed)
    images = []
    for number in range(count):
        photo = photos[number % len(photos)]
        assert photo is not None
        side = dice.randint(160, min(photo.shape[:2]))
        y, x = (dice.randint(0, length - side) for length in photo.shape[:2])
        images.append(cv2.imencode(".jpg", photo[y : y + side, x : x + side])[1].tobytes())
    return images


class PinnedWorker(Worker):
    """A launcher with one Celery worker, on a core of its own; both of them can be killed with all they started."""

    def __init__(self, log: Path, environment: Mapping[str, str], core: int, *, file_bytes: int | None = None) -> None:
        super().__init__(log, environment, processes=1, devices="cpu")
        self._core, self._file_bytes = core, file_bytes

    def start(self) -> None:
        super().start()
        assert self.process is not None
        # Before the launcher has imported enough to look: it shares out the cores that it finds.
        os.sched_setaffinity(self.process.pid, {self._core})
        if self._file_bytes is not None:
            # Larger files cannot be written, as on a disk that is full.
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (self._file_bytes, self._file_bytes))

    def kill_all(self) -> None:
        """As if the machine had lost its power."""
        assert self.process is not None
        everything = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in everything:
            process.suspend()
        for process in everything:
            process.kill()
        self.process.wait()


@dataclass
class Row:
    """What came out of one kind of fault."""

    fault: str
    times: int = 0
    images: int = 0
    lost: int = 0
    doubled: int = 0
    republished: int = 0
    #: From the fault's end until every chunk that was in hand at its beginning was complete.
    recovery_s: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Rig:
    """Servers, proxies and two workers; used in a `with`."""

    def __init__(self, directory: Path, *, images: int, seed: int, poison: bool = True) -> None:
        self.dice = random.Random(seed)
        self.stack: Stack = s3_servers.make_stack(directory)
        self.workers: list[PinnedWorker] = []
        self._images = make_images(images)
        self._poison = poison
        self._open = ExitStack()
        self._jobs = 0
        self._reference: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.stack)
            self.redis = stack.enter_context(FaultProxy(self.stack.redis.ports["redis"]))
            self.s3 = stack.enter_context(s3_servers.proxied(self.stack.s3))
            through = {
                "GRADCAM_REDIS_URL": self._at(self.redis.port),
                "GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}",
                # Small batches and chunks: many moments to fail at.
                "GRADCAM_WORKER_BATCH_SIZE": "4",
                "GRADCAM_WORKER_IO_THREADS": "4",
                "GRADCAM_WORKER_ITEM_TIMEOUT_S": "15",
                "PYTHONPATH": str(POISON) if self._poison else "",
            }
            stack.enter_context(settings_of(self.stack, **through))
            #: As a user's: through the proxies. The other one sees what is really there.
            self.client = Client.from_env()
            self.direct_client = Client(
                Connections(
                    redis_url=self.stack.redis.url,
                    s3_bucket=self.stack.s3.bucket,
                    s3_endpoint_url=self.stack.s3.endpoint_url,
                    s3_prefix=self.stack.env["GRADCAM_S3_PREFIX"],
                )
            )
            stack.callback(self.stop_workers)
            # A shell has what it runs in the background ignore Ctrl-C, and workers heed that; here they are to hear it.
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
            for core in sorted(os.sched_getaffinity(0))[:2]:
                self.workers.append(self.new_worker(core))
            for number, image in enumerate(self._images):
                self.direct_client.storage.put(f"inputs/{number:04d}.jpg", image)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _at(self, port: int) -> str:
        return self.stack.redis.url.replace(f":{self.stack.redis.ports['redis']}/", f":{port}/")

    @property
    def database(self) -> redis.Redis:
        """The job table's Redis, not through the proxy."""
        return self.direct_client.table.redis

    # -- workers ---------------------------------------------------------------------------------------------------

    def new_worker(self, core: int, *, file_bytes: int | None = None, **settings: str) -> PinnedWorker:
        """Start one more worker; the caller stops it, unless it is put among `workers`."""
        log = self.stack.directory / "workers.log"
        worker = PinnedWorker(log, {**os.environ, **settings}, core, file_bytes=file_bytes)
        worker.start()
        return worker

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.stop(5)

    def children(self) -> list[psutil.Process]:
        """The processes that compute."""
        return [child for worker in self.workers if worker.alive for child in children_of(worker)]

    def runs(self, worker: PinnedWorker, name: str) -> bool:
        """Whether the Celery worker of that name is this launcher's."""
        return any(process.environ().get("GRADCAM_WORKER_NAME") == name for process in mains_of(worker))

    # -- jobs ------------------------------------------------------------------------------------------------------

    def uris(self, extra: Mapping[int, str] | None = None) -> list[str]:
        """The addresses of the images, some of them in the place of others."""
        bucket = self.stack.s3.bucket
        names = [f"s3://{bucket}/inputs/{number:04d}.jpg" for number in range(len(self._images))]
        for index, uri in (extra or {}).items():
            names[index] = uri
        return names

    def submit(self, uris: list[str] | None = None, **parameters: Any) -> str:
        """Send a job under a name of its own."""
        self._jobs += 1
        parameters = {"name": f"chaos-{self._jobs:03d}", **parameters}
        return self.client.submit(uris or self.uris(), network=NETWORK, chunk_size=CHUNK, outputs=KINDS, **parameters)

    def in_hand(self, job: str) -> set[str]:
        """Chunks under a lease."""
        return {cast(bytes, name).decode() for name in self.database.zrange(f"gradcam:job:{job}:leases", 0, -1)}

    def until(self, job: str, share: float) -> JobStatus:
        """Wait until so much of a job is done, then for a moment between two of anything."""
        wanted = share * len(self._images)
        eventually(
            lambda: self.direct_client.status(job).done >= wanted or self.direct_client.status(job).ended, within_s=120
        )
        time.sleep(self.dice.uniform(0, 0.3))
        return self.direct_client.status(job)

    @contextmanager
    def timed(self, row: Row, job: str) -> Iterator[None]:
        """Around a fault: how long what was in hand at its beginning takes to be complete after its end."""
        before = self.in_hand(job)
        yield
        row.times += 1
        ended = time.monotonic()
        while time.monotonic() - ended < _END_WITHIN_S:
            left = [chunk for chunk in before if self.database.hexists(f"gradcam:job:{job}:items", chunk)]
            if not left:
                break
            time.sleep(0.05)
        row.recovery_s = max(row.recovery_s, time.monotonic() - ended)

    # -- the promise -----------------------------------------------------------------------------------------------

    def take_reference(self) -> None:
        """An undisturbed run: what the pictures of all others must equal."""
        job = self.submit()
        status = self.direct_client.wait(job, timeout_s=_END_WITHIN_S)
        assert status.state is JobState.SUCCEEDED, status
        self._reference = dict(self._pictures(job))

    def check(self, row: Row, job: str, *, failed: Mapping[int, str] | None = None) -> None:
        """Hold a job to the promise, and note what it breaks.

        Args:
            row: Where it is noted.
            job: The job, which may be at work still.
            failed: Index → reason of the images that have to fail; all others have to be done.
        """
        expected = dict(failed or {})
        try:
            status = self.direct_client.wait(job, timeout_s=_END_WITHIN_S)
        except TimeoutError:
            row.problems.append(f"{job} does not end: {self.direct_client.status(job)}")
            return
        row.images += status.total
        row.republished += status.republished
        states = b"".join(piece for _, piece in self.direct_client.table.queries.states(job)).ljust(status.total, b"\0")
        states = states[: status.total]
        bits = {state: states.count(state) for state in ItemState}
        if (bits[ItemState.DONE], bits[ItemState.FAILED]) != (status.done, status.failed):
            row.problems.append(f"counters {status.done}, {status.failed} are not the bits {bits}")
        row.doubled += max(0, status.done - bits[ItemState.DONE]) + max(0, status.failed - bits[ItemState.FAILED])
        row.lost += bits[ItemState.PENDING] + max(0, len(self._images) - status.total)
        reasons = {failure.index: failure.reason for failure in self.direct_client.failures(job)}
        row.lost += len(reasons.keys() - expected.keys())
        if reasons != expected:
            row.problems.append(f"failed: {reasons}, and should have: {expected}")
        row.problems += [f"audit: {finding.kind} {finding.key}" for finding in self.direct_client.audit(job)]
        row.problems += self._differences(job, expected.keys())
        ends = int(self.database.hget(f"gradcam:job:{job}", "ends") or 0)
        if ends != status.generation:
            row.doubled += abs(ends - status.generation)
            row.problems.append(f"the end was entered {ends} times in {status.generation} generations")
        row.problems += self._left_over(job)

    def _pictures(self, job: str) -> Iterator[tuple[tuple[int, str], NDArray[np.uint8]]]:
        for result in self.direct_client.results(job):
            for kind, key in result.objects.items():
                decoded = cv2.imdecode(np.frombuffer(self.direct_client.storage.get(key), np.uint8), cv2.IMREAD_COLOR)
                assert decoded is not None, key
                yield (result.index, kind), np.asarray(decoded, np.uint8)

    def _differences(self, job: str, failed: Any) -> Iterator[str]:
        found = dict(self._pictures(job))
        wanted = {place for place in self._reference if place[0] not in failed}
        if found.keys() != wanted:
            yield f"pictures: {len(wanted - found.keys())} missing, {len(found.keys() - wanted)} too many"
        for place in found.keys() & wanted:
            difference = np.abs(found[place].astype(int) - self._reference[place])
            if difference.mean() > MEAN_LEVELS or difference.max() > MOST_LEVELS:
                yield f"{place} differs by {difference.mean():.2f} levels in the mean, {difference.max()} at most"

    def _left_over(self, job: str) -> Iterator[str]:
        names = ("waiting", "leases", "holders", "attempts", "marks", "suspects", "items", "finalizer")
        for name in names:
            if self.database.exists(f"gradcam:job:{job}:{name}"):
                yield f"{name} is left over"
        for name in self.database.scan_iter(f"gradcam:job:{job}*"):
            if int(self.database.ttl(name)) <= 0:
                yield f"{name.decode()} has no lifetime"
        try:
            eventually(self._queues_are_empty, within_s=30)
        except AssertionError:
            yield "messages are left in the queues"

    def _queues_are_empty(self) -> bool:
        names = ("recovery", "high", "default", "low", "unacked", "unacked_index")
        return not any(self.database.exists(keys.QUEUE_PREFIX + name) for name in names)


_END_WITHIN_S = 150.0
