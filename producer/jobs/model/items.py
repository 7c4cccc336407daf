"""What one image of a job is, and how many of them lie in Redis as a chunk."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Annotated, Final

from pydantic import Field

from producer.jobs.model.errors import UsageError
from producer.jobs.model.frozen import Frozen

#: Higher levels take twice the time and save one byte of the 25 that a random name takes.
_ZLIB_LEVEL = 1
#: What a chunk's items take at most when they are unpacked: 128 KiB each, where it has as many as it may.
MAX_UNPACKED_BYTES: Final = 64 * 2**20
#: And how many lines that may be.
MAX_LINES: Final = 4096


class Item(Frozen):
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


class Chunk(Frozen):
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
        """Pack items, a line each, into a chunk.

        Raises:
            UsageError: They are longer than what is read back.
        """
        text = "\n".join(lines).encode()
        if len(text) > MAX_UNPACKED_BYTES:
            raise UsageError(
                f"{len(lines)} images with what is carried along are longer than {MAX_UNPACKED_BYTES:,} bytes: "
                "take fewer columns along, or a smaller --chunk-size"
            )
        digest = hashlib.sha256(text).hexdigest()[:16]
        return cls(number=number, count=len(lines), digest=digest, payload=zlib.compress(text, _ZLIB_LEVEL))


def compress_items(items: dict[int, Item]) -> bytes:
    """Pack some of a chunk's items, by their offset; the others are empty lines."""
    lines = [items[n].line if n in items else "" for n in range(max(items) + 1)]
    return zlib.compress("\n".join(lines).encode(), _ZLIB_LEVEL)


def decompress_items(payload: bytes) -> dict[int, Item]:
    """Read a chunk's items back, by their offset.

    Raises:
        ValueError: Nothing of ours wrote them, or they unpack to more than a chunk has; pydantic's among them.
    """
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(payload, MAX_UNPACKED_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(text) > MAX_UNPACKED_BYTES or not unpacker.eof or text.count(b"\n") >= MAX_LINES:
        raise ValueError("a chunk's items break off, or unpack to more than a chunk has")
    return {offset: Item.model_validate_json(line) for offset, line in enumerate(text.split(b"\n")) if line}
