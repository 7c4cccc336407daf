"""Every Redis key and every object key, made here and nowhere else.

Redis (`J` is `gradcam:job:<job>`; a finished job's keys live `job_lifetime_days` from its end):

| key                     | type   | holds                                       | lives until  | written by           |
| ----------------------- | ------ | ------------------------------------------- | ------------ | -------------------- |
| `J`                     | hash   | spec, state, counters, times, error, trace  | lifetime     | every transition     |
| `J:chunks`              | hash   | chunk → digest:count                        | lifetime     | add_chunk            |
| `J:items`               | hash   | chunk → compressed item lines               | chunk's end  | add_chunk, reopen    |
| `J:bits`                | string | 2 bits an item: pending, done, failed       | lifetime     | commit, reopen       |
| `J:waiting`             | zset   | chunk → time published                      | claimed      | add_chunk, release   |
| `J:leases`              | zset   | chunk → deadline                            | committed    | claim, add_chunk, …  |
| `J:holders`             | hash   | chunk → token:claim id of the lease         | committed    | claim, add_chunk     |
| `J:attempts`            | hash   | chunk → times handed out                    | chunk's end  | claim, add_chunk, …  |
| `J:marks`               | hash   | chunk → offsets about to be decoded         | chunk's end  | renew                |
| `J:suspects`            | hash   | chunk → offset=weight of deaths alone       | chunk's end  | claim, reclaim, …    |
|                         |        | reclaimed:chunk → claim id of its death     |              | reclaim              |
| `J:failures`            | hash   | index → item, reason, message, attempts     | lifetime     | commit, reopen       |
| `J:reasons`             | hash   | reason → count                              | lifetime     | commit, reopen       |
| `J:classes`             | hash   | class id and name → images explained        | lifetime     | commit, reopen       |
| `J:timings`             | hash   | stage → microseconds of all images          | lifetime     | commit               |
| `J:troubles`            | hash   | worker:name → why it cannot do the job      | lifetime     | trouble              |
|                         |        | load → weight of deaths in loading it       |              | claim, reclaim, …    |
| `J:history`             | list   | what was done to it, by whom and why        | lifetime     | cancel, pause, …     |
|                         |        |                                             | or a year    |                      |
| `J:finalizer`           | string | who writes the summary, or who cannot       | 30 s         | finalize, decline    |
| `gradcam:jobs`          | zset   | job → time created                          | job is gone  | create               |
| `gradcam:active`        | set    | jobs that have not ended                    | their end    | create, finish       |
| `gradcam:workers`       | zset   | worker → last heard of                      | it stops     | main process         |
| `gradcam:queues`        | hash   | worker → the priorities it reads            | it stops     | main process         |
| `gradcam:problems`      | hash   | worker → what keeps it from working         | 2 min silent | child process        |
| `gradcam:records`       | hash   | worker → what it is and does                | 2 min silent | main process         |
| `gradcam:drains`        | hash   | worker or launcher → since when it leaves   | an hour      | drain                |
| `gradcam:waits`         | hash   | worker → what it has waited for, since when | 2 min silent | child process        |
| `gradcam:releases`      | hash   | version → last heard of, and which worker   | a minute     | main process         |
| `gradcam:networks`      | hash   | registered network → last heard of, and who | a minute     | main process         |
| `gradcam:warnings`      | hash   | what settings leave open → last heard, who  | a minute     | main process         |
| `gradcam:speeds`        | hash   | network → images/s of one process           | 30 days      | child process        |
| `gradcam:device-speeds` | hash   | network → images/s of one device            | 30 days      | child process        |
| `gradcam:batch-sizes`   | hash   | batch key → images a batch                  | 30 days      | child process        |
| `gradcam:rights:*`      | any    | nothing: which commands may we run?         | the call     | rights               |
| `gradcam:round-robin:*` | zset   | job → its place in its priority's row       | their end    | next_chunk, …        |
| `gradcam:picked:*`      | hash   | where in the row a job was picked, and when | Redis itself | next_chunk           |
| `gradcam:missing:*`     | hash   | since when how many messages are missing    | an hour      | missing_messages     |
| `gradcam:counts`        | hash   | what happened → how often, for metrics      | Redis itself | finish, reconcile, … |
| `gradcam:reconciler`    | string | who reconciles                              | one interval | main process         |
| `gradcam:queue:*`       | list … | Celery's messages and bindings              | consumed     | Celery (kombu)       |

Object store (`P` is the prefix setting):

| key                                                       | holds                                      |
| --------------------------------------------------------- | ------------------------------------------ |
| `P/<job>/job.json`                                        | spec, versions, counts; written at the end |
| `P/<job>/inputs/<index>/<name>`                           | an uploaded local file                     |
| `P/<job>/images/<index>/<stem>-<network>-<kind>.<format>` | a picture                                  |
| `P/<job>/manifest/<chunk>-<token>-<part>-<epoch>.jsonl`   | a line an image                            |
| `P/<job>/shards/<chunk>-<token>-<life>.tar`               | with --pack tar: a chunk's pictures        |
| `P/_system/weights/<sha256>`                              | uploaded local weights, shared by jobs     |
| `P/_system/probe`                                         | nothing: does the store take objects?      |
| `P/weights/<sha256>`                                      | weights that releases up to 0.3.0 uploaded |

What is no job's lies under `P/_system/`: no job's name begins with `_`, so that no job's deletion takes it along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from producer.jobs.model.errors import UnknownJob, no_such
from producer.jobs.model.names import is_job_name, safe

JOBS = "gradcam:jobs"
ACTIVE = "gradcam:active"
WORKERS = "gradcam:workers"
QUEUES = "gradcam:queues"
PROBLEMS = "gradcam:problems"
WAITS = "gradcam:waits"
RECORDS = "gradcam:records"
DRAINS = "gradcam:drains"
RELEASES = "gradcam:releases"
NETWORKS = "gradcam:networks"
WARNINGS = "gradcam:warnings"
RECONCILER = "gradcam:reconciler"
COUNTS = "gradcam:counts"
SPEEDS = "gradcam:speeds"
DEVICE_SPEEDS = "gradcam:device-speeds"
RIGHTS = "gradcam:rights"
BATCH_SIZES = "gradcam:batch-sizes"
#: The keys beside a job's hash, less the finalizer's, which has a lifetime of its own.
JOB_PARTS = (
    *("chunks", "items", "waiting", "leases", "holders", "attempts", "bits", "failures", "reasons"),
    *("marks", "suspects", "classes", "timings", "troubles", "history"),
)
#: A problem that is not told again is over; of a worker that is silent for so long nothing that it told counts.
PROBLEM_LIFETIME_S = 120
#: What is no job's lies under it; whatever is to be shared by jobs belongs here, too.
_SYSTEM = "_system"
#: Where releases up to 0.3.0 put weights: among the jobs.
OLD_WEIGHTS = "weights"
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: kombu puts this before the name of each list it makes.
QUEUE_PREFIX = "gradcam:queue:"
#: Before the id of a job.
_HASH = "gradcam:job:"


@dataclass(frozen=True)
class JobKeys:
    """The Redis keys of one job. Raises UnknownJob for a name that no job can have, wherever it comes from."""

    job: str

    def __post_init__(self) -> None:
        """Check the name."""
        _check(self.job)

    @property
    def hash(self) -> str:
        """The job itself."""
        return f"{_HASH}{self.job}"

    @classmethod
    def job_of(cls, key: str) -> str | None:
        """The job whose hash lies under a key; None where it is another key."""
        return key.removeprefix(_HASH) if key.startswith(_HASH) else None

    def part(self, name: str) -> str:
        """One of the keys beside the job's hash."""
        return f"{self.hash}:{name}"

    def parts(self, *names: str) -> list[str]:
        """The job's hash and the named keys beside it."""
        return [self.hash, *(self.part(name) for name in names)]


