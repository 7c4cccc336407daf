from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import MAX_PIXELS, decode


def _picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth picture with three different channels, so that lossy formats keep it and swapped channels show."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x % 256, 5 * y % 200, np.full_like(x, 30)], axis=2).astype(np.uint8)


def _encoded(array: np.ndarray, format: str, mode: str | None = None, **options: Any) -> bytes:
    image, buffer = Image.fromarray(array), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def _assert_near(got: np.ndarray, expected: np.ndarray, within: int) -> None:
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= within


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_in_rgb(format: str) -> None:
    assert np.array_equal(decode(_encoded(_picture(), format)), _picture())


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
        ("WEBP", {"quality": 98}),
    ],
)
def test_lossy_formats_come_back_nearly(format: str, options: dict[str, Any]) -> None:
    _assert_near(decode(_encoded(_picture(), format, **options))[:, :50], _picture()[:, :50], 24)


def test_grey_becomes_rgb() -> None:
    gray = _picture()[..., 0]
    for format in ("PNG", "TIFF"):
        assert np.array_equal(decode(_encoded(gray, format)), np.repeat(gray[..., None], 3, axis=2))


def test_black_and_white_becomes_rgb() -> None:
    values = np.array([[0, 255], [255, 0]], np.uint8)
    assert decode(_encoded(values, "PNG", "1"))[..., 1].tolist() == values.tolist()


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(_picture()).quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert np.array_equal(decode(buffer.getvalue()), np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    _assert_near(decode(_encoded(_picture(), "JPEG", "CMYK", quality=98))[:, :50], _picture()[:, :50], 24)


@pytest.mark.parametrize(("extension", "within"), [(".png", 0), (".tiff", 1)])
def test_of_sixteen_bits_the_upper_eight_count(extension: str, within: int) -> None:
    """The TIFF library rounds them."""
    bgr = _picture()[..., ::-1].astype(np.uint16) * 256 + 255
    written, data = cv2.imencode(extension, bgr)
    assert written
    _assert_near(decode(data.tobytes()), _picture(), within)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_laid_over_white(format: str, options: dict[str, Any]) -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    # 51 is a fifth: (200 + 4 * 255) / 5 = 244 and so on.
    assert decode(_encoded(rgba, format, **options)).tolist() == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]


def test_alpha_of_grey_palette_and_sixteen_bits_is_laid_over_white() -> None:
    gray = np.array([[[100, 255], [100, 0]]], np.uint8)
    assert decode(_encoded(gray, "PNG")).tolist() == [[[100] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    assert decode(buffer.getvalue()).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    deep = np.array([[[0, 0, 0x8000, 0xFFFF], [0, 0, 0x8000, 0]]], np.uint16)
    assert decode(cv2.imencode(".png", deep)[1].tobytes()).tolist() == [[[128, 0, 0], [255, 255, 255]]]


def test_a_picture_with_an_opaque_alpha_channel_is_unchanged() -> None:
    rgba = np.dstack([_picture(), np.full(_picture().shape[:2], 255, np.uint8)])
    assert np.array_equal(decode(_encoded(rgba, "PNG")), _picture())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(format: str, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = _encoded(_picture(), format, exif=exif, quality=98)
    assert decode(data).shape == np.rot90(_picture(), turns).shape
    _assert_near(np.rot90(decode(data), -turns)[:, 5:50], _picture()[:, 5:50], 40)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(format: str) -> None:
    first, *others = (Image.fromarray(np.full((5, 6, 3), level, np.uint8)) for level in (10, 200, 90))
    buffer = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    first.save(buffer, format, save_all=True, append_images=others, duration=50, **options)
    assert (decode(buffer.getvalue()) == 10).all()
    assert decode(buffer.getvalue()).shape == (5, 6, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_one_pixel_is_a_picture(format: str) -> None:
    assert decode(_encoded(np.full((1, 1, 3), 77, np.uint8), format)).tolist() == [[[77] * 3]]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("format", ["JPEG", "progressive JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_the_images_error(format: str, share: float) -> None:
    """And never a picture that is half gray."""
    options: dict[str, Any] = {"progressive": True} if format.startswith("progressive") else {}
    noise = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)  # so that all bytes are of pixels
    data = _encoded(noise, format.removeprefix("progressive "), **options)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


def test_bytes_behind_the_picture_do_not_matter() -> None:
    assert np.array_equal(decode(_encoded(_picture(), "PNG") + bytes(100)), _picture())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello world", "not a picture"),
        (b"<svg></svg>", "not a picture"),
        (b"P6 1 1 255 abc", "not a picture"),
        (b"\xff\xd8\xff" + b"x" * 100, "JPEG picture is broken"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "PNG picture is broken"),
        (b"RIFF" + b"\0" * 100, "WebP picture is broken"),
    ],
)
def test_what_is_no_picture_is_the_images_error(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def _png_of_nothing(side: int) -> bytes:
    """A PNG of black that is a thousandth of what it unpacks to."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_would_fill_the_memory_is_refused_unopened() -> None:
    """In a process of its own: OpenCV reads its limit once, and memory once used does not go away."""
    side = int(MAX_PIXELS**0.5) + 100
    program = """if True:
        import resource, sys
        from worker.pictures import decode, render  # in this order, as the pipeline imports them
        from producer.jobs.model.errors import ImageError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode.decode(sys.stdin.buffer.read())
        except ImageError as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    run = subprocess.run(
        [sys.executable, "-c", program], input=_png_of_nothing(side), capture_output=True, check=True, env=environment
    )
    message, grown_kb = run.stdout.decode().splitlines()
    assert message == f"the PNG picture has more than {MAX_PIXELS} pixels"
    assert int(grown_kb) < 20_000


def test_decoding_needs_no_torch() -> None:
    program = "import sys; import worker.pictures.decode, worker.pictures.render; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout.strip() == b"False"
