"""Picture files made byte by byte, for the kinds that no encoder here writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

#: Types of TIFF's whole numbers: letter of struct, number.
SHORT, LONG = ("H", 3), ("I", 4)
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSET, ORIENTATION, SAMPLES, ROWS, LENGTH, EXTRA, FORMAT = (
    *(256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 338, 339),
)


def ifd(tags: dict[int, Sequence[int]], order: str = "<", type_: tuple[str, int] = LONG, big: bool = False) -> bytes:
    """A TIFF header and its only directory, each value of one type; values that have no room follow."""
    letter, number = type_
    room, entry_bytes = (8, 20) if big else (4, 12)
    mark = {"<": b"II", ">": b"MM"}[order]
    start = 16 if big else 8
    header = mark + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    end = start + (8 if big else 2) + entry_bytes * len(tags) + room
    entries, behind = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > room:
            at = end + len(behind)
            behind += packed
            packed = struct.pack(order + ("Q" if big else "I"), at)
        entries += struct.pack(order + ("HHQ" if big else "HHI"), tag, number, len(values)) + packed.ljust(room, b"\0")
    return header + struct.pack(order + ("Q" if big else "H"), len(tags)) + entries + bytes(room) + behind


def tiff(
    size: tuple[int, int],
    pixels: bytes,
    order: str = "<",
    big: bool = False,
    bits: Sequence[int] = (8,),
    **tags: Sequence[int],
) -> bytes:
    """A TIFF of one strip; `tags` are named as the constants above, in small letters."""
    height, width = size
    known: dict[int, Sequence[int]] = {
        WIDTH: [width], HEIGHT: [height], BITS: bits, COMPRESSION: [1], PHOTOMETRIC: [1 if len(bits) < 3 else 2],
        SAMPLES: [len(bits)], ROWS: [height], LENGTH: [len(pixels)],
    }  # fmt: skip
    known |= {globals()[name.upper()]: values for name, values in tags.items()}
    before = len(ifd(known | {OFFSET: [0]}, order, big=big))
    return ifd(known | {OFFSET: [before]}, order, big=big) + pixels


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, depth: int, color: int, rows: Sequence[bytes], *extra: bytes) -> bytes:
    """A PNG of unfiltered rows; `extra` chunks stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND")),
    )


def bmp(width: int, rows: Sequence[bytes], bits: int, masks: Sequence[int], header: int = 40, kind: int = 3) -> bytes:
    """A BMP with masks, first row on top; `rows` without padding."""
    padded = b"".join(row.ljust((width * bits + 31) // 32 * 4, b"\0") for row in rows)
    info = struct.pack("<IiiHHIIiiII", header, width, -len(rows), 1, bits, kind, len(padded), 0, 0, 0, 0)
    info = (info + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(padded), 0, 0, 14 + len(info)) + info + padded
