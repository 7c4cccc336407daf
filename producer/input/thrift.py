"""Structs of Thrift's compact protocol, as Parquet has them: read as they stand, without knowing their fields.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

#: Kinds of fields. Numbers of 16, 32 and 64 bits are written alike, but a reader takes only those of the kind it knows.
BINARY, LIST, STRUCT, I32, I64 = 8, 9, 12, 5, 6
_STOP, _TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _SET, _MAP = 0, 1, 2, 3, 4, 7, 10, 11
_DEEPEST: Final = 16
_VARINT_BYTES: Final = 10
_LONG_LIST: Final = 15
#: Number and kind of a field → a number, bytes, a list, or such a mapping; none for what nobody needs.
Struct: TypeAlias = dict[tuple[int, int], Any]


class BrokenStruct(ValueError):
    """It breaks off, is nested too deep, or has what is in no struct of Parquet."""


def read(data: memoryview, at: int = 0) -> tuple[Struct, int]:
    """Read a struct, and where it ends.

    Raises:
        IndexError: It goes on behind the data.
        BrokenStruct: It is none.
    """
    return _struct(data, at, 0)


def _struct(data: memoryview, at: int, depth: int) -> tuple[Struct, int]:
    if depth > _DEEPEST:
        raise BrokenStruct
    found: Struct = {}
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
        if kind in {_TRUE, _FALSE}:
            continue
        found[field, kind], at = _value(data, at, kind, depth)


def _value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in {_I16, I32, I64}:
        number, at = _varint(data, at)
        return _signed(number), at
    if kind == BINARY:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return data[at : at + length], at + length
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    if kind in {LIST, _SET}:
        return _list(data, at, depth)
    sizes = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
    if kind not in sizes:
        raise BrokenStruct
    return None, at + sizes[kind]


def _list(data: memoryview, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > _DEEPEST:
        raise BrokenStruct
    count, kind = data[at] >> 4, data[at] & 15
    at += 1
    if count == _LONG_LIST:
        count, at = _varint(data, at)
    # Each has a byte at least.
    if at + count > len(data):
        raise IndexError
    found = []
    for _ in range(count):
        one, at = _value(data, at, kind, depth + 1)
        found.append(one)
    return found, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    for _ in range(_VARINT_BYTES):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 - the highest bit says that more follows
            return number, at
        shift += 7
    raise BrokenStruct


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
