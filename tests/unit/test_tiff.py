"""A TIFF holds any numbers: where black and white are known they are shown, else it is said why not."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from picture_files import bmp, ifd, tiff

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import decode


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("bits", "pixels", "shown"),
    [
        (1, bytes([0b01000000]), [0, 255]),
        (4, bytes([0x0F]), [0, 255]),
        (8, bytes([7, 200]), [7, 200]),
        (12, bytes([0x07, 0x0C, 0x80]), [0x07, 0xC8]),
        (16, struct.pack("<HH", 0x07FF, 0xC800), [0x07, 0xC8]),
        (32, struct.pack("<II", 0x07FFFFFF, 0xC8000000), [0x07, 0xC8]),
    ],
)
def test_of_unsigned_numbers_the_upper_eight_bits_count(bits: int, pixels: bytes, shown: list[int], big: bool) -> None:
    assert decode(tiff((1, 2), pixels, big=big, bits=[bits]))[0, :, 0].tolist() == shown


@pytest.mark.parametrize(
    ("bits", "pixels"),
    [(1, bytes([0b01000000])), (4, bytes([0xF0])), (8, bytes([255, 0])), (16, struct.pack("<HH", 0xFFFF, 0))],
)
def test_white_is_zero_where_a_tiff_says_so(bits: int, pixels: bytes) -> None:
    shown = decode(tiff((1, 2), pixels, bits=[bits], photometric=[0]))[0, :, 0].tolist()
    assert shown == ([255, 0] if bits == 1 else [0, 255])


@pytest.mark.parametrize("order", ["<", ">"])
def test_float_numbers_from_0_to_1_are_black_to_white(order: str) -> None:
    pixels = struct.pack(order + "3f", 0, 0.5, 1)
    assert decode(tiff((1, 3), pixels, order, bits=[32], format=[3]))[0, :, 0].tolist() == [0, 128, 255]
    white = decode(tiff((1, 3), pixels, order, bits=[32], format=[3], photometric=[0]))
    assert white[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff((1, 2), struct.pack("<ff", 0, 1.5), bits=[32], format=[3]), "float numbers outside of 0 to 1"),
        (tiff((1, 2), struct.pack("<ff", 0, float("nan")), bits=[32], format=[3]), "float numbers outside of 0 to 1"),
        (tiff((1, 2), struct.pack("<hh", -672, 512), bits=[16], format=[2]), "1 signed number of 16 bits"),
        (tiff((1, 2), bytes(2), bits=[8], format=[2]), "1 signed number of 8 bits"),
        (tiff((1, 2), bytes(6), bits=[8] * 3, format=[2] * 3), "3 signed numbers of 8 bits"),
        (tiff((1, 1), bytes(8), bits=[64], format=[6]), "1 complex number of 64 bits"),
        (tiff((1, 1), bytes(8), bits=[64], format=[3]), "1 float number of 64 bits"),
        (tiff((1, 1), bytes(12), bits=[32] * 3, format=[3] * 3), "3 float numbers of 32 bits"),
        (tiff((1, 1), bytes(4), bits=[16] * 2, extra=[2]), "2 unsigned numbers of 16 bits"),
        (tiff((1, 1), bytes(3), bits=[8] * 3, photometric=[8]), "CIELab"),
        (tiff((1, 1), bytes(2), bits=[16], photometric=[32803]), "a camera's raw picture"),
        (tiff((1, 1), bytes(1), compression=[34887]), "compressed by LERC"),
        (tiff((1, 1), bytes(1), compression=[60000]), "compressed by method 60000"),
        (tiff((1, 1), bytes(1), ">", big=True), "BigTIFF in big-endian order"),
        (ifd({254: [1], 256: [1], 257: [1], 273: [8]}), "first page is a preview"),
        (ifd({256: [1], 257: [1], 273: [8], 50706: [1]}), "a camera's raw picture"),
        (ifd({256: [1], 257: [1], 273: [8] * (2**18 + 1)}), "an entry of 262145 numbers"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "the HEIC picture"),
        (b"\0\0\0\x18ftypavif" + bytes(99), "the AVIF picture"),
        (b"\xff\x0a" + bytes(99), "the JPEG XL picture"),
        (b"8BPS" + bytes(99), "the Photoshop picture"),
        (bmp(1, [bytes(4)], 32, (), kind=4), "JPEG or PNG data inside"),
    ],
)
def test_a_whole_picture_of_another_kind_is_not_called_broken(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=r"of a kind that is not read: .*; ") as caught:
        decode(data)
    assert words in str(caught.value)
    assert "broken" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        tiff((4, 4), bytes(15)),
        tiff((4, 4), bytes(7), compression=[5]),
        tiff((4, 4), b"")[:60],
        tiff((0, 4), b""),
        ifd({256: [1], 257: [1]}),
        b"II*\0\xff\xff\xff\xff",
        b"II+\0" + b"\xff" * 100,
        b"MM\0*" + bytes(100),
    ],
)
def test_a_broken_tiff_is_called_broken(data: bytes) -> None:
    with pytest.raises(ImageError, match="TIFF picture is broken or truncated"):
        decode(data)


def test_pillow_warns_nobody_of_what_strangers_write() -> None:
    """Its warnings would stand in the worker's log without the image's name."""
    program = "import sys; from worker.pictures.decode import decode; print(decode(sys.stdin.buffer.read()).tolist())"
    data = tiff((1, 1), bytes(1), orientation=[1, 1, 1])
    run = subprocess.run([sys.executable, "-W", "always", "-c", program], input=data, capture_output=True, check=True)
    assert (run.stdout, run.stderr) == (b"[[[0, 0, 0]]]\n", b"")
