"""The worker's settings, read once from `GRADCAM_WORKER_*`; `producer/jobs/model/settings.py` has Redis and S3.

| variable                          | meaning                                                        | default |
|-----------------------------------|----------------------------------------------------------------|---------|
| `GRADCAM_WORKER_QUEUES`           | priorities to read, in this order, by commas                   | all     |
| `GRADCAM_WORKER_BATCH_SIZE`       | images in one forward pass at most; a search finds the size    | 32, CUDA 256 |
| `GRADCAM_WORKER_IO_THREADS`       | threads that fetch and decode, and as many that encode and upload | 8    |
| `GRADCAM_WORKER_LEASE_S`          | how long a dead process keeps its chunk                        | 30      |
| `GRADCAM_WORKER_INTERVAL_S`       | how often the reconciler looks for lost work                   | 5       |
| `GRADCAM_WORKER_COMMIT_EVERY_S`   | how often a chunk commits its progress                         | 5       |
| `GRADCAM_WORKER_GRACE_S`          | how long a stopping worker may finish its current batches      | 25      |
| `GRADCAM_WORKER_MODEL_CACHE_BYTES`| memory for models, of each process                             | a share |
| `GRADCAM_WORKER_PRELOAD`          | models to load first: `NETWORK` or `NETWORK=WEIGHTS`, by commas | none   |
| `GRADCAM_WORKER_NETWORKS`         | networks of one's own: `NAME=MODULE:FUNCTION`, by commas       | none    |
| `GRADCAM_WORKER_WEIGHTS_CACHE_DIR`| folder of weights files, of all processes of this machine      | in `~/.cache` |
| `GRADCAM_WORKER_WEIGHTS_CACHE_BYTES`| what these files may take                                    | 20 GiB  |
| `GRADCAM_WORKER_MAX_IMAGE_BYTES`  | largest image file                                             | 64 MiB  |
| `GRADCAM_WORKER_MAX_PIXELS`       | most pixels of an image, 7 bytes each in every thread          | 64 Mi   |
| `GRADCAM_WORKER_FETCH_TIMEOUT_S`  | time an image may take to be fetched                           | 60      |
| `GRADCAM_WORKER_LOW_SPEED_LIMIT`  | bytes a second that must come, of images and weights; 0: any   | 1000    |
| `GRADCAM_WORKER_LOW_SPEED_TIME_S` | over how many seconds they are counted                         | 30      |
| `GRADCAM_WORKER_MAX_REDIRECTS`    | redirects of a web server that are followed                    | 3       |
| `GRADCAM_WORKER_USER_AGENT`       | the User-Agent that web servers get                            | gradcam-queue |
| `GRADCAM_WORKER_ITEM_TIMEOUT_S`   | time an image may take in each other stage, and a batch on the device | 120 |
| `GRADCAM_WORKER_LOAD_TIMEOUT_S`   | time a model may take to be loaded, once its weights are here         | 300 |
| `GRADCAM_WORKER_ALLOW_HOSTS`      | private hosts, and ports beside 80 and 443, by commas          | none    |
| `GRADCAM_WORKER_ALLOW_BUCKETS`    | buckets and prefixes that jobs may name, by commas             | any     |
| `GRADCAM_WORKER_FILE_ROOTS`       | folders `file://` images may come from, by commas              | none    |
| `GRADCAM_WORKER_ENGINE`           | `eager`; `half` computes all of a bf16 or fp16 job in half precision | eager |
| `GRADCAM_WORKER_RUN_DIR`          | where launchers make their folders, for `gradcam-worker check` | `/tmp`  |

The launcher sets `GRADCAM_WORKER_NAME`, `_DEVICE`, `_PROCESSES_ON_DEVICE`, `_QUEUES` and `_DRAIN_FILE` for each process
it starts.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from producer.jobs.fetch.allow_lists import checked_buckets, checked_hosts, checked_roots
from producer.jobs.fetch.policy import FetchPolicy, checked_user_agent
from producer.jobs.model.network_names import OWN_NAME
from producer.jobs.model.network_names import known as known_names
from producer.jobs.model.spec import PRIORITIES
from producer.jobs.model.text import quoted
from worker.supervise.busy_file import BUSY_KINDS


def _by_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_Preloaded = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,100}(=.+)?$")]

_NETWORK_LINE: Final = re.compile(rf"({OWN_NAME})=[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def checked_networks(lines: Sequence[str]) -> tuple[str, ...]:
    """Check that these register networks: `NAME=MODULE:FUNCTION`, each name once, and none that has a meaning.

    Raises:
        ValueError: They do not; says what they must be.
    """
    names: list[str] = []
    for line in lines:
        found = _NETWORK_LINE.fullmatch(line)
        if found is None:
            raise ValueError(
                f"must be NAME=MODULE:FUNCTION, such as lungs=mylab.models:build_lungs, not {quoted(line)}"
            )
        if found[1] in names:
            raise ValueError(f"names {found[1]} twice")
        if found[1] in known_names().names:
            raise ValueError(f"must not give the known network {found[1]} another meaning: choose another name")
        names.append(found[1])
    return tuple(lines)


def checked_queues(names: Sequence[str]) -> tuple[str, ...]:
    """Check that these are priorities, each at most once.

    Raises:
        ValueError: They are not; says what they must be.
    """
    must = f"must be some of {', '.join(PRIORITIES)}, by commas"
    for number, name in enumerate(names):
        if name == "recovery":
            raise ValueError(f"{must}; `recovery` is read first by every worker, and need not be named")
        if name not in PRIORITIES:
            raise ValueError(f"{must}; {quoted(name)} is none of them")
        if name in names[:number]:
            raise ValueError(f"{must}; {name} is there twice")
    if not names:
        raise ValueError(f"{must}; none is named")
    return tuple(names)


class WorkerSettings(BaseSettings):
    """The settings of a worker process, beside those of the connections."""

    model_config = SettingsConfigDict(env_prefix="GRADCAM_WORKER_", frozen=True, extra="ignore")

    #: The name of this process in health and logs.
    name: str = "worker"
    #: `cpu` or `cuda`: the one device that this process can see.
    device: Annotated[str, Field(pattern=r"^(cpu|cuda)$")] = "cpu"
    #: How many processes share that device, this one included.
    processes_on_device: Annotated[int, Field(ge=1)] = 1
    #: When this file exists, the process finishes its current batches and gives the rest back.
    drain_file: Path | None = None
    #: The priorities that it reads, in this order; `recovery` comes before them.
    queues: Annotated[tuple[str, ...], NoDecode, AfterValidator(checked_queues), BeforeValidator(_by_commas)] = (
        PRIORITIES
    )
    #: Where launchers make their folders; by default the system's folder for temporary files.
    run_dir: Path | None = None
    #: Images in one forward pass at most; a search finds the size.
    batch_size: Annotated[int, Field(ge=1, le=512)] | None = None
    #: `half`: jobs in half precision have models whose numbers all are in it; `eager` leaves it to torch.
    engine: Literal["eager", "half"] = "eager"
    #: Threads that fetch and decode, and as many that encode and upload.
    io_threads: Annotated[int, Field(ge=1, le=128)] = 8
    #: How long a dead process keeps its chunk.
    lease_s: Annotated[float, Field(ge=1)] = 30.0
    #: How often the reconciler looks for lost work.
    interval_s: Annotated[float, Field(gt=0)] = 5.0
    #: How often a chunk commits its progress.
    commit_every_s: Annotated[float, Field(ge=0)] = 5.0
    #: How long a stopping worker may finish its current batches.
    grace_s: Annotated[float, Field(gt=0)] = 25.0
    #: Memory for models, in bytes of their parameters; by default a share of the device's.
    model_cache_bytes: Annotated[int, Field(gt=0)] | None = None
    #: Where weights files from an address are kept; by default a folder in the user's cache.
    weights_cache_dir: Path | None = None
    #: The most bytes that those files may take.
    weights_cache_bytes: Annotated[int, Field(ge=0)] = 20 * 2**30
    #: Models to load before the first message, each `NETWORK` or `NETWORK=WEIGHTS`.
    preload: Annotated[tuple[_Preloaded, ...], NoDecode, BeforeValidator(_by_commas)] = ()
    #: Networks of one's own, each `NAME=MODULE:FUNCTION`.
    networks: Annotated[tuple[str, ...], NoDecode, AfterValidator(checked_networks), BeforeValidator(_by_commas)] = ()
    #: Largest image file.
    max_image_bytes: Annotated[int, Field(gt=0)] = 64 * 2**20
    #: Most pixels of an image; a decoded one takes 3 bytes a pixel.
    max_pixels: Annotated[int, Field(gt=0, le=2**30)] = 64 * 2**20
    #: How many redirects of a web server to follow.
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 3
    #: The User-Agent that web servers get.
    user_agent: Annotated[str, AfterValidator(checked_user_agent)] = "gradcam-queue"
    #: Time an image may take to be fetched.
    fetch_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    #: So many bytes a second must come, of images and weights, counted over so many seconds; 0 asks for nothing.
    low_speed_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1000.0
    low_speed_time_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    #: Time an image may take in each other stage, and a batch on the device, before it counts as hanging.
    item_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    #: Time a model may take to be loaded, from weights that are here, before the process counts as hanging.
    load_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    #: Private hosts, and ports beside 80 and 443, that images and weights may come from.
    allow_hosts: Annotated[tuple[str, ...], NoDecode, AfterValidator(checked_hosts), BeforeValidator(_by_commas)] = ()
    #: Buckets and prefixes that they may come from; any where none is named.
    allow_buckets: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(checked_buckets), BeforeValidator(_by_commas)
    ] = ()
    #: Folders `file://` images may come from.
    file_roots: Annotated[tuple[Path, ...], NoDecode, AfterValidator(checked_roots), BeforeValidator(_by_commas)] = ()

    @property
    def largest_batch(self) -> int:
        """Return the most images in one forward pass; on a CPU larger batches are not faster."""
        return self.batch_size or (256 if self.device == "cuda" else 32)

    @property
    def slots(self) -> int:
        """The most chunks that one process has in flight."""
        return len(BUSY_KINDS)

    @property
    def busy_files(self) -> tuple[Path, ...]:
        """Return the busy file of each chunk that may be in flight; none without a launcher."""
        if self.drain_file is None:
            return ()
        return tuple(self.drain_file.with_name(f"{self.name}.{kind}") for kind in BUSY_KINDS)

    @property
    def health_stem(self) -> Path | None:
        """Return the stem of the names of health's files; None without a launcher."""
        return None if self.drain_file is None else self.drain_file.with_name(self.name)

    @property
    def drain_files(self) -> tuple[Path, ...]:
        """Return the files that tell this process to end: its launcher's and its own; none without a launcher."""
        return () if self.drain_file is None else (self.drain_file, self.drain_file.with_name(f"{self.name}.drain"))

    @property
    def launcher(self) -> str | None:
        """Return the name of the launcher: this machine's, and that of its folder; None without one."""
        if self.drain_file is None:
            return None
        return f"{socket.gethostname().split('.')[0]}-{self.drain_file.parent.name}"

    @property
    def fetch_policy(self) -> FetchPolicy:
        """Return which addresses may be fetched."""
        return FetchPolicy(
            allow_hosts=self.allow_hosts,
            allow_buckets=self.allow_buckets,
            file_roots=self.file_roots,
            max_bytes=self.max_image_bytes,
            total_timeout_s=self.fetch_timeout_s,
            low_speed_limit=self.low_speed_limit,
            low_speed_time_s=self.low_speed_time_s,
            max_redirects=self.max_redirects,
            user_agent=self.user_agent,
        )