def round_robin(queue: str) -> str:
    """The jobs of a priority, in the order of the round robin."""
    return f"gradcam:round-robin:{queue}"


def picked(queue: str) -> str:
    """Where in the row of a priority the job stood that was picked last, and when that was."""
    return f"gradcam:picked:{queue}"


def missing_messages(queue: str) -> str:
    """How many messages of a priority are missing."""
    return f"gradcam:missing:{queue}"


def _join(prefix: str, *parts: str) -> str:
    return "/".join([prefix, *parts] if prefix else parts)


def _check(job: str) -> None:
    if not is_job_name(job):
        raise UnknownJob(no_such(job))


def _of_job(prefix: str, job: str, *parts: str) -> str:
    """The key of one of a job's objects. Raises UnknownJob for a name that no job can have: Redis may hold one."""
    _check(job)
    return _join(prefix, job, *parts)


def jobs_prefix(prefix: str) -> str:
    """All jobs lie under this, each in a folder of its name."""
    return _join(prefix, "")


def job_prefix(prefix: str, job: str) -> str:
    """Everything of a job lies under this. Raises UnknownJob, as all keys of jobs."""
    return _of_job(prefix, job) + "/"


#: The folders of a job, and how what is in them begins.
_OBJECTS = {
    "images": r"\d{8}/.",
    "inputs": r"\d{8}/.",
    "manifest": r"\d+-\d+-\d+(-\d+)?\.jsonl$",
    "shards": r"\d+(-[0-9a-f-]+)?\.tar$",
}


