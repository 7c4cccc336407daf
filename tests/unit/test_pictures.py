"""What a picture looks like is what its file says, whatever format it has; docs/pictures.md lists the decisions."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from picture_files import LONG, SHORT, bmp, chunk, ifd, png, tiff
from PIL import Image, ImageOps

from producer.jobs.model.errors import ImageError
from worker.pictures.decode import decode
from worker.pictures.formats import exif

WHITE = [255, 255, 255]
Array = np.ndarray[Any, Any]


def _photo(height: int = 37, width: int = 53) -> Array:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x % 256, 5 * y % 200, x * y % 256], axis=2).astype(np.uint8)


def _saved(image: Image.Image | Array, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x112] = orientation
    return block


# --- Pillow says the same -------------------------------------------------------------------------------------------


def _by_pillow(data: bytes) -> Array:
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


#: The modes that Pillow writes in each format; in TIFF it writes all.
_WRITTEN = {
    "JPEG": "1 L RGB CMYK YCbCr", "PNG": "1 L P RGB RGBA LA I;16", "WEBP": "L RGB RGBA", "GIF": "1 L P RGB RGBA",
    "BMP": "1 L P RGB RGBA",
}  # fmt: skip


def _corpus() -> dict[str, bytes]:
    """Everything that Pillow writes of what we read."""
    rgb = _photo()
    opaque = Image.fromarray(rgb)
    transparent = Image.fromarray(np.dstack([rgb, np.tile(np.arange(53, dtype=np.uint8) * 4, (37, 1))]))
    images = {mode: opaque.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr")}
    images |= {mode: transparent.convert(mode) for mode in ("RGBA", "LA", "PA")}
    images["I;16"] = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    compressions = (None, "tiff_lzw", "tiff_deflate", "packbits", "tiff_lzma", "zstd", "jpeg", "group4")
    found: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {}
    options: dict[str, Any]
    for format, modes in _WRITTEN.items():
        for mode in modes.split():
            found[f"{format} {mode}"] = (images[mode], format, {"lossless": True} if format == "WEBP" else {})
    for mode, image in images.items():
        for compression in compressions:
            if compression not in {"jpeg", "group4"} or mode == {"jpeg": "RGB", "group4": "1"}[compression]:
                found[f"TIFF {mode} {compression}"] = (image, "TIFF", {"compression": compression})
    for number in range(1, 9):
        for format in ("JPEG", "PNG", "WEBP"):
            found[f"{format} turned {number}"] = (opaque, format, {"exif": _turned(number)})
        for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            found[f"{format} RGBA turned {number}"] = (transparent, format, {"exif": _turned(number), **options})
        for mode in ("RGB", "RGBA", "I;16"):
            for compression in (None, "tiff_lzw"):
                options = {"tiffinfo": {0x112: number}, "compression": compression}
                found[f"TIFF {mode} {compression} turned {number}"] = (images[mode], "TIFF", options)
    moved = [Image.fromarray(np.roll(rgb, shift, axis=1)) for shift in (9, 20)]
    for format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        options = {"lossless": True} if format == "WEBP" else {}
        found[f"{format} of several"] = (opaque, format, {"save_all": True, "append_images": moved, **options})
    still = {"save_all": True, "append_images": moved, "default_image": True}
    found["PNG still beside its animation"] = (opaque, "PNG", still)
    return {name: _saved(image, format, **options) for name, (image, format, options) in found.items()}


CORPUS = _corpus()


def test_the_corpus_has_every_format() -> None:
    counts = {name.split()[0] for name in CORPUS}
    assert counts == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"}
    assert len(CORPUS) > 150


@pytest.mark.parametrize("name", CORPUS)
def test_a_picture_is_what_pillow_shows(name: str) -> None:
    got, expected = decode(CORPUS[name]), _by_pillow(CORPUS[name])
    assert got.shape == expected.shape
    # libjpeg, libwebp and rounding of alpha differ by 1.
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= (2 if "JPEG" in name or "WEBP" in name else 1)


# --- transparency -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_grey_png_is_white(depth: int) -> None:
    most = 2**depth - 1
    key = most // 2
    bits = f"{key:0{depth}b}{most:0{depth}b}".ljust(max(8, 2 * depth), "0")
    row = int(bits, 2).to_bytes(len(bits) // 8)
    other = [255] * 3 if depth > 1 else WHITE
    assert decode(png(2, depth, 0, [row], chunk(b"tRNS", struct.pack(">H", key)))).tolist() == [[WHITE, other]]
    shown = key * 255 // most if depth < 16 else key >> 8
    assert decode(png(2, depth, 0, [row])).tolist() == [[[shown] * 3, other]]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_color_of_an_rgb_png_is_white(depth: int) -> None:
    letter = "B" if depth == 8 else "H"
    row = struct.pack(f">6{letter}", 1, 2, 3, 1, 2, 4)
    shown = decode(png(2, depth, 2, [row], chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    assert shown[0, 0].tolist() == WHITE
    assert shown[0, 1].tolist() == ([1, 2, 4] if depth == 8 else [0, 0, 0])


@pytest.mark.parametrize("text", [b"see IDAT below", b"tRNS", b"IEND"])
def test_words_in_a_text_are_no_chunks(text: bytes) -> None:
    """They were found by searching the file for their letters."""
    note, palette = chunk(b"tEXt", b"Comment\0" + text), chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    data = png(8, 1, 3, [b"\x55"], note, palette, chunk(b"tRNS", b"\0"))
    assert decode(data)[0, :2].tolist() == [WHITE, [40, 50, 60]]
    assert decode(png(8, 1, 3, [b"\x55"], note, palette))[0, :2].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_a_transparent_gif_is_laid_over_white() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    assert decode(_saved(image, "GIF", transparency=1)).tolist() == [[[200, 0, 0], WHITE, [0, 0, 200]]]


def test_what_the_first_frame_of_a_gif_leaves_out_is_white() -> None:
    whole = _saved(Image.fromarray(np.zeros((2, 2, 3), np.uint8)), "GIF")
    wider = whole[:6] + struct.pack("<HH", 4, 3) + whole[10:]
    shown = decode(wider)
    assert shown.shape == (3, 4, 3)
    assert (shown[:2, :2] == 0).all()
    assert (shown[2:] == 255).all()
    assert (shown[:, 2:] == 255).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("extra", "shown"),
    [
        ([2], [[100, 50, 0], WHITE, [224, 214, 204]]),  # alpha; 51 is a fifth
        ([0], [[100, 50, 0], [100, 50, 0], [100, 50, 0]]),  # a fourth number of which nothing is known, as infrared
    ],
)
def test_the_fourth_number_of_a_tiff_is_alpha_where_the_file_says_so(
    order: str, extra: list[int], shown: object
) -> None:
    pixels = bytes([100, 50, 0, 255, 100, 50, 0, 0, 100, 50, 0, 51])
    assert decode(tiff((1, 3), pixels, order, bits=[8] * 4, extra=extra)).tolist() == [shown]


def test_associated_alpha_of_a_tiff_is_laid_over_white() -> None:
    pixels = bytes([100, 50, 0, 255, 0, 0, 0, 0, 20, 10, 0, 51])
    shown = decode(tiff((1, 3), pixels, bits=[8] * 4, extra=[1]))
    assert np.abs(shown[0].astype(int) - [[100, 50, 0], WHITE, [224, 214, 204]]).max() <= 1


def test_grey_with_alpha_in_a_tiff_is_laid_over_white() -> None:
    assert decode(tiff((1, 2), bytes([100, 255, 100, 0]), bits=[8, 8], extra=[2])).tolist() == [[[100] * 3, WHITE]]


def test_alpha_of_a_bmp_is_laid_over_white() -> None:
    row = struct.pack("<3I", 0xFF643200, 0x00643200, 0x33643200)
    data = bmp(3, [row], 32, [0xFF0000, 0xFF00, 0xFF, 0xFF000000], header=108)
    assert decode(data).tolist() == [[[100, 50, 0], WHITE, [224, 214, 204]]]


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    """So browsers show it; programs that know of no alpha leave these bytes empty."""
    data = bmp(1, [struct.pack("<I", 0x00643200)], 32, [0xFF0000, 0xFF00, 0xFF, 0xFF000000], header=124)
    assert decode(data).tolist() == [[[100, 50, 0]]]


# --- BMP with masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks", "pixel"),
    [
        (32, (0xFF, 0xFF00, 0xFF0000), 0x000032FF),
        (32, (0xFF0000, 0xFF00, 0xFF), 0x00FF3200),
        (32, (0xFF000000, 0xFF0000, 0xFF00), 0xFF320000),
        (32, (0x3FF00000, 0xFFC00, 0x3FF), 0x3FF00000 | (0x32 << 12)),
        (16, (0xF800, 0x7E0, 0x1F), 0xF800 | (12 << 5)),
        (16, (0x7C00, 0x3E0, 0x1F), 0x7C00 | (6 << 5)),
        (16, (0x1F, 0x7E0, 0xF800), 0x1F | (12 << 5)),
        (16, (0xF00, 0xF0, 0xF), 0xF00 | (3 << 4)),
    ],
)
def test_the_masks_of_a_bmp_say_which_color_is_where(
    header: int, bits: int, masks: tuple[int, ...], pixel: int
) -> None:
    row = pixel.to_bytes(bits // 8, "little") * 3
    shown = decode(bmp(3, [row, bytes(len(row))], bits, masks, header))
    assert np.abs(shown[0].astype(int) - [255, 50, 0]).max() <= 2
    assert (shown[1] == 0).all()


def test_a_short_bmp_with_masks_is_broken() -> None:
    data = bmp(3, [bytes(12)] * 9, 32, (0xFF, 0xFF00, 0xFF0000))
    with pytest.raises(ImageError, match="BMP picture is broken or truncated"):
        decode(data[:-1])


# --- EXIF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("type_", [SHORT, LONG, ("B", 1), ("h", 8), ("i", 9)])
def test_an_orientation_counts_whatever_its_type_and_byte_order(order: str, type_: tuple[str, int]) -> None:
    block = ifd({0x10F: [7] * 9, 0x112: [6]}, order, type_)
    assert exif.orientation(block) == exif.orientation(b"Exif\0\0" + block) == 6
    jpeg = _saved(_photo(), "JPEG", exif=b"Exif\0\0" + block)
    assert decode(jpeg).shape == (53, 37, 3)
    rgba = np.dstack([_photo(), np.full((37, 53), 128, np.uint8)])
    for format in ("PNG", "WEBP"):
        assert decode(_saved(rgba, format, exif=b"Exif\0\0" + block)).shape == (53, 37, 3)
    turned = tiff((2, 3), bytes(range(6)), order, orientation=[6])
    assert decode(turned)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize(
    "block",
    [
        b"", b"Exif\0\0", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"II+\0" + b"\xff" * 12,
        ifd({0x112: [9]}), ifd({0x112: [0]}), ifd({0x112: [6]})[:20], b"II*\0\x08\0\0\0" + b"\xff" * 120000,
    ],
)  # fmt: skip
def test_a_broken_exif_block_turns_nothing(block: bytes) -> None:
    assert exif.orientation(block) == 1
    assert decode(_saved(_photo(), "JPEG", exif=b"Exif\0\0" + block[:60000])).shape == (37, 53, 3)


def test_of_an_entry_only_some_values_are_read() -> None:
    """An entry may claim four thousand million of them."""
    block = bytearray(ifd({0x112: [6, 6]}))
    struct.pack_into("<I", block, 14, 2**32 - 1)
    assert exif.orientation(bytes(block)) == 6


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        tiff((2**16, 2**16), b""),
        bmp(1, [], 32, (1, 2, 4))[:18] + struct.pack("<ii", 2**16, -(2**16)) + bmp(1, [bytes(4)], 32, (1, 2, 4))[26:],
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b"," + bytes(99),
        _saved(_photo(), "JPEG").replace(struct.pack(">HH", 37, 53), struct.pack(">HH", 60000, 60000)),
    ],
    ids=["TIFF", "BMP", "GIF", "JPEG"],
)
def test_pixels_are_counted_before_they_are_unpacked(data: bytes) -> None:
    with pytest.raises(ImageError, match="has more than 67108864 pixels"):
        decode(data)


# --- files that end early ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_png_that_ends_behind_its_last_row_is_read(cut: int) -> None:
    """IEND and the checksum before it are 16 bytes; they hold no pixel."""
    data = _saved(_photo(), "PNG")
    assert np.array_equal(decode(data[:-cut]), _photo())


def test_a_png_without_its_last_rows_is_truncated() -> None:
    data = _saved(_photo(), "PNG")
    start = data.index(b"IDAT") - 4
    packed = data[start + 8 : -16]
    for short in (packed[: len(packed) // 2], packed[:-20]):
        with pytest.raises(ImageError, match="PNG picture is broken or truncated"):
            decode(data[:start] + chunk(b"IDAT", short) + chunk(b"IEND"))
        with pytest.raises(ImageError, match="PNG picture is broken or truncated"):
            decode(data[: start + 8 + len(short)])
    half = zlib.compress(zlib.decompress(packed)[: 18 * 160])
    with pytest.raises(ImageError, match="PNG picture is broken or truncated"):
        decode(data[:start] + chunk(b"IDAT", half) + chunk(b"IEND"))


def test_a_gif_without_its_trailer_is_read() -> None:
    data = _saved(Image.fromarray(_photo()).quantize(64), "GIF")
    assert data.endswith(b"\0;")
    assert np.array_equal(decode(data[:-1]), decode(data))


def test_comments_before_a_gifs_picture_cost_no_time() -> None:
    """Pillow joins their blocks in quadratic time: hours for 64 MiB of them."""
    data = _saved(_photo(), "GIF")
    at = data.index(b",", 13 + 3 * 2 ** (1 + (data[10] & 7)))
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"
    assert np.array_equal(decode(data[:at] + comment + data[at:]), decode(data))


def test_of_an_animated_png_only_the_still_picture_counts() -> None:
    """OpenCV's reader of animations crashes on some that are broken, and takes the worker's process with it."""
    frames = [Image.fromarray(np.roll(_photo(), shift, axis=1)) for shift in (0, 9)]
    data = bytearray(_saved(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    data[data.index(b"fdAT") + 40] ^= 0xFF
    assert np.array_equal(decode(bytes(data)), _photo())
    assert np.array_equal(decode(bytes(data[: data.index(b"fdAT") + 40])), _photo())
