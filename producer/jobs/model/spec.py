"""What a job, an item, a status and a result are: frozen, versioned, unknown fields refused."""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producer.jobs.model.errors import UsageError
from producer.jobs.model.stage_times import StageTime
from producer.jobs.model.states import TERMINAL, Ingest, JobState

#: Items in one Lua call at most; a commit of 512 keeps the server busy for about 2 ms.
MAX_CHUNK_SIZE = 512
#: Higher levels take twice the time and save one byte of the 25 that a random name takes.
_ZLIB_LEVEL = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: What lies under this name in the store is no job's: its deletion would take it along.
_SHARED = "weights"

Output = Literal["heatmap", "cam", "gb", "cam_gb"]
OUTPUTS: tuple[Output, ...] = ("heatmap", "cam", "gb", "cam_gb")
Queue = Literal["high", "default", "low"]
#: The priorities, the most urgent first.
PRIORITIES: tuple[Queue, ...] = ("high", "default", "low")
#: Which class is explained of an image with a label.
Explain = Literal["predicted", "label", "both"]
EXPLAIN: tuple[Explain, ...] = ("predicted", "label", "both")
Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]
METHODS: tuple[Method, ...] = ("gradcam", "gradcam++", "hirescam", "layercam", "xgradcam")
#: A side of the network's input in px, and a number of its normalization. Those of bytes (123.675, 58.395) are out of
#: range, that of 1/255, for networks that read 0 to 255, is not.
Side = Annotated[int, Field(ge=8, le=2048)]
Mean = Annotated[float, Field(ge=0, le=1)]
Std = Annotated[float, Field(ge=0.001, le=10)]


#: What a parameter of a job is called where it is typed, if not as here.
_OPTIONS = {
    "layer": "--layer-name",
    "weights": "--weight-path",
    "weights_sha256": "--weight-path",
    "store": "GRADCAM_S3_BUCKET or GRADCAM_S3_PREFIX",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobSpec(_Frozen):
    """What to compute, the same for every image of a job."""

    #: Version of this message; another one is refused.
    version: Literal[1] = 1
    #: Name of the network as typed.
    network: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_./-]+$")] = "resnet50"
    #: A torchvision weights name, `random`, or the URI of a state dict.
    weights: Annotated[str, Field(min_length=1, max_length=8192)] = "DEFAULT"
    #: SHA-256 of the weights file where the producer knows it.
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    #: `last-conv`, `last-features` or the dotted name of a module; several with commas, whose maps are averaged.
    layer: Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$")] = (
        "last-conv"
    )
    #: Class that drives all four pictures; the predicted one when absent.
    class_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    #: The same by its name.
    class_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: So many pictures of each kind, of the most likely classes, where no class is given.
    top_k: Annotated[int, Field(ge=1, le=100)] = 1
    #: Of an image with a label: the predicted class (or the one asked for), the label's, or both, in that order.
    explain: Explain = "predicted"
    #: The name of each class, in place of those that come with the weights.
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)] | None = None
    #: How maps are made of activations and gradients.
    method: Method = "gradcam"
    #: In what the forward pass runs where it may.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    #: (height, width) in px of what the network reads, in place of that of the weights' own.
    input_size: tuple[Side, Side] | None = None
    #: What is subtracted from a picture's red, green and blue in [0, 1], and what they are divided by then, in place of
    #: that of the weights' own.
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Std, Std, Std] | None = None
    #: How a picture is brought to the network's size.
    fit: Literal["squash", "crop", "pad"] = "squash"
    #: The size of the pictures made: the network's, or the original's.
    output_size: Literal["input", "original"] = "input"
    #: Whether to store the map and the guided gradient as numbers, too.
    raw: bool = False
    #: Which of the four pictures to make.
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)] = OUTPUTS
    #: Picture format.
    format: Literal["jpg", "png"] = "jpg"
    #: Whether each picture is an object of its own, or those of a chunk lie in one tar.
    pack: Literal["none", "tar"] = "none"
    #: Items a chunk: what one message points to and one claim hands out.
    chunk_size: Annotated[int, Field(ge=1, le=MAX_CHUNK_SIZE)] = 64
    #: Class of service.
    queue: Queue = "default"
    #: Where the producer looks for the pictures, as bucket/prefix; workers that write elsewhere refuse the job.
    store: Annotated[str, Field(max_length=512)] = ""

    def differing(self, other: JobSpec) -> str:
        """The parameters in which two specs differ, as the command line calls them."""
        names = (name for name in JobSpec.model_fields if getattr(self, name) != getattr(other, name))
        return ", ".join(dict.fromkeys(_OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in names))


