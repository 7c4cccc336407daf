"""What a submission would send, without sending it: `gradcam submit --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from producer.jobs.model.items import Chunk
from producer.jobs.model.redaction import redact

if TYPE_CHECKING:
    from producer.input.sources import Source
    from producer.jobs.model.spec import JobSpec, Output
    from producer.submission.sender import LineMaker

#: What Redis holds of a chunk beside its items: a message of Celery's, and its entries in the job table (measured).
MESSAGE_BYTES, ENTRY_BYTES = 1000, 140
#: Bytes of a JPEG of 224 x 224 px at our quality, in the mean of the demo's ten photos.
PICTURE_BYTES: dict[Output, int] = {"heatmap": 16_000, "cam": 26_000, "gb": 27_000, "cam_gb": 22_000, "mask": 24_000}
#: PNGs of the same pictures take 3.3 times as much.
_PNG_FACTOR = 3.3
_SHOWN = 3


class Plan(BaseModel):
    """What would be sent."""

    model_config = ConfigDict(frozen=True)

    images: int
    chunk_size: int
    #: As many messages.
    chunks: int
    #: What waiting images take of Redis' memory; it shrinks as they get done.
    redis_bytes: int
    #: Local files that would be uploaded, and their bytes.
    files: int
    upload_bytes: int
    #: What the pictures will take, if they are of 224 x 224 px.
    pictures_bytes: int
    #: Rows of lists that are left out because they cannot be used.
    bad_rows: int = 0
    #: Files of folders and prefixes that are no images by their names, by suffix.
    left_out: dict[str, int] = {}
    #: The first addresses, with their secrets blanked out.
    first: tuple[str, ...]


def plan(sources: Iterable[Source], lines: LineMaker, spec: JobSpec) -> Plan:
    """Read all sources, and count."""
    stream = iter(sources)
    images = chunks = payload = files = upload_bytes = 0
    first: list[str] = []
    while part := list(islice(stream, spec.chunk_size)):
        chunk = Chunk.compress(chunks, lines(images, part))
        first += [redact(source.uri) if source.uri else str(source.path) for source in part[: _SHOWN - len(first)]]
        paths = [source.path for source in part if source.path is not None]
        files += len(paths)
        upload_bytes += sum(path.stat().st_size for path in paths)
        images, chunks, payload = images + len(part), chunks + 1, payload + len(chunk.payload)
    pictures = sum(PICTURE_BYTES[kind] for kind in spec.outputs) * (_PNG_FACTOR if spec.format == "png" else 1)
    return Plan(
        images=images,
        chunk_size=spec.chunk_size,
        chunks=chunks,
        redis_bytes=payload + chunks * (MESSAGE_BYTES + ENTRY_BYTES),
        files=files,
        upload_bytes=upload_bytes,
        pictures_bytes=round(images * pictures * spec.top_k),
        first=tuple(first),
    )