def folders_of_job(prefix: str, job: str) -> list[str]:
    """Where a job's objects lie beside its summary; each ends with a slash."""
    return [_of_job(prefix, job, name, "") for name in _OBJECTS]


def is_of_job(prefix: str, job: str, key: str) -> bool:
    """Whether a key is one that a job has beside its summary; a folder of that name may hold others."""
    folder, _, name = key.removeprefix(job_prefix(prefix, job)).partition("/")
    return folder in _OBJECTS and re.match(_OBJECTS[folder], name, re.ASCII) is not None


def summary(prefix: str, job: str) -> str:
    """The job's summary."""
    return _of_job(prefix, job, "job.json")


def uploaded_input(prefix: str, job: str, index: int, name: str) -> str:
    """A local file that was uploaded as the image of that index."""
    return uploaded_inputs(prefix, job) + f"{index:08d}/{safe(name)}"


def uploaded_inputs(prefix: str, job: str) -> str:
    """Where all local files lie that were uploaded as images of a job; ends with a slash."""
    return _of_job(prefix, job, "inputs") + "/"


def picture_name(stem: str, network: str, kind: str, suffix: str) -> str:
    """The original program's file name for a picture."""
    return f"{safe(stem)}-{safe(network)}-{kind}.{suffix}"


def picture(prefix: str, job: str, index: int, name: str) -> str:
    """A picture of the image of that index; a second run overwrites it with the same picture."""
    return _of_job(prefix, job, "images", f"{index:08d}", name)


def images_prefix(prefix: str, job: str) -> str:
    """All pictures of a job lie under this."""
    return _of_job(prefix, job, "images") + "/"


def manifest_prefix(prefix: str, job: str) -> str:
    """All manifest parts of a job lie under this."""
    return _of_job(prefix, job, "manifest") + "/"


class ManifestPart(NamedTuple):
    """Whose a part of a manifest is; of one chunk's parts the greater one was written later."""

    chunk: int
    #: Of the job's generation, as `Claim` has it: it goes up with each retry and repair, and after a wipe of Redis.
    epoch: int
    #: Its writer's.
    token: int
    #: Its place among its writer's.
    part: int


def manifest(prefix: str, job: str, chunk: int, token: int, part: int, epoch: int) -> str:
    """One part of a chunk's manifest; the token makes parts of different holders different objects, in their order.

    The epoch stands in the name, so that it is known of all parts by listing them, and of torn ones. Parts of the first
    release have none.
    """
    return manifest_prefix(prefix, job) + f"{chunk:08d}-{token:014d}-{part:04d}-{epoch:014d}.jsonl"


def manifest_part(key: str) -> ManifestPart | None:
    """Whose a part of a manifest is, by its key; None where it is not one of ours."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)(?:-(\d+))?\.jsonl", key.rpartition("/")[2], re.ASCII)
    return ManifestPart(int(found[1]), int(found[4] or 0), int(found[2]), int(found[3])) if found else None


def shards_prefix(prefix: str, job: str) -> str:
    """All shards of a job lie under this."""
    return _of_job(prefix, job, "shards") + "/"


def shard(prefix: str, job: str, chunk: int, token: int, life: str) -> str:
    """A chunk's pictures in one tar; each holder writes one of its own, and the manifest says which one counts."""
    return shards_prefix(prefix, job) + f"{chunk:08d}-{token:014d}-{life}.tar"


def chunk_of(shard: str) -> int | None:
    """The number of a shard's chunk; None where it is not one of ours."""
    found = re.fullmatch(r"(\d+)(?:-[0-9a-f-]+)?\.tar", shard.rpartition("/")[2])
    return int(found[1]) if found else None


def member(index: int, name: str) -> str:
    """A file in a shard: webdataset takes what stands before the first dot for the sample's key."""
    return f"{index:08d}.{name}"


def in_shard(shard: str, member: str) -> str:
    """The address of a file in a shard, as manifests have it."""
    return f"{shard}#{member}"


def weights(prefix: str, sha256: str) -> str:
    """An uploaded weights file, by content."""
    return _join(prefix, _SYSTEM, "weights", sha256)


def old_weights(prefix: str, sha256: str) -> str:
    """Where releases up to 0.3.0 uploaded a weights file; jobs may name it still."""
    return _join(prefix, OLD_WEIGHTS, sha256)


def is_shared(prefix: str, key: str) -> bool:
    """Whether an object is no job's, though it lies among a job's: weights that an earlier release uploaded."""
    folder, _, name = key.rpartition("/")
    return folder == _join(prefix, OLD_WEIGHTS) and _SHA256.fullmatch(name) is not None


def probe(prefix: str) -> str:
    """An empty object: whether the store takes it tells one object's trouble from the store's."""
    return _join(prefix, _SYSTEM, "probe")
