"""Pictures that strangers made to cost time, memory or lines in the log, or that end early: each is one ImageError."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz_pictures import photo, saved
from picture_files import bmp, chunk, ifd, png, tiff
from PIL import Image

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import decode
from worker.pictures.formats import opencv
from worker.pictures.formats.jpeg_scans import MAX_SCANS

EOI, IEND, TRAILER, END_OF_RUNS = b"\xff\xd9", chunk(b"IEND"), b"\0;", b"\0\1"
PLACES = 240


def _grain(side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8))


def _runs(*rows: bytes) -> bytes:
    """A BMP of run lengths, 8 bits, rows from below; each row is one of codes."""
    return b"\0\0".join(rows) + END_OF_RUNS


def _bmp_of_runs(size: tuple[int, int], codes: bytes) -> bytes:
    height, width = size
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    palette = bytes(value for level in range(256) for value in (level, level, level, 0))
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(codes), 0, 0, 54 + 1024) + head + palette + codes


def _whole() -> dict[str, tuple[bytes, bytes]]:
    """Kind → a whole picture, and what ends one of its format."""
    grain, alpha = _grain(), _grain().convert("RGBA")
    alpha.putalpha(grain.convert("L"))
    found: dict[str, tuple[bytes, bytes]] = {}
    jpegs: dict[str, dict[str, Any]] = {
        "baseline": {},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
        "4:4:4": {"subsampling": 0},
    }
    for name, options in jpegs.items():
        found[f"JPEG {name}"] = (saved(grain, "JPEG", quality=90, **options), EOI)
    for mode in ("L", "CMYK"):
        found[f"JPEG {mode}"] = (saved(grain.convert(mode), "JPEG", quality=90), EOI)
    for name, image in {
        "RGB": grain,
        "alpha": alpha,
        "gray": grain.convert("L"),
        "palette": grain.quantize(16),
    }.items():
        found[f"PNG {name}"] = (saved(image, "PNG"), IEND)
    found["PNG animated"] = (saved(grain, "PNG", save_all=True, append_images=[grain.rotate(90)]), IEND)
    for name, image in {"opaque": grain, "alpha": alpha}.items():
        found[f"WebP {name}"] = (saved(image, "WEBP", quality=90), b"")
        found[f"WebP lossless {name}"] = (saved(image, "WEBP", lossless=True), b"")
    found["WebP animated"] = (saved(grain, "WEBP", save_all=True, append_images=[grain.rotate(90)]), b"")
    found["GIF"] = (saved(grain.quantize(64), "GIF"), TRAILER)
    found["GIF interlaced"] = (saved(grain.quantize(64), "GIF", interlace=1), TRAILER)
    found["BMP RGB"] = (saved(grain, "BMP"), b"")
    found["BMP palette"] = (saved(grain.quantize(16), "BMP"), b"")
    rows = [bytes([0, 40]) + bytes(row) for row in np.asarray(grain.convert("L"))]
    found["BMP run lengths"] = (_bmp_of_runs((40, 40), _runs(*rows)), END_OF_RUNS)
    words = [row.tobytes() for row in np.asarray(alpha).view("<u4")[..., 0]]
    found["BMP masks"] = (bmp(40, words, 32, (0xFF, 0xFF00, 0xFF0000)), b"")
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "tiff_lzma"):
        data = saved(grain, "TIFF", compression=compression, tiffinfo={278: 8})
        found[f"TIFF {compression}"] = (_directory_first(data), EOI if compression == "jpeg" else b"")
    found["TIFF group4"] = (_directory_first(saved(grain.convert("1"), "TIFF", compression="group4")), b"\0\x10\x01")
    return found


def _directory_first(data: bytes) -> bytes:
    """The same TIFF with its directory before its pixels, so that cuts take pixels alone."""
    start = int.from_bytes(data[4:8], "little")
    if start < 100:
        return data
    count = int.from_bytes(data[start : start + 2], "little")
    directory, moved = bytearray(data[start:]), len(data) - start
    for entry in range(2, 2 + 12 * count, 12):
        tag, type_, length, value = struct.unpack_from("<HHII", directory, entry)
        size = length * {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[type_]
        if size > 4:
            struct.pack_into("<I", directory, entry + 8, 8 + value - start if value >= start else value + moved)
        if tag in {273, 324}:
            at = 8 + 0
            letter = {3: "H", 4: "I"}[type_]
            place = entry + 8 if size <= 4 else value - start
            places = struct.unpack_from(f"<{length}{letter}", directory, place)
            struct.pack_into(f"<{length}{letter}", directory, place, *(offset + moved for offset in places))
            assert at == 8
    return data[:4] + struct.pack("<I", 8) + bytes(directory) + data[8:start]


WHOLE = _whole()


def _shown(data: bytes) -> Any:
    """The picture, or None where it is refused for what a cut does to it."""
    try:
        return decode(data)
    except ImageError as error:
        said = str(error)
    assert any(words in said for words in ("truncated", "not a picture", "the file is empty")), said
    return None


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_picture_is_refused_or_all_of_it_is_there(kind: str) -> None:
    """With what ends a file of its format behind the cut, and without."""
    data, end = WHOLE[kind]
    whole = decode(data)
    read = 0
    for place in range(PLACES):
        cut = data[: len(data) * place // PLACES]
        for broken in {cut, cut + end}:
            shown = _shown(broken)
            if shown is not None:
                assert np.array_equal(shown, whole), place
                read += 1
    assert read < PLACES // 10 or "animated" in kind  # behind its first frame all of the picture is there


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if "animated" not in kind])
def test_most_of_a_picture_is_not_all_of_it(kind: str) -> None:
    """So the test above does not hold because all of it is refused: it begins with whole pictures."""
    data, _ = WHOLE[kind]
    assert decode(data).shape == (40, 40, 3)
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: len(data) * 6 // 10])


# --- rows that are not there ------------------------------------------------------------------------------------------


def test_a_bmp_whose_runs_end_early_is_truncated() -> None:
    row = bytes([9, 7])
    assert (decode(_bmp_of_runs((3, 9), _runs(row, row, row))) == 7).all()
    assert decode(_bmp_of_runs((3, 9), b"\0\2\0\2" + _runs(row)))[0, :, 0].tolist() == [7] * 9  # a step over two rows
    for short in (_runs(row, row), _runs(row, row, b"\5\7"), row + b"\0\0" + row + b"\0\0"):
        with pytest.raises(ImageError, match="fewer runs than it has rows"):
            decode(_bmp_of_runs((3, 9), short))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({273: [200], 278: [2], 279: [4]}, "of 2 strips or tiles it has 1"),
        ({273: [200, 204], 278: [2], 279: [4]}, "of 2 strips or tiles it has 1"),
        ({273: [200, 2**31], 278: [2], 279: [4, 4]}, "strips or tiles of it are not there"),
        ({273: [200, 204], 278: [2], 279: [4, 0]}, "strips or tiles of it are not there"),
        ({273: [200, 204], 278: [2], 279: [4, 2**31]}, "strips or tiles of it are not there"),
        ({273: [200, 204], 278: [0], 279: [4, 4]}, "truncated"),
        ({322: [16], 323: [16], 324: [200], 325: [0]}, "strips or tiles of it are not there"),
        ({322: [2**16], 323: [2**10], 324: [0], 325: [9]}, "a tile is larger than the picture"),
        ({322: [0], 323: [16], 324: [0], 325: [9]}, "truncated"),
        ({273: [0] * 4, 278: [1], 279: [190] * 4}, None),
        ({273: [0] * 40, 278: [1], 279: [300] * 40}, "its strips or tiles are longer than the file"),
    ],
)
def test_the_strips_of_a_tiff_are_counted_and_looked_for(tags: dict[int, list[int]], words: str | None) -> None:
    size = {256: [2], 257: [40 if words and "longer" in words else 4]}
    data = ifd({**size, 258: [8], 259: [1], 262: [1], 277: [1], **tags}).ljust(400, b"\1")
    if words is None:
        assert decode(data).shape == (4, 2, 3)
        return
    with pytest.raises(ImageError, match=words):
        decode(data)


def test_a_webp_is_as_long_as_it_says() -> None:
    data, _ = WHOLE["WebP opaque"]
    assert np.array_equal(decode(data + b"more"), decode(data))
    with pytest.raises(ImageError, match="truncated"):
        decode(data[:4] + struct.pack("<I", len(data)) + data[8:])


def test_a_small_first_frame_of_a_webp_lies_on_a_white_canvas() -> None:
    frame, _ = WHOLE["WebP lossless opaque"]
    place = b"".join(number.to_bytes(3, "little") for number in (5, 3, 39, 39, 0))  # halves of 10 and 6
    parts = struct.pack("<4sI", b"ANIM", 6) + bytes(6)
    parts += struct.pack("<4sI", b"ANMF", 16 + len(frame) - 12) + place + b"\0" + frame[12:]
    canvas = struct.pack("<4sII", b"VP8X", 10, 2) + (99).to_bytes(3, "little") + (59).to_bytes(3, "little")
    body = b"WEBP" + canvas + parts
    shown = decode(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert shown.shape == (60, 100, 3)
    assert np.array_equal(shown[6:46, 10:50], decode(frame))
    shown[6:46, 10:50] = 255
    assert (shown == 255).all()


# --- time -------------------------------------------------------------------------------------------------------------


def _seconds(data: bytes) -> float:
    start = time.process_time()
    with contextlib.suppress(ImageError):
        decode(data)
    return time.process_time() - start


def test_texts_of_a_png_that_unpack_to_gigabytes_cost_nothing() -> None:
    """libpng unpacks each: seconds of a core for a file of 2 MB."""
    bomb = zlib.compress(bytes(7_900_000), 9)
    data = png(1, 8, 2, [b"abc"])
    for kind, head in ((b"zTXt", b"\0\0"), (b"iTXt", b"\0\1\0\0\0"), (b"iCCP", b"\0\0")):
        many = b"".join(chunk(kind, b"k%d" % number + head + bomb) for number in range(200))
        assert decode(data[:33] + many + data[33:]).tolist() == [[[97, 98, 99]]]
        assert _seconds(data[:33] + many + data[33:]) + _seconds(data[:-12] + many + data[-12:]) < 0.5


def test_scans_behind_a_hidden_end_of_a_jpeg_are_counted() -> None:
    """A comment with the end's marker ended our count, and not the decoder's."""
    data = saved(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    comment = b"\xff\xfe\0\4" + EOI
    assert np.array_equal(decode(data[:last] + comment + data[last:]), decode(data))
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        decode(data[:-2] + comment + data[last:-2] * 50_000 + EOI)


def test_scans_of_rare_sampling_are_counted() -> None:
    data = bytearray(saved(photo().resize((96, 96)), "JPEG", progressive=True))
    data[data.index(b"\xff\xc2") + 11] = 0x41
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        decode(bytes(data[:-2] + data[last:-2] * 9_000 + EOI))


def test_a_large_jpeg_has_fewer_scans() -> None:
    """Each costs a walk over all pixels: 200 of the largest picture would take half a minute."""
    data = bytearray(saved(Image.new("L", (16, 16)), "JPEG", progressive=True))
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", 8000, 8000)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 25 scans"):
        decode(bytes(data[:-2] + data[last:-2] * 26 + EOI))


def test_a_png_with_fewer_bytes_than_pixels_is_not_unpacked() -> None:
    data = png(1, 8, 2, [b"abc"])
    large = data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)) + data[33:]
    with pytest.raises(ImageError, match="fewer bytes than it has pixels"):
        decode(large)


# --- memory -----------------------------------------------------------------------------------------------------------

_SIDE = 2048
#: A picture's decoder may load a library, and holds rows and tables, however small the picture is.
_ANY_PICTURE = 10_000_000
_PEAKS = """if True:
    import json, sys
    from pathlib import Path
    from PIL import Image
    from worker.pictures.decode import decode
    from worker.pictures.formats import opencv
    Image.init()
    claims, check = [], opencv.check_size
    def noted(format, height, width, bytes_a_pixel):
        claims.append(height * width * bytes_a_pixel)
        check(format, height, width, bytes_a_pixel)
    opencv.check_size = noted
    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    found = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        data = path.read_bytes()
        claims.clear()
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        shape = decode(data).shape
        found[path.name] = [peak() - before, max(claims), len(data), shape[0] * shape[1]]
    print(json.dumps(found))
