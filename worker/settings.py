"""The worker's settings, read once from `GRADCAM_WORKER_*`; `producer/jobs/model/settings.py` has Redis and S3.

`make docs` writes the table of docs/operations.md from these fields.
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
from producer.jobs.model.settings import Setting
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

    name: Annotated[str, Setting(of_launcher=True)] = Field(
        default="worker", description="the name of this process in health and logs"
    )
    device: Annotated[str, Field(pattern=r"^(cpu|cuda)$"), Setting(of_launcher=True)] = Field(
        default="cpu", description="`cpu` or `cuda`: the one device that this process can see"
    )
    place: Annotated[str, Field(max_length=40), Setting(of_launcher=True, absent="the device")] = Field(
        default="", description="which one that is on this machine: `gpu0`, or the MIG instance `gpu0-mig1`"
    )
    processes_on_device: Annotated[int, Field(ge=1), Setting(of_launcher=True)] = Field(
        default=1, description="how many processes share that device, this one included"
    )
    drain_file: Annotated[Path | None, Setting(of_launcher=True, absent="none")] = Field(
        default=None,
        description="when this file exists, the process finishes its current batches and gives the rest back",
    )
    launcher_pid: Annotated[Annotated[int, Field(ge=1)] | None, Setting(of_launcher=True, absent="none")] = Field(
        default=None, description="the launcher's process: when it is no longer the parent, this process ends"
    )
    queues: Annotated[tuple[str, ...], NoDecode, AfterValidator(checked_queues), BeforeValidator(_by_commas)] = Field(
        default=PRIORITIES,
        description="priorities to work at, in this order, by commas; `recovery` is read before them by every worker",
    )
    batch_size: Annotated[Annotated[int, Field(ge=1, le=512)] | None, Setting(absent="32, CUDA 256")] = Field(
        default=None,
        description="images in one forward pass at most, 512 at most; the size is found while working",
    )
    io_threads: Annotated[int, Field(ge=1, le=128)] = Field(
        default=8, description="threads that fetch and decode, and as many that draw and upload"
    )
    lease_s: Annotated[float, Field(ge=1)] = Field(
        default=30.0, description="how long the chunk of a dead process stays its own; 1 or more"
    )
    interval_s: Annotated[float, Field(gt=0)] = Field(default=5.0, description="how often lost work is looked for")
    commit_every_s: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="how often progress is recorded within a chunk"
    )
    grace_s: Annotated[float, Field(gt=0)] = Field(
        default=25.0, description="how long a stopping worker may finish the batch on the device"
    )
    preload: Annotated[tuple[_Preloaded, ...], NoDecode, BeforeValidator(_by_commas), Setting(absent="none")] = Field(
        default=(), description="models to load before the first message: `NETWORK` or `NETWORK=WEIGHTS`, by commas"
    )
    networks: Annotated[
        tuple[str, ...],
        NoDecode,
        AfterValidator(checked_networks),
        BeforeValidator(_by_commas),
        Setting(absent="none"),
    ] = Field(default=(), description="[networks of your own](own-model.md): `NAME=MODULE:FUNCTION`, by commas")
    model_cache_bytes: Annotated[Annotated[int, Field(gt=0)] | None, Setting(absent="a share of its device's")] = Field(
        default=None, description="memory for models, of each process"
    )
    weights_cache_dir: Annotated[Path | None, Setting(absent="in `~/.cache`")] = Field(
        default=None, description="folder of weights files, of all processes of this machine"
    )
    weights_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=20 * 2**30, description="what these files may take"
    )
    max_image_bytes: Annotated[int, Field(gt=0)] = Field(default=64 * 2**20, description="largest image file")
    max_pixels: Annotated[int, Field(gt=0, le=2**30)] = Field(
        default=64 * 2**20,
        description="most pixels of an image. Phones take pictures of 108 and 200 million: set 210000000, and "
        "`GRADCAM_WORKER_MAX_IMAGE_BYTES` as needed. Each of the `GRADCAM_WORKER_IO_THREADS` may hold one, at 3 bytes "
        "a pixel, and takes up to 500 MB (7 bytes for each of these pixels, if that is more) to decode it: "
        "[pictures.md](pictures.md)",
    )
    fetch_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="time an image may take to be fetched"
    )
    low_speed_limit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=1000.0,
        description="bytes a second that must come, of images and of weights; what is slower is left. "
        "0 asks for nothing",
    )
    low_speed_time_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=30.0,
        description="over how many seconds these bytes are counted, the wait for the first one included",
    )
    max_redirects: Annotated[int, Field(ge=0, le=20)] = Field(
        default=3,
        description="redirects of a web server that are followed, each checked like the first address; 20 at most",
    )
    user_agent: Annotated[str, AfterValidator(checked_user_agent)] = Field(
        default="gradcam-queue",
        description="what web servers are told of who asks: one line of ASCII. Some (Wikimedia) want an address to "
        "write to: `cats/1.0 (+https://example.org)`",
    )
    item_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0,
        description="time an image may take in each other stage, and a batch on the device, before it counts as "
        "hanging",
    )
    load_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=300.0,
        description="time a model may take to be loaded, once its weights are here; a process that takes longer is "
        "killed, and the second one fails the job",
    )
    allow_hosts: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(checked_hosts), BeforeValidator(_by_commas), Setting(absent="none")
    ] = Field(
        default=(),
        description="private hosts, and ports other than 80 and 443, that images and weights may come from, by commas: "
        "names, `*.suffix`, networks, each alone or with a port (`images.internal:8080`, `10.0.0.0/8:8080`, "
        "`[::1]:9000`, `127.0.0.1:*`): [Policy](../SECURITY.md#policy)",
    )
    allow_buckets: Annotated[
        tuple[str, ...],
        NoDecode,
        AfterValidator(checked_buckets),
        BeforeValidator(_by_commas),
        Setting(absent="any that the credentials reach"),
    ] = Field(
        default=(),
        description="buckets and prefixes that images and weights may come from, by commas: `photos`, `photos/2026/`, "
        "`team-*`, `*`",
    )
    file_roots: Annotated[
        tuple[Path, ...], NoDecode, AfterValidator(checked_roots), BeforeValidator(_by_commas), Setting(absent="none")
    ] = Field(
        default=(),
        description="folders that `file://` images may come from, by commas; not `/`, and nothing in `/proc`, `/sys`, "
        "`/dev` (but `/dev/shm`), `/etc`, `/boot`",
    )
    engine: Literal["eager", "half"] = Field(
        default="eager",
        description="`half`: a job in bf16 or fp16 has a model of its own whose numbers all are in it, which is faster "
        "where `make gpu-check` says so ([gpu-check.md](gpu-check.md#engine)); it takes half a model's memory more "
        "where jobs in float32 use the same network. `eager`: torch's autocast decides what is safe in half precision",
    )
    run_dir: Annotated[Path | None, Setting(absent="the system's folder for temporary files")] = Field(
        default=None, description="where launchers make their folders, for `gradcam-worker check`"
    )

    @property
    def told_device(self) -> str:
        """Return what `gradcam workers` shows: which GPU it is, where the launcher knows that, or what it is."""
        return self.place or self.device

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
