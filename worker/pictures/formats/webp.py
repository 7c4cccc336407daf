"""WebP, by OpenCV, which gets nothing but the picture; that and the EXIF block are found by walking the chunks.

Of an animation that is its first frame: the library's reader of animations holds three of them at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.pictures.formats import opencv, refused
from worker.pictures.formats.exif import upright
from worker.pictures.formats.transparency import over_white

#: A chunk is a frame, or what the file says of itself. What stands behind so many is not looked for.
MAX_CHUNKS: Final = 2**14
_HEAD: Final = 12  # RIFF, the length, WEBP
#: The flag of VP8X that says that there is alpha, and the length of its content.
_ALPHA, _VP8X_BYTES = 0x10, 10
#: What stands in a frame before its chunks: its place, size, duration and flags.
_FRAME_BYTES: Final = 16
#: Bytes a pixel, lossy without alpha and all else: OpenCV holds its picture twice.
_OPAQUE, _OTHERS = 6, 8


def read(data: bytes) -> NDArray[np.uint8]:
    """Decode to upright (H, W, 3) uint8 RGB, transparent parts over white; of an animation the first frame.

    Raises:
        ImageError: It is broken, truncated or too large.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    # Some programs forget to count a last byte that only fills up; nobody forgets more.
    if not data.startswith(b"WEBP", 8) or end > len(data) + 1:
        raise refused.broken("WebP")
    chunks = _chunks(data, _HEAD, min(end, len(data)))
    if b"VP8X" not in chunks:
        return _decode(_picture(data, chunks))
    at, stop = chunks[b"VP8X"]
    if stop - at < _VP8X_BYTES:
        raise refused.broken("WebP")
    width, height = _number(data, at + 4) + 1, _number(data, at + 7) + 1
    exif = data[slice(*chunks[b"EXIF"])] if b"EXIF" in chunks else b""
    if b"ANMF" in chunks:
        return upright(_first_frame(data, chunks[b"ANMF"], height, width), exif)
    picture = _picture(data, chunks)
    if picture[0] != (height, width):
        raise refused.broken("WebP")
    return upright(_decode(picture), exif)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _chunks(data: bytes, at: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Where the content of the first chunk of each kind lies; one that is cut is none."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, start, stop in _walk(data, at, end):
        if stop <= end:
            found.setdefault(kind, (start, stop))
    return found


def _walk(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(MAX_CHUNKS):
        if at + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, at + 8 + length
        at += 8 + length + length % 2


def _picture(data: bytes, chunks: dict[bytes, tuple[int, int]]) -> tuple[tuple[int, int], bool, bytes]:
    """Size, whether it may be transparent, and a file of nothing else, of the picture in some chunks.

    Raises:
        ImageError: There is none.
    """
    if b"VP8L" in chunks:
        content = data[slice(*chunks[b"VP8L"])]
        head = int.from_bytes(content[1:5], "little")  # 14 bits each of width and height, and one of alpha
        size = (head >> 14 & 0x3FFF) + 1, (head & 0x3FFF) + 1
        return size, True, _riff(_chunk(b"VP8L", content))
    if b"VP8 " not in chunks:
        raise refused.broken("WebP")
    content = data[slice(*chunks[b"VP8 "])]
    width, height = struct.unpack("<HH", content[6:10].ljust(4, b"\0"))
    size = height & 0x3FFF, width & 0x3FFF
    pixels = _chunk(b"VP8 ", content)
    if b"ALPH" not in chunks:
        return size, False, _riff(pixels)
    extended = struct.pack("<I", _ALPHA) + b"".join((side - 1).to_bytes(3, "little") for side in size[::-1] if side)
    return size, True, _riff(_chunk(b"VP8X", extended), _chunk(b"ALPH", data[slice(*chunks[b"ALPH"])]), pixels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _riff(*chunks: bytes) -> bytes:
    return b"".join((b"RIFF", struct.pack("<I", 4 + sum(map(len, chunks))), b"WEBP", *chunks))


def _decode(picture: tuple[tuple[int, int], bool, bytes]) -> NDArray[np.uint8]:
    """Decode what `_picture` found."""
    (height, width), may_be_transparent, data = picture
    if not may_be_transparent:
        opencv.check_size("WebP", height, width, _OPAQUE)
        return opencv.color(data, "WebP")
    opencv.check_size("WebP", height, width, _OTHERS)
    shown = opencv.as_it_is(data, "WebP")
    if shown.shape[2:] == (4,):
        return over_white(shown[..., :3], shown[..., 3])
    return np.asarray(shown, np.uint8)


def _first_frame(data: bytes, place: tuple[int, int], height: int, width: int) -> NDArray[np.uint8]:
    """The first frame on a white canvas."""
    at, end = place
    if end - at < _FRAME_BYTES:
        raise refused.broken("WebP")
    left, top = 2 * _number(data, at), 2 * _number(data, at + 3)
    picture = _picture(data, _chunks(data, at + _FRAME_BYTES, end))
    rows, columns = picture[0]
    if top + rows > height or left + columns > width:
        raise refused.broken("WebP")
    opencv.check_size("WebP", height, width, _OPAQUE)
    frame = _decode(picture)
    if frame.shape == (height, width, 3):
        return frame
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[top : top + rows, left : left + columns] = frame
    return canvas
