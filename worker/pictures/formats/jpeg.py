"""JPEG, by libjpeg-turbo, which says when its data are short: such a picture is an error, never one that is half gray.

OpenCV and Pillow use the same library and keep its warnings to themselves. Some warnings harm no row; these pictures
are read. A progressive picture whose last scans are missing is whole for the library and blurred for the eye: that is
an error, too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from worker.pictures.formats import jpeg_scans, opencv, refused
from worker.pictures.formats.exif import upright

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_APP0, _APP1, _DHT, _SOS = 0xE0, 0xE1, 0xC4, 0xDA
#: SOF0 to SOF15 and JPEG-LS, without DHT, JPG and DAC, which lie between them.
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {_DHT, 0xC8, 0xCC}
_SEQUENTIAL: Final = frozenset({0xC0, 0xC1, 0xC9})
_PROGRESSIVE: Final = frozenset({0xC2, 0xCA})
_BITS: Final = 8
_FRAME_BYTES: Final = 6  # of its content before the components
_TURBO: Final = frozenset({1, 3})
#: Markers without a length, and the fill byte: FF 00, TEM, RST0 to RST7, SOI, FF FF.
_BARE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD9), 0xFF})
#: A photo with its depth map in XMP has some hundreds. What stands behind so many is not looked for.
MAX_SEGMENTS: Final = 4096
#: So many zeros in a scan are a part of the file that was never written, unless zeros stand for flat color in it; and
#: so many equal bytes of any value, where the scan's data do not fit the picture.
_ZEROS: Final = bytes(512)
_NOT_ZERO: Final = re.compile(rb"[^\0]")
_EQUAL: Final = re.compile(rb"([\x00-\xfe])\1{511}", re.DOTALL)
#: So few bytes too many are a camera's mistake; the data behind a hole are more, and not all the same.
_FEW: Final = 16

#: libjpeg's warnings that we know (jerror.h): the file ends early; bytes that no scan asks for; damage.
_NO_END: Final = "Premature end of JPEG file"
_EXTRA: Final = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_DAMAGE: Final = ("Corrupt JPEG data", _NO_END)
_HARMLESS: Final = ("Unknown Adobe color transform", "Inconsistent progression")


@dataclass(frozen=True)
class _Header:
    """What stands before the pixels."""

    #: The frame's marker and content (T.81, B.2.2); empty where there is none.
    frame: int
    content: bytes
    exif: bytes
    #: Whether the shortest code of each table of AC coefficients ends a block: then zeros are blocks of flat color.
    zeros_are_flat: bool
    #: Where the first scan's marker is; the file's length where there is none.
    scan: int

    @property
    def components(self) -> bytes:
        """The components' identifiers."""
        return self.content[6::3]


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB.

    Raises:
        ImageError: It is broken, truncated, too large or of a kind that is not read.
    """
    header = _header(data)
    _check_kind(header)
    _check_cost(data, header)
    try:
        simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        # No header, or one of rare sampling, which TurboJPEG refuses. OpenCV reads it, but keeps warnings to itself.
        return upright(opencv.color(data, "JPEG"), header.exif)
    _check_hole(data, header)
    return upright(_decode(data, header.scan), header.exif)


def _decode(data: bytes, scan: int, mended: frozenset[str] = frozenset()) -> NDArray[np.uint8]:
    """Decode strictly; what is wrong and harms no row is taken away, each kind once, and the rest tried again."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data), np.uint8)
    except ValueError as error:
        said = str(error)
    if said == _NO_END and "end" not in mended:
        return _decode(data + _EOI, scan, mended | {"end"})
    extra = _EXTRA.match(said)
    if extra and extra[2] == "d9" and "padding" not in mended:
        end = data.find(_EOI, scan)
        body = data[: end - int(extra[1])]
        tail = data[len(body) : end]
        if end > 0 and (len(tail) <= _FEW or len(set(tail)) == 1) and not _EQUAL.search(body, scan):
            return _decode(body + _EOI, scan, mended | {"padding"})
    if (extra or not said.startswith(_DAMAGE)) and "header" not in mended:
        data, scan = _clean(data, scan)
        return _decode(data, scan, mended | {"header"})
    if said.startswith(_DAMAGE):
        raise refused.broken("JPEG", f"not all of its rows are there ({said})")
    if said.startswith(_HARMLESS):
        return opencv.color(data, "JPEG")  # which keeps the warning to itself
    raise refused.broken("JPEG", said)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The header's segments up to the first scan's: marker, start, end; garbage between them is skipped."""
    at = len(_SOI)
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in _BARE:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield marker, at, end
        if marker in {_SOS, _EOI[1]}:
            return
        at = end


def _header(data: bytes) -> _Header:
    frame, content, exif, scan = 0, b"", b"", len(data)
    flat: list[bool] = []
    for marker, start, end in _segments(data):
        if marker == _APP1 and not exif and data.startswith(b"Exif\0\0", start + 4):
            exif = data[start + 4 : end]
        elif marker in _FRAMES and not frame:
            frame, content = marker, data[start + 4 : end]
        elif marker == _DHT:
            flat += _ends_blocks(data[start + 4 : end])
        elif marker == _SOS:
            scan = start
    return _Header(frame, content, exif, bool(flat) and all(flat), scan)


def _ends_blocks(tables: bytes) -> Iterator[bool]:
    """Of each table of AC coefficients (T.81, B.2.4.2) whether its first code, which is all zeros, ends a block."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] & 0x10:
            yield tables[at + 17] == 0
        at += 17 + sum(tables[at + 1 : at + 17])


