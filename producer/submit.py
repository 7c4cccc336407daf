"""Images become chunks, chunks become entries of the job table, and each entry gets its message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from producer.jobs import keys, uris
from producer.jobs.ahead import ahead
from producer.jobs.errors import FetchError, UsageError
from producer.jobs.spec import MAX_CHUNK_SIZE, METHODS, OUTPUTS, Chunk, Item, JobSpec
from producer.jobs.storage import Storage, sha256_of
from producer.sources import printable

if TYPE_CHECKING:
    from producer.jobs.table import JobTable
    from producer.sources import Source

#: Uploads at once: enough to hide a store's latency, few enough for a laptop.
UPLOAD_THREADS = 16
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
) -> None:
    """Send all images of a job that was created, then close it.

    Local files go to the object store first, many at once and ahead of the chunk they belong to.
    """

    def place(numbered: tuple[int, Source]) -> Item:
        index, source = numbered
        own = {"class_id": source.class_id, "class_name": source.class_name}
        if source.path is None:
            return Item(uri=str(source.uri), id=source.id, **own)
        key = keys.uploaded_input(storage.prefix, job, index, source.path.name)
        try:
            storage.put_file(key, source.path)
        except OSError as error:
            raise UsageError(f"{source.path} cannot be read ({error.strerror})") from None
        return Item(uri=storage.uri(key), id=source.id or printable(str(source.path))[-1024:], **own)

    sent = chunks = 0
    with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
        items = ahead(pool, place, enumerate(sources), depth=4 * UPLOAD_THREADS)
        for chunk in _chunks(items, spec.chunk_size):
            published_at = table.add_chunk(job, chunk)
            if published_at is not None:
                publish(chunk.number, published_at)
            sent, chunks = sent + chunk.count, chunks + 1
            if progress:
                progress(sent, len(sources))
    table.close(job, chunks=chunks, items=sent)


def _chunks(items: Iterable[Item], size: int) -> Iterator[Chunk]:
    stream = iter(items)
    number = 0
    while part := list(islice(stream, size)):
        yield Chunk.pack(number, part)
        number += 1
