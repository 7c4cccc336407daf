from __future__ import annotations

import tracemalloc
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from worker.pictures.geometry import BILINEAR, BORDER, FILTERS, FITS, Frame, fit

SIZE = (224, 224)
SHAPES = [(375, 500), (500, 375), (224, 224), (101, 640), (37, 21), (1, 1), (1, 5000), (5000, 1), (3, 2)]


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), np.uint8)


def _gray(levels: object) -> np.ndarray:
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=2)


def _centre(values: np.ndarray) -> tuple[float, float]:
    """Centre of mass, in pixels; a pixel's center is at + 0.5."""
    y, x = np.indices(values.shape)
    return float((values * (y + 0.5)).sum() / values.sum()), float((values * (x + 0.5)).sum() / values.sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_resizes_bytes_bilinearly_and_changes_nothing_of_the_networks_size(shape: tuple[int, int]) -> None:
    rgb = _noise(*shape)
    squashed, _ = fit(rgb, (200, 260), "squash")
    assert np.array_equal(squashed, cv2.resize(rgb, (260, 200), interpolation=cv2.INTER_LINEAR))
    again, _ = fit(squashed, (200, 260), "squash")
    assert np.array_equal(again, squashed)


def test_a_picture_is_squashed_not_cropped() -> None:
    rgb = np.zeros((2, 8, 3), np.uint8)
    rgb[:, 4:] = 255
    squashed, _ = fit(rgb, (4, 4), "squash")
    assert squashed[0, :, 0].tolist() == [0, 0, 255, 255]


def test_resizing_has_half_pixel_centers_by_hand() -> None:
    rgb = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
    squashed, _ = fit(rgb, (1, 4), "squash")
    assert squashed[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", [SIZE, (299, 299), (160, 256), (1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_goes_there_and_back(shape: tuple[int, int], size: tuple[int, int], how: str) -> None:
    picture, frame = fit(_noise(*shape), size, how)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    for values in (np.ones(size), np.ones((*size, 3), np.float32)):
        back = frame.to_original(values)
        assert back.shape == shape + values.shape[2:]
        assert back.dtype == np.float32
        assert set(np.unique(back)) <= ({0, 1} if how == "crop" else {1})
        assert back.any()


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(300, 480), (480, 300), (120, 90), (1200, 900)])
def test_the_centre_of_a_blob_comes_back_within_a_pixel(shape: tuple[int, int], how: str) -> None:
    y, x = np.indices(shape) + 0.5
    at = (shape[0] * 0.45, shape[1] * 0.57)
    blob = 250 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * (min(shape) / 15) ** 2))
    picture, frame = fit(_gray(np.rint(blob)), SIZE, how, border=(0, 0, 0))
    seen = picture[..., 0].astype(np.float32)
    back = frame.to_original(seen)
    assert _centre(back) == pytest.approx(at, abs=1)
    assert np.abs(back - blob).max() < 10
    assert np.array_equal(frame.to_original(picture.astype(np.float32))[..., 1], back)


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        *((side, None) for side in ((224, 224), (299, 299))),
        *product([(224, 224), (299, 299), (225, 200), (64, 97)], [256, 257, 342, 230, (231, 300), 150, (150, 301)]),
    ],
)
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (333, 334), (97, 211)])
def test_a_crop_lies_where_torchvision_puts_it(
    shape: tuple[int, int], resize: tuple[int, int] | int | None, size: tuple[int, int]
) -> None:
    """Also where the resized picture is smaller than the crop, which torchvision pads."""
    rgb = _noise(*shape)
    to = round(size[0] / 0.875) if resize is None else resize
    plain = v2.Resize(list(to) if isinstance(to, tuple) else [to])(torch.zeros(3, *shape))
    resized = cv2.resize(rgb, (plain.shape[2], plain.shape[1]), interpolation=cv2.INTER_LINEAR)
    wanted = v2.CenterCrop(list(size))(torch.from_numpy(resized).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    cropped, _ = fit(rgb, size, "crop", resize, border=(0, 0, 0))
    assert np.abs(cropped.astype(int) - wanted).max() <= 1


def test_a_crop_without_resize_covers_a_network_that_is_not_square() -> None:
    """210 x 280 px are 240 x 320 with their surroundings, whichever side of the picture is the shorter."""
    for shape, inner in {(300, 300): (320, 320), (300, 600): (240, 480), (600, 300): (640, 320)}.items():
        _, frame = fit(_noise(*shape), (210, 280), "crop")
        assert (frame.height, frame.width) == inner


@pytest.mark.parametrize(("shape", "axis"), [((400, 800), 1), ((800, 400), 0)])
def test_outside_of_a_crop_everything_is_zero(shape: tuple[int, int], axis: int) -> None:
    """A side of 400 px becomes 256, of which 224 are seen: 350 px in the middle."""
    _, frame = fit(_noise(*shape), SIZE, "crop")
    back = np.moveaxis(frame.to_original(np.ones(SIZE)), axis, 0)
    seen = np.zeros_like(back)
    seen[225:575, 25:375] = 1
    assert np.array_equal(back, seen)


@pytest.mark.parametrize("shape", [(400, 800), (800, 400), (50, 77)])
def test_the_border_of_a_pad_does_not_bleed_in(shape: tuple[int, int]) -> None:
    picture, frame = fit(np.full((*shape, 3), 9, np.uint8), SIZE, "pad")
    border = (picture == BORDER).all(axis=2)
    assert set(np.unique(picture[~border])) == {9}
    assert border.sum() == 224 * 224 - frame.height * frame.width
    assert (frame.to_original(np.where(border, 1e9, 1.0)) == 1).all()


def test_a_pad_is_centred_by_hand() -> None:
    rgb = _gray([[10, 20, 30, 40]])  # 1 x 4 into 4 x 4: one row, one free above and two below
    picture, frame = fit(rgb, (4, 4), "pad", border=(1, 2, 3))
    assert picture[1].tolist() == rgb[0].tolist()
    assert (picture[[0, 2, 3]] == (1, 2, 3)).all()
    assert frame == Frame(original=(1, 4), size=(4, 4), top=1, left=0, height=1, width=4)
    assert frame.to_original(np.arange(16.0).reshape(4, 4)).tolist() == [[4, 5, 6, 7]]


def test_a_crop_is_cut_by_hand() -> None:
    rgb = _gray([[0, 10, 20, 30, 40, 50]] * 2)  # 2 x 6, as it is: columns 2 and 3 of the middle
    picture, frame = fit(rgb, (2, 2), "crop", 2)
    assert picture[..., 0].tolist() == [[20, 30]] * 2
    assert frame == Frame(original=(2, 6), size=(2, 2), top=0, left=-2, height=2, width=6)
    assert frame.to_original(np.array([[1.0, -2.0], [3.0, 4.0]])).tolist() == [[0, 0, 1, -2, 0, 0], [0, 0, 3, 4, 0, 0]]


def test_a_crop_of_a_larger_picture_comes_back_by_hand() -> None:
    """2 x 2 of 2 x 4 cover columns 2 to 5 of 4 x 8; centers are at -0.25, 0.25, 0.75 and 1.25 of 0 and 1."""
    _, frame = fit(_noise(4, 8), (2, 2), "crop", 2)
    row = [0, 0, 0, 1, 3, 4, 0, 0]
    assert frame.to_original(np.array([[0.0, 4.0], [0.0, 4.0]])).tolist() == [row] * 4


def test_going_back_from_squash_interpolates_by_hand() -> None:
    _, frame = fit(_noise(1, 4), (1, 2), "squash")
    assert frame.to_original(np.array([[0.0, 4.0]])).tolist() == [[0, 1, 3, 4]]


def test_a_long_strip_is_never_resized_as_a_whole() -> None:
    """1 x 200000 with 256 rows would be 51 million columns, 39 GB."""
    rgb = np.zeros((1, 200_000, 3), np.uint8)
    tracemalloc.start()
    _, frame = fit(rgb, SIZE, "crop")
    back = frame.to_original(np.ones(SIZE))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20e6
    assert np.flatnonzero(back[0]).tolist() == [99_999, 100_000]


# --- with antialiasing ------------------------------------------------------------------------------------------------

ANTIALIASED = {
    "bilinear-antialias": InterpolationMode.BILINEAR,
    "bicubic-antialias": InterpolationMode.BICUBIC,
}


@pytest.mark.parametrize("name", ANTIALIASED)
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (224, 224), (101, 640), (37, 21), (1, 1), (3, 2)])
def test_an_antialiased_crop_is_torchvisions_to_the_bit(shape: tuple[int, int], name: str) -> None:
    rgb = _noise(*shape)
    resize = v2.Compose([v2.Resize(256, ANTIALIASED[name]), v2.CenterCrop(224)])
    cropped, frame = fit(rgb, SIZE, "crop", 256, resize_filter=name)
    assert np.array_equal(cropped, np.asarray(resize(Image.fromarray(rgb))))
    assert frame == fit(rgb, SIZE, "crop", 256)[1]