"""


def _large() -> dict[str, bytes]:
    y, x = np.mgrid[:_SIDE, :_SIDE]
    level = ((x // 16 + y // 16) % 256).astype(np.uint8)
    rgb = np.dstack([level, level[::-1], level.T])
    image, alpha = Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, level]))
    turned = Image.Exif()
    turned[0x112] = 6
    found = {
        "jpeg": saved(image, "JPEG", exif=turned),
        "jpeg-progressive": saved(image, "JPEG", progressive=True, subsampling=0, exif=turned),
        "jpeg-cmyk": saved(image.convert("CMYK"), "JPEG", progressive=True),
        "png": saved(image, "PNG", compress_level=1, exif=turned),
        "png-alpha": saved(alpha, "PNG", compress_level=1, exif=turned),
        "png-palette": saved(image.quantize(16), "PNG", compress_level=1, transparency=3),
        "webp": saved(image, "WEBP", quality=50, method=0, exif=turned),
        "webp-alpha": saved(alpha, "WEBP", quality=50, method=0),
        "webp-lossless": saved(alpha, "WEBP", lossless=True, quality=0, method=0),
        "webp-animated": saved(image, "WEBP", quality=50, method=0, save_all=True, append_images=[image.rotate(90)]),
        "gif": saved(image.quantize(16), "GIF", transparency=3),
        "bmp": saved(image, "BMP"),
        "bmp-masks": bmp(_SIDE, [row.tobytes() for row in np.asarray(alpha).view("<u4")[..., 0]], 32,
                         (0xFF, 0xFF00, 0xFF0000, 0xFF000000), header=108),
        "tiff-float": saved(Image.fromarray(level.astype(np.float32) / 255), "TIFF", compression="tiff_lzw"),
        "tiff-cmyk": saved(image.convert("CMYK"), "TIFF", compression="packbits"),
        "tiff-one-strip": saved(alpha, "TIFF", compression="tiff_lzw", tiffinfo={278: _SIDE}),
        "tiff-turned": saved(image, "TIFF", compression="tiff_lzw", tiffinfo={0x112: 6}),
    }  # fmt: skip
    deep = np.dstack([rgb, level]).astype(np.uint16) * 257
    key = chunk(b"tRNS", bytes(2))
    gray = bytes(cv2.imencode(".png", deep[..., 0])[1])
    found["png-alpha-16"] = bytes(cv2.imencode(".png", deep)[1])
    found["png-gray-16"] = gray[:33] + key + gray[33:]
    found["tiff-alpha-16"] = bytes(cv2.imencode(".tiff", deep)[1])
    found["png-wide"] = saved(Image.new("RGBA", (1_000_000, 4), (1, 2, 3, 99)), "PNG")
    return found


def _peaks(folder: Path, files: dict[str, bytes]) -> dict[str, list[float]]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    # Memory that is freed goes back at once, so that each picture's own is seen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(folder)], capture_output=True, check=True, env=environment, text=True
    )
    assert run.stderr == ""
    peaks: dict[str, list[float]] = json.loads(run.stdout)
    return peaks


def test_a_picture_takes_no_more_memory_than_was_counted_before(tmp_path: Path) -> None:
    """And at most eight times its pixels, beside two copies of its file."""
    peaks = _peaks(tmp_path, _large())
    assert len(peaks) == 21
    over = {
        name: (peak, counted, length, pixels)
        for name, (peak, counted, length, pixels) in peaks.items()
        if peak - 2 * length > min(counted, 8 * 3 * pixels) + _ANY_PICTURE
    }
    assert over == {}


def test_the_largest_png_takes_less_than_500_mb(tmp_path: Path) -> None:
    side = int(((opencv.MAX_BYTES - 11e6) / 8) ** 0.5)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(b"\0" + bytes(4 * side)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND")
    ((peak, _, length, pixels),) = _peaks(tmp_path, {"largest.png": data}).values()
    assert pixels == side**2 > 60_000_000
    assert peak - 2 * length <= opencv.MAX_BYTES == 500_000_000
    with pytest.raises(ImageError, match="the PNG picture takes more than 500 MB to decode"):
        decode(data[:16] + struct.pack(">II", side + 100, side) + data[24:])


def _progressive_of_largest() -> bytes:
    data = saved(Image.new("RGB", (16, 16)), "JPEG", progressive=True, subsampling=0)
    return data.replace(b"\0\x10\0\x10", struct.pack(">HH", 65500, 1024))


@pytest.mark.parametrize(
    "data",
    [
        _progressive_of_largest(),
        tiff((8192, 8192), b"", bits=[16] * 4, compression=[5]),
        bmp(1, [bytes(4)], 32, (1, 2, 4))[:18]
        + struct.pack("<ii", 10, -(2**31))
        + bmp(1, [bytes(4)], 32, (1, 2, 4))[26:],
        b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", 8191 | 8191 << 14) + bytes(5),
    ],
    ids=["JPEG", "TIFF", "BMP", "WebP"],
)
def test_what_would_take_too_much_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"more than 500 MB to decode|more than 67108864 pixels|truncated"):
        decode(data)
    assert _seconds(data) < 0.1


# --- lines on stderr --------------------------------------------------------------------------------------------------


def test_decoders_print_nothing(tmp_path: Path) -> None:
    """A stranger's file could fill the log: libpng prints a line for each chunk that it does not like."""
    data = png(1, 8, 2, [b"abc"])
    odd = saved(photo(), "JPEG", progressive=True)
    scan = odd.index(b"\xff\xda", odd.index(b"\xff\xda") + 2)
    files = [
        data[:33] + chunk(b"sRGB") * 60 + data[33:],
        data[:-20] + b"....." + data[-15:],
        saved(photo(), "PNG")[:200] + IEND,
        odd[:scan] + odd[scan:-2] * 3 + EOI,
        saved(photo(), "TIFF", compression="jpeg").replace(b"\xff\xdb", b"\xff\xfe"),
        saved(photo(), "TIFF", compression="tiff_lzw")[:300].ljust(9000, b"\0"),
        tiff((1, 1), bytes(1), orientation=[1, 1, 1], samples=[99]),
    ]
    program = """if True:
        import ctypes, os, sys
        from producer.jobs.model.errors import ImageError
        from worker.pictures.decode import decode
        for data in map(bytes.fromhex, sys.stdin.read().split()):
            try:
                decode(data)
            except ImageError as error:
                print(error)
        os.write(2, b"who writes to it is heard; ")
        print("Python, too", file=sys.stderr)
    """
    lines = "\n".join(data.hex() for data in files)
    run = subprocess.run([sys.executable, "-c", program], input=lines, capture_output=True, check=True, text=True)
    assert run.stderr == "who writes to it is heard; Python, too\n"
    assert run.stdout.count("\n") >= 4


def test_fuzzed_pictures_are_read_or_refused() -> None:
    """500 inputs of each format; `make fuzz` runs more."""
    import fuzz
    from fuzz_targets import MODULES

    summaries = fuzz.in_child(MODULES["fuzz_pictures"], 500)
    assert {one["target"]: one["findings"] for one in summaries if one["findings"]} == {}
    for summary in summaries:
        assert summary["inputs"] == 500
        assert len(summary["verdicts"]) > 1, summary
