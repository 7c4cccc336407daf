"""A JPEG is read whole or not at all; the decoder's warnings say which, and what follows it does not matter."""

from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import decode
from worker.pictures.formats.jpeg import MAX_SEGMENTS
from worker.pictures.formats.jpeg_scans import MAX_SCANS

EOI = b"\xff\xd9"
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "4:4:4": {"subsampling": 0},
}
TRUNCATED = "JPEG picture is broken or truncated: "


def _photo(side: int = 160) -> Image.Image:
    """Smooth colors with some grain, so that its scan has no part to spare."""
    y, x = np.mgrid[:side, :side] / side
    grain = np.random.default_rng(0).normal(0, 12, (side, side, 3))
    picture = np.stack([255 * x, 255 * y, 200 * (x * y)], axis=2) + grain
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _jpeg(kind: str = "baseline", image: Image.Image | None = None, **options: Any) -> bytes:
    options = {"quality": 90, **KINDS[kind], **options}
    buffer = io.BytesIO()
    (image or _photo()).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=TRUNCATED):
        decode(data)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_without_its_last_rows_is_truncated_whatever_stands_in_their_place(kind: str, share: float) -> None:
    """More than half of a picture was wrong, and its state done."""
    data = _jpeg(kind)
    at = int(len(data) * share)
    head, lost = data[:at], len(data) - at
    for tail in (
        b"", EOI, bytes(lost), bytes(lost - 2) + EOI, bytes(lost) + EOI, bytes(10 * lost), bytes(10 * lost) + EOI,
        b"\xff" * lost, EOI + bytes(lost), EOI + data, b"\x55" * lost + EOI,
    ):  # fmt: skip
        _refused(head + tail)


@pytest.mark.parametrize("hole", [1024, 4096])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_with_a_hole_is_truncated(kind: str, share: float, hole: int) -> None:
    data = _jpeg(kind, _photo(400))
    at = int(len(data) * share)
    fillings = [bytes(hole), random.Random(1).randbytes(hole)]
    if kind != "progressive":  # cut out of a scan that only sharpens, it is noticed by nobody, and hardly seen
        fillings.append(b"")
    for filling in fillings:
        _refused(data[:at] + filling + data[at + hole :])


@pytest.mark.parametrize("scans", range(1, 10))
def test_a_progressive_jpeg_without_its_last_scans_is_truncated(scans: int) -> None:
    """The decoder says nothing: the picture is whole, and blurred."""
    data = _jpeg("progressive")
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(starts) == 10
    cut = data[: starts[scans]]
    cut = cut[: cut.rindex(b"\xff\xc4")] if data[starts[scans - 1] : starts[scans]].count(b"\xff\xc4") else cut
    _refused(cut + EOI)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_a_jpeg_does_not_matter(kind: str) -> None:
    """Motion photos have a film there, cameras more pictures or a preview, other programs anything."""
    data = _jpeg(kind)
    whole = decode(data)
    film = struct.pack(">I", 24) + b"ftypmp42" + random.Random(2).randbytes(5000)
    for tail in (b"x", bytes(5000), film, data, _jpeg("progressive")[:2000], b"\xff\xda" * 999, EOI):
        assert np.array_equal(decode(data + tail), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [b"", b"\xff", bytes(700), bytes(700) + EOI, bytes(7) + EOI, b"\xff\xff\xff\xd9"])
def test_a_jpeg_whose_rows_are_all_there_is_read_however_it_ends(kind: str, end: bytes) -> None:
    data = _jpeg(kind)
    assert np.array_equal(decode(data.removesuffix(EOI) + end), decode(data))


def test_a_white_picture_whose_scan_is_zeros_is_whole() -> None:
    """Long runs of zeros are not a hole by themselves."""
    data = _jpeg("optimized", Image.new("RGB", (1600, 1600), "white"))
    assert bytes(512) in data
    assert (decode(data) == 255).all()


def test_warnings_about_the_header_harm_nothing_and_hide_nothing() -> None:
    data = _jpeg()
    version = data.replace(b"JFIF\0\1", b"JFIF\0\3")
    table = data.index(b"\xff\xdb")
    garbage = data[:table] + b"\x12\x34" + data[table:]
    scan = data.index(b"\xff\xda")
    odd = data[: scan + 11] + b"\0\0\0" + data[scan + 14 :]
    for warned in (version, garbage, odd):
        assert warned != data
        assert np.array_equal(decode(warned), decode(data))
        _refused(warned[: len(warned) // 2] + EOI)
        _refused(warned[: len(warned) // 2] + bytes(3000) + EOI)


def test_a_thumbnail_in_the_exif_block_is_not_the_picture() -> None:
    exif = b"Exif\0\0" + _jpeg("progressive", _photo(32))
    data = _jpeg(exif=exif)
    assert np.array_equal(decode(data), decode(_jpeg()))
    _refused(data[: len(data) // 2] + EOI)


@pytest.mark.parametrize("sampling", [0x41, 0x14, 0x42, 0x31])
def test_rare_sampling_is_read(sampling: int) -> None:
    data = bytearray(_jpeg(image=Image.new("RGB", (96, 96), (200, 100, 50)), optimize=False))
    data[data.index(b"\xff\xc0") + 11] = sampling
    assert decode(bytes(data)).shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("marker", "bits", "height", "words"),
    [
        (0xC3, 8, 160, "lossless or hierarchical"),
        (0xC5, 8, 160, "lossless or hierarchical"),
        (0xF7, 8, 160, "lossless or hierarchical"),
        (0xC1, 12, 160, "12 bits"),
        (0xC0, 8, 0, "its height stands behind its rows"),
    ],
)
def test_a_jpeg_of_another_kind_is_not_called_broken(marker: int, bits: int, height: int, words: str) -> None:
    data = bytearray(_jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    data[at + 5 : at + 7] = struct.pack(">H", height)
    with pytest.raises(ImageError, match=f"JPEG picture is of a kind that is not read: {words}; save it as"):
        decode(bytes(data))


def test_scans_and_segments_are_not_counted_for_ever() -> None:
    data = _jpeg("progressive")
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        decode(data[:last] + data[last:-2] * (MAX_SCANS + 1) + EOI)
    padded = data[:2] + b"\xff\xfe\0\2" * (MAX_SEGMENTS + 1) + data[2:]
    assert np.array_equal(decode(padded), decode(data))


@pytest.mark.parametrize("length", range(3, 700, 23))
def test_a_jpeg_cut_in_its_header_is_broken(length: int) -> None:
    data = _jpeg()
    assert length < data.index(b"\xff\xda") + 100
    with pytest.raises(ImageError, match="JPEG picture is broken or truncated"):
        decode(data[:length])