@pytest.mark.parametrize("name", ANTIALIASED)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_antialiased_squash_is_pillows_to_the_bit_and_a_pad_has_it_in_its_middle(
    shape: tuple[int, int], name: str
) -> None:
    rgb, how = _noise(*shape), FILTERS[name]
    squashed, _ = fit(rgb, (200, 260), "squash", resize_filter=name)
    assert np.array_equal(squashed, np.asarray(Image.fromarray(rgb).resize((260, 200), how)))
    padded, frame = fit(rgb, (200, 260), "pad", resize_filter=name)
    inner = np.asarray(Image.fromarray(rgb).resize((frame.width, frame.height), how))
    rows, columns = slice(frame.top, frame.top + frame.height), slice(frame.left, frame.left + frame.width)
    assert np.array_equal(padded[rows, columns], inner)
    padded[rows, columns] = BORDER
    assert (padded == BORDER).all()


def test_stripes_finer_than_the_network_sees_become_gray_with_antialiasing_alone() -> None:
    stripes = _gray(np.tile([[0, 0, 255, 255]], (8, 1000)))
    assert set(np.unique(fit(stripes, (8, 500), "squash", resize_filter="bilinear-antialias")[0][:, 1:-1])) <= {
        127,
        128,
    }
    assert np.ptp(fit(stripes, (8, 300), "squash", resize_filter=BILINEAR)[0]) == 255


@pytest.mark.parametrize("name", ANTIALIASED)
def test_an_antialiased_crop_of_a_long_strip_resizes_what_it_shows(name: str) -> None:
    """3 x 200000 would be 256 x 17 million; what is shown is that of a shorter strip with the same middle."""
    rgb = _noise(3, 200_000)
    middle = rgb[:, 99_900:100_100]
    shown, frame = fit(rgb, SIZE, "crop", resize_filter=name)
    assert (frame.height, frame.width) == (256, 256 * 200_000 // 3)
    wanted, _ = fit(middle, SIZE, "crop", resize_filter=name)
    assert np.abs(shown.astype(int) - wanted).max() <= 2


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="bilinear, bilinear-antialias, bicubic-antialias"):
        fit(_noise(4, 4), (8, 8), "squash", resize_filter="lanczos")


def test_values_of_another_size_are_refused() -> None:
    _, frame = fit(_noise(4, 4), (8, 8), "pad")
    with pytest.raises(ValueError, match="do not belong"):
        frame.to_original(np.zeros((7, 8)))


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="squash, crop, pad"):
        fit(_noise(4, 4), (8, 8), "stretch")