class Item(_Frozen):
    """One image of a job; its index is its place in the source."""

    #: `s3://`, `http(s)://` or `file://` address.
    uri: Annotated[str, Field(min_length=1, max_length=8192)]
    #: What the user calls it; kept in results.
    id: Annotated[str, Field(max_length=1024)] | None = None
    #: Class of this image alone; beats the job's.
    class_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    #: The same by its name.
    class_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: What it shows, as the user says: the number or the name of a class.
    label: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    #: Columns of the user's list that are carried along into the results.
    keep: dict[str, str] | None = None

    @property
    def line(self) -> str:
        """The item as it lies in Redis."""
        return self.model_dump_json(exclude_none=True)


def uri_line(uri: str) -> str:
    """`Item(uri=uri).line` of an address that was checked already, forty times as fast: millions are made."""
    return f'{{"uri":{encode_basestring(uri)}}}'


class Chunk(_Frozen):
    """Consecutive items, in the form they lie in Redis."""

    #: Its place in the job: items `number * chunk_size` and on.
    number: int
    #: How many items.
    count: int
    #: First 16 hex digits of the SHA-256 of the lines; the same source gives the same.
    digest: str
    #: zlib-compressed JSON lines.
    payload: bytes

    @property
    def entry(self) -> str:
        """What the job table holds of it for good."""
        return f"{self.digest}:{self.count}"

    @classmethod
    def compress(cls, number: int, lines: Sequence[str]) -> Chunk:
        """Pack items, a line each, into a chunk."""
        text = "\n".join(lines).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        return cls(number=number, count=len(lines), digest=digest, payload=zlib.compress(text, _ZLIB_LEVEL))


def compress_items(items: dict[int, Item]) -> bytes:
    """Pack some of a chunk's items, by their offset; the others are empty lines."""
    lines = [items[n].line if n in items else "" for n in range(max(items) + 1)]
    return zlib.compress("\n".join(lines).encode(), _ZLIB_LEVEL)


def decompress_items(payload: bytes) -> dict[int, Item]:
    """Read a chunk's items back, by their offset."""
    lines = zlib.decompress(payload).split(b"\n")
    return {offset: Item.model_validate_json(line) for offset, line in enumerate(lines) if line}


class Failure(_Frozen):
    """Why an item failed, as the job table keeps it."""

    index: int
    item: Item
    #: The word it is counted under: `fetch`, `image`, `model`, `store`, …
    reason: str
    message: str
    #: How many times its chunk had been handed out.
    attempts: int = 1


class ChunkCounts(_Frozen):
    """Where a job's chunks are."""

    total: int
    waiting: int
    in_hand: int
    complete: int


class Wait(_Frozen):
    """A server, or a step of work, that workers have waited for longer than usual."""

    what: str
    #: How many worker processes.
    workers: int
    longest_s: float


