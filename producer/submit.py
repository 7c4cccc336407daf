"""Images become chunks, chunks become entries of the job table, and each entry gets its message."""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from producer.jobs import keys, uris
from producer.jobs.errors import FetchError, ServiceError, UsageError
from producer.jobs.spec import MAX_CHUNK_SIZE, METHODS, OUTPUTS, Chunk, Failure, Item, JobSpec, unpack
from producer.jobs.storage import Storage, sha256_of
from producer.jobs.table import FULL_SHARE
from producer.results import manifest_parts, merge
from producer.sources import printable

if TYPE_CHECKING:
    from producer.jobs.table import JobTable
    from producer.sources import Source

#: Uploads at once: enough to hide a store's latency, few enough for a laptop.
UPLOAD_THREADS = 16
_UPLOADS_AHEAD = 4 * UPLOAD_THREADS
#: How often everything is looked through again when Redis lost some of it.
_PASSES = 5
_LOOK_EVERY_S = 0.5
#: How long taking over what is recorded of a chunk may take.
_ADOPT_S = 30.0
#: A torchvision weights name, as `IMAGENET1K_V1`.
_WEIGHTS_NAME = re.compile(r"[A-Z][A-Z0-9_]*")

#: What is said of a parameter that cannot be used, in the words of the command line.
_ADVICE = {
    "network": "--network must be the name of a network, such as resnet50",
    "weights": "--weight-path must be a file, an address, or a name of weights",
    "layer": "--layer-name must be last-conv, last-features or dotted names of modules, such as layer4.2.conv3,layer3",
    "class_id": "--class-id must be a whole number, 0 or more",
    "outputs": f"--outputs must be some of {','.join(OUTPUTS)}",
    "class_name": "--class-name must be the name of a class, such as tabby",
    "top_k": "--top-k must be 1 to 100",
    "labels": "--labels must be a file with one class name a line",
    "method": f"--method must be one of {', '.join(METHODS)}",
    "precision": "--precision must be fp32, bf16 or fp16",
    "fit": "--fit must be squash, crop or pad",
    "output_size": "--output-size must be input or original",
    "format": "--format must be jpg or png",
    "chunk_size": f"--chunk-size must be 1 to {MAX_CHUNK_SIZE}",
    "queue": "--queue must be high, default or low",
}
#: Called with images sent so far and images in all.
Progress = Callable[[int, int], None]
#: Called with a chunk's number and the time to publish its pointer with.
Publish = Callable[[int, float], None]


def make_spec(**parameters: Any) -> JobSpec:
    """Check parameters and make a job's spec of them.

    Raises:
        UsageError: Names every parameter that cannot be used.
    """
    try:
        return JobSpec(**parameters)
    except ValidationError as error:
        fields = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise UsageError("; ".join(_ADVICE.get(field, f"{field} cannot be used") for field in fields)) from None


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """Read class names, one a line, in the order of their ids.

    Raises:
        UsageError: The file cannot be read, or holds no names.
    """
    if path is None:
        return None
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"--labels {path} cannot be read: {reason}") from None
    names = tuple(line.strip() for line in lines)
    if not any(names):
        raise UsageError(f"--labels {path} holds no names: write one class name a line")
    return names


def place_weights(weight_path: str | None, storage: Storage) -> tuple[str, str | None]:
    """Make weights reachable for every worker: a local file is uploaded once, named by its content.

    Returns:
        What the spec says of the weights, and their SHA-256 where it is known.

    Raises:
        UsageError: It is neither a file here, nor an address, nor a name of weights.
    """
    if weight_path is None:
        return "DEFAULT", None
    if "://" in weight_path:
        try:
            uris.parse(weight_path)
        except FetchError as error:
            raise UsageError(f"--weight-path: {error}") from None
        return weight_path, None
    path = Path(weight_path).expanduser()
    if path.is_file():
        digest = sha256_of(path)
        key = keys.weights(storage.prefix, digest)
        if storage.size(key) != path.stat().st_size:
            storage.put_file(key, path)
        return storage.uri(key), digest
    if weight_path == "random" or _WEIGHTS_NAME.fullmatch(weight_path):
        return weight_path, None
    raise UsageError(
        f"--weight-path {weight_path[:200]!r} is no file here: give a .pth, .pt or .safetensors file, its address "
        "(s3://, https://), a torchvision weights name such as IMAGENET1K_V1, or `random`"
    )


def send(
    table: JobTable,
    storage: Storage,
    publish: Publish,
    *,
    job: str,
    spec: JobSpec,
    sources: list[Source],
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
) -> None:
    """Send all images of a job that was created, then close it; what Redis has already is not sent again.

    Local files go to the object store first, many at once and ahead of the chunk they belong to. Redis can lose what
    it acknowledged within its last second: the ingest is closed only when everything is there and on its disk.

    Args:
        table: The job table.
        storage: Our bucket.
        publish: Sends a chunk's pointer.
        job: Its id.
        spec: What it computes.
        sources: Its images.
        progress: Called with images sent and images in all.
        waiting: Called with a sentence while Redis is too full to take more.

    Raises:
        UsageError: The job holds other images, or takes no more.
        UnknownJob: Redis has lost the job meanwhile.
        ServiceError: Redis loses again and again what is sent, or is away for too long.
    """
    sending = _Sending(table, storage, publish, job, spec, waiting)
    for _ in range(_PASSES):
        chunks = sending.all(sources, progress)
        table.to_disk()
        if table.close(job, chunks=chunks, items=len(sources)) == len(sources):
            table.to_disk()
            return
    raise ServiceError(f"Redis does not keep the images of job {job}: check its persistence (appendonly yes)")


