"""What a Parquet file says of its columns and their pages, before anything is unpacked.

Arrow makes room for what a page's header claims, up to 2 GiB, whatever the file's table of contents says; and a
dictionary, or texts that share their beginnings, repeat a long text in a few bytes. The table of contents is read here
as well: Arrow's own Python classes for it end the process where it is broken in some ways.

The structs and their fields: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from producer.input import thrift
from producer.input.thrift import I32, I64, LIST, STRUCT, Struct

#: A page is 1 MiB in what writers make, and more where 1,024 values are longer than that.
MAX_PAGE_BYTES = 128 * 2**20
MAX_PAGE_VALUES = 2**24
#: The table of contents: a thousand groups of a hundred columns take some megabytes.
_MAX_FOOTER_BYTES = 64 * 2**20
#: A header may have a smallest and a largest value in it. It is read in two steps, as most are short.
_HEADER_BYTES = (2**10, 2**21)
_END = 8  # the footer's length, and PAR1
_GROUPS = (4, LIST)
_COLUMNS, _ROWS = (1, LIST), (3, I64)
_META = (3, STRUCT)
_TYPE, _ENCODINGS, _PATH, _CODEC, _VALUES = (1, I32), (2, LIST), (3, LIST), (4, I32), (5, I64)
_DATA_AT, _DICTIONARY_AT = (9, I64), (11, I64)
_UNPACKED, _PACKED = (2, I32), (3, I32)
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2, _COUNT = (5, STRUCT), (7, STRUCT), (8, STRUCT), (1, I32)
_TEXT = 6  # the physical type BYTE_ARRAY
_SHARED_BEGINNINGS = 7  # the encoding DELTA_BYTE_ARRAY
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


class PageError(ValueError):
    """A page or a table of contents that is not read; the text says why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of a column that is in one group of rows."""

    #: Of the column, or of the part of a column that has several.
    name: str
    is_text: bool
    #: Whether its texts may share their beginnings with those before them.
    shares: bool
    codec: int
    values: int
    rows: int
    #: Where its first page begins in the file.
    at: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a chunk."""

    is_dictionary: bool
    unpacked_bytes: int
    values: int
    #: Where its content begins in the file, and what it takes there.
    at: int
    packed_bytes: int


def groups(file: BinaryIO) -> list[list[Chunk]]:
    """Read the table of contents: each group of rows with its chunks.

    Raises:
        PageError: It is broken, or larger than any that is read.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _END, 0))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(end - _END, _MAX_FOOTER_BYTES):
        raise PageError(f"its table of contents has {length:,} bytes")
    file.seek(end - _END - length)
    try:
        footer, _ = thrift.read(memoryview(file.read(length)))
        return [
            [_chunk(column[_META], group[_ROWS]) for column in group[_COLUMNS]] for group in footer.get(_GROUPS, [])
        ]
    except (thrift.BrokenStruct, IndexError, KeyError, TypeError, AttributeError):
        raise PageError("its table of contents is broken") from None


def _chunk(meta: Struct, rows: int) -> Chunk:
    return Chunk(
        name=b".".join(bytes(part) for part in meta[_PATH][:1]).decode("utf-8", "replace"),
        is_text=meta[_TYPE] == _TEXT,
        shares=_SHARED_BEGINNINGS in meta[_ENCODINGS],
        codec=meta[_CODEC],
        values=meta[_VALUES],
        rows=rows,
        at=min(place for place in (meta[_DATA_AT], meta.get(_DICTIONARY_AT)) if place),
    )


def pages(file: BinaryIO, chunk: Chunk) -> Iterator[Page]:
    """Read the headers of a chunk's pages; what they hold is skipped.

    Raises:
        PageError: They are broken, or a page claims more than is read.
    """
    at, left = chunk.at, chunk.values
    while left > 0:
        page = _page(file, at)
        yield page
        left -= 0 if page.is_dictionary else page.values
        at = page.at + page.packed_bytes


def longest_text(file: BinaryIO, page: Page, codec: int) -> int:
    """How long the longest text of a dictionary is; as long as the page where that cannot be told.

    Args:
        file: The Parquet file.
        page: A dictionary of texts.
        codec: How it is packed, by Parquet's number.
    """
    import pyarrow

    file.seek(page.at)
    data = file.read(page.packed_bytes)
    if codec:
        try:
            data = pyarrow.decompress(data, page.unpacked_bytes, _CODECS[codec], asbytes=True)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError):
            return page.unpacked_bytes
    longest = at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        longest = max(longest, length)
        at += 4 + length
    return min(longest, page.unpacked_bytes)


def _page(file: BinaryIO, at: int) -> Page:
    """Read the header that begins there."""
    header, length = _header(file, at)
    inner: Struct = next((header[kind] for kind in (_DATA_PAGE, _DATA_PAGE_V2) if kind in header), {})
    unpacked, packed, values = header.get(_UNPACKED, -1), header.get(_PACKED, -1), inner.get(_COUNT, 0)
    is_dictionary = _DICTIONARY_PAGE in header
    if min(unpacked, packed, values) < 0:
        raise PageError("a page's header is broken or truncated")
    if unpacked > MAX_PAGE_BYTES:
        raise PageError(f"a page unpacks to {unpacked:,} bytes: the largest that is read has {MAX_PAGE_BYTES:,}")
    if values > MAX_PAGE_VALUES:
        raise PageError(f"a page has {values:,} values: the largest that is read has {MAX_PAGE_VALUES:,}")
    if not values and not packed:
        raise PageError("a page has nothing in it")
    return Page(is_dictionary, unpacked, values, at + length, packed)


def _header(file: BinaryIO, at: int) -> tuple[Struct, int]:
    for longest in _HEADER_BYTES:
        file.seek(max(at, 0))
        head = file.read(longest)
        try:
            return thrift.read(memoryview(head))
        except thrift.BrokenStruct:
            break
        except IndexError:
            if len(head) < longest:
                break
    raise PageError("a page's header is broken or truncated")
