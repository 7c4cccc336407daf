"""What the pages of a Parquet file say of themselves, before anything is unpacked.

Arrow makes room for what a page's header claims, up to 2 GiB, whatever the file's own table of contents says; and a
dictionary, or texts that share their beginnings, repeat a long text in a few bytes. Headers are structs of Thrift's
compact protocol (https://github.com/apache/parquet-format, parquet.thrift).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

#: A page is 1 MiB in what writers make, and more where 1,024 values are longer than that.
MAX_PAGE_BYTES = 128 * 2**20
MAX_PAGE_VALUES = 2**24
#: A header may have a smallest and a largest value in it. It is read in two steps, as most are short.
_HEADER_BYTES = (2**10, 2**21)
_DEEPEST = 8
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_VARINTS = (4, 5, 6)
_VARINT_BYTES = 10
#: Fields of `PageHeader`, and of the headers of each kind of page in it.
_UNPACKED, _PACKED, _DATA, _DICTIONARY, _DATA_V2, _COUNT = 2, 3, 5, 7, 8, 1


class PageError(ValueError):
    """A page that is not read; the text says why."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a column."""

    is_dictionary: bool
    unpacked_bytes: int
    values: int
    #: Where its content begins in the file, and what it takes there.
    at: int
    packed_bytes: int


def pages(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """Read the headers of a column chunk's pages; what they hold is skipped.

    Args:
        file: The Parquet file.
        chunk: Its `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        PageError: They are broken, or a page claims more than is read.
    """
    starts = (chunk.data_page_offset, chunk.dictionary_page_offset)
    at = min(start for start in starts if start)
    left = chunk.num_values
    while left > 0:
        page = _page(file, at)
        yield page
        left -= 0 if page.is_dictionary else page.values
        at = page.at + page.packed_bytes


def longest_text(file: BinaryIO, page: Page, compression: str) -> int:
    """How long the longest text of a dictionary is; as long as the page where that cannot be told.

    Args:
        file: The Parquet file.
        page: A dictionary of texts.
        compression: How it is packed, by Parquet's name for it.
    """
    import pyarrow

    file.seek(page.at)
    data = file.read(page.packed_bytes)
    if compression != "UNCOMPRESSED":
        try:
            data = pyarrow.decompress(data, page.unpacked_bytes, compression.lower(), asbytes=True)
        except (pyarrow.ArrowException, OSError, ValueError):
            return page.unpacked_bytes
    longest = at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        longest = max(longest, length)
        at += 4 + length
    return min(longest, page.unpacked_bytes)


def _page(file: BinaryIO, at: int) -> Page:
    """Read the header that begins there."""
    for longest in _HEADER_BYTES:
        file.seek(at)
        head = file.read(longest)
        try:
            header, length = _struct(memoryview(head), 0, 0)
            break
        except IndexError:
            if len(head) < longest or longest == _HEADER_BYTES[-1]:
                raise PageError("a page's header is broken or truncated") from None
    unpacked, packed = header.get(_UNPACKED), header.get(_PACKED)
    inner = next((header[kind] for kind in (_DATA, _DATA_V2, _DICTIONARY) if isinstance(header.get(kind), dict)), {})
    values = inner.get(_COUNT, 0)
    if not all(isinstance(number, int) and number >= 0 for number in (unpacked, packed, values)):
        raise PageError("a page's header is broken or truncated")
    if unpacked > MAX_PAGE_BYTES:
        raise PageError(f"a page unpacks to {unpacked:,} bytes: the largest that is read has {MAX_PAGE_BYTES:,}")
    if values > MAX_PAGE_VALUES:
        raise PageError(f"a page has {values:,} values: the largest that is read has {MAX_PAGE_VALUES:,}")
    if not values and _DICTIONARY not in header and not packed:
        raise PageError("a page has nothing in it")
    return Page(_DICTIONARY in header, unpacked, values, at + length, packed)


def _struct(data: memoryview, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read a struct's numbers and structs by the numbers of their fields; raises IndexError where it breaks off."""
    if depth > _DEEPEST:
        raise PageError("a page's header is broken or truncated")
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        kind = head & 15
        if kind == _STOP:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            number, at = _varint(data, at)
            field = _signed(number)
        found[field], at = _value(data, at, kind, depth, in_struct=True)


def _value(data: memoryview, at: int, kind: int, depth: int, *, in_struct: bool = False) -> tuple[Any, int]:
    if kind in {_TRUE, _FALSE}:
        return None, at if in_struct else at + 1
    if kind == _BYTE:
        return None, at + 1
    if kind in _VARINTS:
        number, at = _varint(data, at)
        return _signed(number), at
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    # No header that is known has lists, sets or maps.
    raise PageError("a page's header is broken or truncated")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    for _ in range(_VARINT_BYTES):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - the highest bit says that more follows
            return number, at
        shift += 7
    raise PageError("a page's header is broken or truncated")


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
