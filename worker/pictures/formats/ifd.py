"""The first directory of a TIFF file, and of an EXIF block, which is a small TIFF file inside of a picture.

Only the tags that are asked for are read. What a stranger wrote there costs neither time nor memory: a directory has at
most `MAX_ENTRIES` entries, and of an entry at most `MAX_VALUES` values are read, of some `MAX_LIST`.

Source: TIFF 6.0, section 2; BigTIFF has the same in 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

#: Cameras write about 50.
MAX_ENTRIES: Final = 4096
MAX_VALUES: Final = 64
#: Of the strips of a large TIFF there are many.
MAX_LIST: Final = 2**18
#: type → (struct's letter, bytes) of the whole numbers; other types are not read.
_NUMBERS: Final = {
    1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 6: ("b", 1), 8: ("h", 2), 9: ("i", 4), 13: ("I", 4),
    16: ("Q", 8), 17: ("q", 8),
}  # fmt: skip
#: The types whose values are single bytes: BYTE, ASCII, SBYTE, UNDEFINED.
_BYTES: Final = frozenset({1, 2, 6, 7})


@dataclass(frozen=True)
class Directory:
    """What the first directory says."""

    #: tag → the first of its whole numbers; of the tags that were asked for.
    numbers: dict[int, tuple[int, ...]]
    #: The most values of more than one byte that any entry has, asked for or not.
    longest: int

    def first(self, tag: int, default: int) -> int:
        """The tag's first number."""
        return self.numbers.get(tag, (default,))[0]


def read(data: bytes, tags: Collection[int], lists: Collection[int] = ()) -> Directory:
    """Read the first directory.

    Args:
        data: Bytes that begin with `II` or `MM`.
        tags: The tags that are wanted.
        lists: Those of them of which `MAX_LIST` values are read.

    Raises:
        ValueError: There is no such directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:  # noqa: PLR2004 - the shortest header
        raise ValueError("neither II nor MM")
    try:
        version, start = struct.unpack_from(order + "HI", data, 2)
        big = version == 43  # noqa: PLR2004 - BigTIFF
        if big:
            (start,) = struct.unpack_from(order + "Q", data, 8)
        start = min(start, len(data))  # struct takes no offset of 64 bits
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except struct.error as error:
        raise ValueError("no directory") from error
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    start += 8 if big else 2
    if count > MAX_ENTRIES or start + count * entry.size > len(data):
        raise ValueError(f"a directory of {count} entries")
    numbers: dict[int, tuple[int, ...]] = {}
    longest = 0
    for tag, type_, length, value in entry.iter_unpack(data[start : start + count * entry.size]):
        if type_ not in _BYTES:
            longest = max(longest, length)
        if tag in tags and tag not in numbers and type_ in _NUMBERS and length:
            most = MAX_LIST if tag in lists else MAX_VALUES
            numbers[tag] = _values(data, order, type_, min(length, most), value)
    return Directory({tag: values for tag, values in numbers.items() if values}, longest)


def _values(data: bytes, order: str, type_: int, length: int, value: bytes) -> tuple[int, ...]:
    """An entry's numbers, which stand in it where they have room, else where it points to; () where that is nowhere."""
    letter, size = _NUMBERS[type_]
    if length * size > len(value):
        (at,) = struct.unpack(order + ("Q" if len(value) > 4 else "I"), value)  # noqa: PLR2004 - bytes of an offset
        value = data[at : at + length * size]
    read = min(length, len(value) // size)
    return struct.unpack_from(f"{order}{read}{letter}", value)