class JobStatus(_Frozen):
    """What there is to know of a job at one moment; all counts are of images."""

    job: str
    #: What the user named it; none for a job with a made-up id.
    name: str | None
    state: JobState
    ingest: Ingest
    network: str
    total: int
    done: int
    failed: int
    cancelled: int
    pending: int
    #: Of the done ones with a label, how many were predicted as it says, and how many were not; none without labels.
    correct: int | None = None
    wrong: int | None = None
    #: reason → count
    failures: dict[str, int]
    #: Over the last minute or so while it runs, over the whole run when it has ended; none before the first image, and
    #: where nothing has been recorded for half a minute.
    images_per_s: float | None
    eta_s: float | None
    created_at: datetime
    finished_at: datetime | None
    #: Why the whole job failed, in a sentence.
    error: str | None = None
    #: Workers heard of within the last minute.
    workers: int = 0
    #: What keeps one of them from working, or what is wrong with Redis, in a sentence.
    problem: str | None = None
    #: What is wrong with Redis.
    redis_problem: str | None = None
    #: For how many seconds nothing has been recorded, though it runs and is not done; none before half a minute.
    stalled_s: float | None = None
    #: What workers wait for while that is so, the longest wait first.
    waits: tuple[Wait, ...] = ()
    #: Releases of workers that are not this program's, each with the name of one of its workers.
    other_versions: dict[str, str] = {}
    #: It has ended with images done, and its summary is not in the store any more.
    objects_gone: bool = False
    #: Images in chunks that a worker has in hand.
    running: int = 0
    #: Where its chunks are; a worker process has one or two in hand.
    chunks: ChunkCounts
    #: Seconds of each stage over all images: at work, and waiting for it.
    stages: dict[str, StageTime] = {}
    #: Share of the time in which the devices that work at it had something to do.
    device_busy: float | None = None
    #: 1 at first, one more with each retry.
    generation: int = 1
    #: Chunks handed out again because a lease ran out or a message was lost.
    republished: int = 0

    @property
    def ended(self) -> bool:
        """Whether it has reached its end."""
        return self.state in TERMINAL


class Prediction(_Frozen):
    """One of the network's most likely classes."""

    class_id: int
    #: None where nobody named the classes; lines leave it out then.
    class_name: str | None = None
    probability: float


class ExplainedClass(_Frozen):
    """One of several classes that were explained of one image."""

    class_id: int
    class_name: str | None = None
    probability: float
    flat: bool


class Result(_Frozen):
    """One image's line in the manifest."""

    index: int
    uri: str
    id: str | None = None
    state: Literal["done", "failed"]
    class_id: int | None = None
    class_name: str | None = None
    #: Softmax of the explained class; of a network with one logit, its sigmoid.
    probability: float | None = None
    top5: tuple[Prediction, ...] = ()
    #: What the user says that it shows, as given.
    label: str | None = None
    #: The most likely class, whatever was explained: its name, or its number where it has none; and its softmax.
    predicted: str | None = None
    predicted_probability: float | None = None
    #: Whether that is the label's; none where there is no label, or no class of the network is called so.
    correct: bool | None = None
    #: Where several classes were explained: each, the most likely first; `class_id` and `flat` are the first's.
    classes: tuple[ExplainedClass, ...] = ()
    network: str | None = None
    layer: str | None = None
    #: The map was zero everywhere: nothing spoke for this class at this layer.
    flat: bool | None = None
    #: Guided ReLUs; 0 means that `gb` is the plain gradient.
    guided_relus: int | None = None
    #: The weights were seeded random numbers: a picture of nothing, for tests and benchmarks.
    random_weights: bool | None = None
    #: Columns of the user's list that were carried along.
    keep: dict[str, str] | None = None
    #: kind → object key; with several classes `class<ID>-<kind>`
    objects: dict[str, str] = {}
    #: stage → seconds of work
    seconds: dict[str, float] = {}
    reason: str | None = None
    message: str | None = None

    @property
    def line(self) -> str:
        """The result as it stands in the manifest."""
        return self.model_dump_json(exclude_none=True)


def class_key(result: Result) -> str:
    """Under what an image counts among its job's classes: id and name, after + where it is correct, - where wrong."""
    if result.class_id is None:
        return ""
    sign = "" if result.correct is None else "+" if result.correct else "-"
    return f"{sign}{result.class_id} {result.class_name or ''}".rstrip()


def is_newer(error: ValidationError) -> bool:
    """Whether what cannot be read is whole, and says more than this version of the program knows."""
    # A line that is damaged elsewhere, too, is no line of a newer version.
    kinds = {(problem["type"], problem["loc"] == ("version",)) for problem in error.errors(include_url=False)}
    return bool(kinds) and all(kind == "extra_forbidden" or version for kind, version in kinds)


def new_job_id() -> str:
    """Make a job id that sorts by time and cannot be guessed."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(5)}"


def checked_name(name: str) -> str:
    """Give the name back if a job may have it.

    Raises:
        UsageError: It has characters that object keys and Redis keys should not have.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot name a job: use up to 63 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )
    if name == _SHARED:
        raise UsageError(f"{name!r} cannot name a job: uploaded weights lie under it, which all jobs share")
    return name