@dataclass
class _Sending:
    """One submission under way."""

    table: JobTable
    storage: Storage
    publish: Publish
    job: str
    spec: JobSpec
    waiting: Callable[[str], None] | None
    #: Chunks of which an earlier life of this job left manifests: Redis was wiped, or lost its last second.
    recorded: dict[int, list[str]] = field(default_factory=dict)
    #: When the fullness of Redis was looked at last.
    looked: float = float("-inf")

    def all(self, sources: list[Source], progress: Progress | None) -> int:
        """Send every chunk that is not there; how many chunks there are."""
        self.recorded = dict(manifest_parts(self.storage, self.job))
        known = self.table.chunks(self.job)
        sent = count = 0
        with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
            try:
                for chunk in self._uploaded(pool, sources, known):
                    if chunk.number not in known:
                        self._add(chunk)
                    sent, count = sent + chunk.count, count + 1
                    if progress:
                        progress(sent, len(sources))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return count

    def _uploaded(self, pool: Executor, sources: list[Source], known: Mapping[int, str]) -> Iterator[Chunk]:
        """Chunks in order, each when its files are in the object store; later ones are uploaded meanwhile."""
        window: deque[tuple[Chunk, list[Future[None]]]] = deque()
        for number, start in enumerate(range(0, len(sources), self.spec.chunk_size)):
            part = list(enumerate(sources[start : start + self.spec.chunk_size], start))
            chunk = Chunk.pack(number, [self._item(index, source) for index, source in part])
            if known.get(number, chunk.entry) != chunk.entry:
                raise UsageError(f"job {self.job} was made from another source: choose another --name for this one")
            files = [] if number in known else [(index, source.path) for index, source in part if source.path]
            window.append((chunk, [pool.submit(self._upload, index, path) for index, path in files]))
            while window and (not window[0][1] or sum(len(futures) for _, futures in window) > _UPLOADS_AHEAD):
                yield _when_done(*window.popleft())
        while window:
            yield _when_done(*window.popleft())

    def _item(self, index: int, source: Source) -> Item:
        own = {"class_id": source.class_id, "class_name": source.class_name}
        if source.path is None:
            return Item(uri=str(source.uri), id=source.id, **own)
        uri = self.storage.uri(self._key(index, source.path))
        return Item(uri=uri, id=source.id or printable(str(source.path))[-1024:], **own)

    def _key(self, index: int, path: Path) -> str:
        return keys.uploaded_input(self.storage.prefix, self.job, index, path.name)

    def _upload(self, index: int, path: Path) -> None:
        try:
            self.storage.put_file(self._key(index, path), path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from None

    def _add(self, chunk: Chunk) -> None:
        self._wait_for_room()
        published_at = self.table.add_chunk(self.job, chunk)
        if published_at is None:
            return
        if chunk.number in self.recorded:
            published_at = self._adopt(chunk, published_at)
        if published_at is not None:
            self.publish(chunk.number, published_at)

    def _wait_for_room(self) -> None:
        """Wait while Redis is so full that workers might not be able to go on."""
        if time.monotonic() - self.looked < _LOOK_EVERY_S:
            return
        while (full := self.table.fullness()) > FULL_SHARE:
            if self.waiting:
                self.waiting(f"Redis is {full:.0%} full: waiting for workers to work something off")
            time.sleep(_LOOK_EVERY_S)
        self.looked = time.monotonic()

    def _adopt(self, chunk: Chunk, published_at: float) -> float | None:
        """Take over what manifests say of a chunk's images: their pictures are in the store.

        Returns:
            The time to publish its pointer with; None when nothing of it is left to do.
        """
        items = unpack(chunk.payload)
        first = chunk.number * self.spec.chunk_size
        results = merge(self.storage, self.recorded[chunk.number])
        ours = {index - first: result for index, result in results.items() if index - first in items}
        if any(result.uri != uris.redact(items[offset].uri) for offset, result in ours.items()):
            raise UsageError(
                f"the store holds a job named {self.job} that was made from another source: choose another --name"
            )
        claim = self.table.claim(self.job, chunk.number, self.spec, claim_id=uuid.uuid4().hex, lease_s=_ADOPT_S)
        if claim is None:
            return published_at
        failed = [
            Failure(index=first + offset, item=items[offset], reason=result.reason, message=result.message or "")
            for offset, result in ours.items()
            if result.state == "failed" and result.reason
        ]
        done = [offset for offset, result in ours.items() if result.state == "done"]
        committed = self.table.commit(claim, done=done, failed=failed, lease_s=_ADOPT_S)
        return None if committed is None or committed.complete else self.table.release(claim)


def _when_done(chunk: Chunk, uploads: list[Future[None]]) -> Chunk:
    for upload in uploads:
        upload.result()
    return chunk
