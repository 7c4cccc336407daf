"""Pictures of every format, mutated: each is read, or refused in a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from fuzz_mutations import Format, Structure
from fuzz_targets import Target
from PIL import Image

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import MAX_PIXELS, decode


def targets() -> Iterator[Target]:
    """A target for each format."""
    for name, (seeds, format) in {
        "JPEG": (_jpegs, Format(_jpeg_structure)),
        "PNG": (_pngs, Format(_png_structure, _png_repaired)),
        "WebP": (_webps, Format(_webp_structure)),
        "GIF": (_gifs, Format(_gif_structure)),
        "BMP": (_bmps, Format(_bmp_structure)),
        "TIFF": (_tiffs, Format(_tiff_structure)),
    }.items():
        yield Target(name, list(seeds()), _read, format)


def _read(data: bytes) -> str:
    try:
        picture = decode(data)
    except ImageError as error:
        return _verdict(str(error))
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert 0 < picture.shape[0] * picture.shape[1] <= MAX_PIXELS
    return "read"


def _verdict(sentence: str) -> str:
    assert sentence.isprintable()
    assert len(sentence) < 400
    if "broken or truncated" in sentence:
        return "broken"
    return "too large" if "more than" in sentence else "not read"


# --- whole pictures ---------------------------------------------------------------------------------------------------


def photo(height: int = 40, width: int = 56) -> Image.Image:
    """A gradient with grain, so that all bytes are of pixels."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(7).integers(0, 60, (height, width, 3))
    return Image.fromarray((np.stack([4 * x, 5 * y, x + y], axis=2) % 190 + grain).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(photo().convert("L"))
    return image


def _turned() -> Image.Exif:
    block = Image.Exif()
    block[0x112] = 6
    return block


def _jpegs() -> Iterator[bytes]:
    save = partial(saved, photo(), "JPEG", quality=80)
    yield from (save(), save(progressive=True), save(subsampling=0, exif=_turned()), save(restart_marker_rows=1))
    yield from (saved(photo().convert(mode), "JPEG", progressive=True) for mode in ("L", "CMYK"))


def _pngs() -> Iterator[bytes]:
    yield from (saved(photo(), "PNG", exif=_turned()), saved(_with_alpha(), "PNG"))
    yield from (saved(photo().convert(mode), "PNG") for mode in ("1", "L", "LA"))
    yield saved(photo().quantize(16), "PNG", transparency=3)
    yield saved(Image.fromarray(np.asarray(photo())[..., 0].astype(np.uint16) * 257), "PNG")
    yield saved(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)])


def _webps() -> Iterator[bytes]:
    yield from (saved(photo(), "WEBP"), saved(photo(), "WEBP", lossless=True, exif=_turned()))
    yield from (saved(_with_alpha(), "WEBP"), saved(_with_alpha(), "WEBP", lossless=True))
    yield saved(_with_alpha(), "WEBP", save_all=True, append_images=[photo().rotate(180)])


def _gifs() -> Iterator[bytes]:
    image = photo().quantize(64)
    yield from (saved(image, "GIF"), saved(image, "GIF", interlace=1, transparency=3, comment=b"a comment"))
    yield saved(image, "GIF", save_all=True, append_images=[photo().rotate(180).quantize(64)])


def _bmps() -> Iterator[bytes]:
    yield from (saved(image, "BMP") for image in (photo(), photo().quantize(16), photo().convert("1"), _with_alpha()))
    masks = struct.pack("<IiiHHIIiiII3I", 40, 6, 5, 1, 16, 3, 60, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    yield b"BM" + struct.pack("<IHHI", 126, 0, 0, 66) + masks + bytes(range(60))
    runs = (b"\x06\x01\0\0" * 4) + b"\0\x03\1\0\1\0\3\1\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 6, 5, 1, 8, 1, len(runs), 0, 0, 2, 0)
    yield b"BM" + struct.pack("<IHHI", 62 + len(runs), 0, 0, 62) + head + bytes(range(8)) + runs


def _tiffs() -> Iterator[bytes]:
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "tiff_lzma"):
        yield saved(photo(), "TIFF", compression=compression, tiffinfo={278: 8, 0x112: 6})
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "F"):
        yield saved(photo().convert(mode), "TIFF", compression="tiff_lzw")
    yield saved(photo().convert("1"), "TIFF", compression="group4")


# --- where their parts are --------------------------------------------------------------------------------------------


def _jpeg_structure(data: bytes) -> Structure:
    parts, fields, at = [], [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        parts.append((at, end))
        fields.append((at + 2, 2))
        if 0xC0 <= data[at + 1] <= 0xC2:
            fields += [(at + 5, 2), (at + 7, 2), (at + 9, 1), (at + 11, 1)]
        at = end
        if data[parts[-1][0] + 1] == 0xDA:  # its bytes, up to the next segment
            while (
                (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data) and data[at + 1] in {0, *range(0xD0, 0xD8)}
            ):
                at += 2
            at = len(data) if at < 0 else at
            parts[-1] = (parts[-1][0], at)
    return Structure(parts, fields, "big")


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at + 12 <= len(data):
        end = min(at + 12 + int.from_bytes(data[at : at + 4]), len(data))
        yield at, end
        at = end


def _png_structure(data: bytes) -> Structure:
    parts = list(_png_chunks(data))
    return Structure(parts, [(16, 4), (20, 4), (24, 1), (25, 1), (28, 1), *((at, 4) for at, _ in parts)], "big")


def _png_repaired(data: bytes) -> bytes:
    repaired = bytearray(data)
    for at, end in _png_chunks(data):
        if end - at >= 12:
            repaired[end - 4 : end] = struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
    return bytes(repaired)


def _webp_structure(data: bytes) -> Structure:
    parts, fields, at = [], [(4, 4)], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((at, at + 8 + length + length % 2))
        fields += [(at + 4, 4), (at + 8, 4), (at + 12, 3), (at + 14, 2), (at + 15, 3)]
        at += 24 if data[at : at + 4] == b"ANMF" else 8 + length + length % 2
    return Structure(parts, fields)


def _gif_structure(data: bytes) -> Structure:
    at = data.find(b",", 13)
    return Structure([(13, at), (at, len(data))], [(6, 2), (8, 2), (10, 1), *((at + 1 + 2 * n, 2) for n in range(5))])


def _bmp_structure(data: bytes) -> Structure:
    fields = [(10, 4), (14, 4), (18, 4), (22, 4), (28, 2), (30, 4), (46, 4), (54, 4), (58, 4)]
    return Structure([(0, 54), (54, len(data))], fields)


def _tiff_structure(data: bytes) -> Structure:
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    entries = [start + 2 + 12 * n for n in range(min(count, 99)) if start + 14 + 12 * n <= len(data)]
    fields = [(at + offset, size) for at in entries for offset, size in ((0, 2), (2, 2), (4, 4), (8, 4), (8, 4))]
    return Structure([(at, at + 12) for at in entries], [(4, 4), (start, 2), *fields])