def _check_kind(header: _Header) -> None:
    """Refuse what libjpeg does not read.

    Raises:
        ImageError: So it is.
    """
    if len(header.content) < _FRAME_BYTES:
        return  # libjpeg says what it thinks of that
    kind = ""
    if header.frame not in _SEQUENTIAL | _PROGRESSIVE:
        kind = "lossless or hierarchical"
    elif header.content[0] != _BITS:
        kind = f"{header.content[0]} bits"
    elif header.content[1:3] == b"\0\0":
        kind = "its height stands behind its rows"
    if kind:
        raise refused.not_read("JPEG", kind, "save it as a baseline JPEG of 8 bits")


def _check_cost(data: bytes, header: _Header) -> None:
    """Refuse what is too large, lacks scans, or has too many.

    Raises:
        ImageError: So it is.
    """
    if len(header.content) < _FRAME_BYTES:
        return  # libjpeg says what it thinks of that
    height, width = struct.unpack_from(">HH", header.content, 1)
    at = header.scan
    one_scan = header.frame in _SEQUENTIAL and list(data[at + 4 : at + 5]) == [len(header.components)]
    coefficients = 0 if one_scan else jpeg_scans.coefficient_bytes(header.content[6:])
    # CMYK goes through a copy of four numbers a pixel.
    decoded = 3 if len(header.components) in _TURBO else 4
    opencv.check_size("JPEG", height, width, decoded + max(3, coefficients))
    if not one_scan:
        jpeg_scans.check(data, at, header.components, height * width)


def _check_hole(data: bytes, header: _Header) -> None:
    """Refuse a picture in whose scans a part is zeros; the decoder reads some of them without a warning.

    Raises:
        ImageError: So it is.
    """
    at = data.find(_ZEROS, header.scan)  # 512 bytes at a step: it costs nothing
    if at < 0 or data.find(_EOI, header.scan, at) >= 0:
        return
    behind = _NOT_ZERO.search(data, at)
    if behind is None or data.startswith(_EOI, behind.start()):
        return  # the decoder says whether it asked for what they stand for
    if header.frame in _PROGRESSIVE:
        scan = data.rfind(bytes((0xFF, _SOS)), header.scan, at)
        may_be_zeros = data[scan + 5 + 2 * data[scan + 4]] == 0  # the scan begins with coefficient 0: flat color
    else:
        may_be_zeros = header.zeros_are_flat
    if not may_be_zeros:
        raise refused.broken("JPEG", "a part of it is zeros")


def _clean(data: bytes, scan: int) -> tuple[bytes, int]:
    """The same picture with a header that libjpeg does not warn of; and where its first scan begins now."""
    parts = [_SOI]
    sequential = False
    for marker, start, end in _segments(data):
        segment = bytearray(data[start:end])
        if marker == _APP0 and segment[4:9] == b"JFIF\0" and len(segment) > 9:  # noqa: PLR2004 - where the version is
            segment[9] = 1  # others are unknown, and change nothing
        elif marker in _FRAMES:
            sequential = marker in _SEQUENTIAL
        elif marker == _SOS and sequential:
            segment[-3:] = b"\0\x3f\0"  # all coefficients, whatever it says: there is no other way
        parts.append(bytes(segment))
        if marker == _SOS:
            return b"".join([*parts, data[end:]]), sum(map(len, parts[:-1]))
    return data, scan
