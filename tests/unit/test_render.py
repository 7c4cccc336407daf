from __future__ import annotations

import cv2
import numpy as np
import pytest

from producer.jobs.model.errors import ModelError
from worker.pictures.min_max import min_max_scaled
from worker.pictures.render import OUTPUTS, encode, render

DARK_BLUE, DARK_RED = (0, 0, 128), (128, 0, 0)


def _gray(levels: object) -> np.ndarray:
    """A (h, w, 3) picture of gray levels, in [0, 1]."""
    return np.repeat(np.asarray(levels, np.float32)[..., None], 3, axis=2) / np.float32(255)


def _zeros(h: int, w: int) -> np.ndarray:
    return np.zeros((h, w, 3), np.float32)


def test_a_map_is_normalised_by_its_own_minimum_and_maximum() -> None:
    values, flat = min_max_scaled(np.array([[2.0, 4.0], [6.0, 10.0]]))
    assert values.tolist() == [[0, 0.25], [0.5, 1]]
    assert values.dtype == np.float32
    assert not flat


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_flat_map_is_zero_and_flagged(level: float) -> None:
    values, flat = min_max_scaled(np.full((2, 3), level))
    assert values.tolist() == [[0] * 3] * 2
    assert flat


def test_a_map_is_normalised_before_it_is_resized_and_never_again() -> None:
    """2x2 to 4x4 with half-pixel centers: each output pixel is a mix of quarters of its two nearest neighbors.

    A row (0, 1) becomes (0, 1/4, 3/4, 1); the map [[0, 1], [0, 0]] becomes that row times (1, 3/4, 1/4, 0).
    """
    guided = _zeros(4, 4)
    guided[...] = 1
    pictures = render(_zeros(4, 4), np.array([[0.0, 8.0], [0.0, 0.0]]), guided)
    expected = np.outer([1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1])
    # cam_gb of a guided gradient of ones is the resized map itself, stretched from 0..1, truncated.
    assert pictures["cam_gb"][..., 0].tolist() == (255 * expected).astype(int).tolist()
    assert pictures["cam_gb"][1].tolist() == [[0] * 3, [47] * 3, [143] * 3, [191] * 3]  # 47.8, 143.4, 191.25


def test_the_heatmap_is_jet_in_rgb() -> None:
    """OpenCV's JET: 0 is half blue, 255 half red, and level 127 is trunc(255 * 0.5)."""
    pictures = render(_zeros(1, 3), np.array([[0.0, 1.0, 2.0]]), _zeros(1, 3))
    middle = cv2.applyColorMap(np.array([[127]], np.uint8), cv2.COLORMAP_JET)[0, 0, ::-1]
    assert pictures["heatmap"].tolist() == [[list(DARK_BLUE), middle.tolist(), list(DARK_RED)]]
    assert middle[1] == 255


def test_a_flat_map_gives_the_coldest_color() -> None:
    pictures = render(_gray([[0, 100]]), np.ones((1, 1)), _zeros(1, 2))
    assert pictures["heatmap"].tolist() == [[list(DARK_BLUE)] * 2]
    assert not pictures["cam_gb"].any()


def test_cam_is_heatmap_plus_picture_stretched_by_hand() -> None:
    """Heatmap (0, 0, 128) and (128, 0, 0), picture 10 and 30: sums 10, 10, 138 and 158, 30, 30; from 10 to 158."""
    pictures = render(_gray([[10, 30]]), np.array([[0.0, 1.0]]), _zeros(1, 2))
    hot, cold = 255 * 128 // 148, 255 * 20 // 148
    assert pictures["cam"].tolist() == [[[0, 0, hot], [255, cold, cold]]]


def test_cam_is_exact_for_every_pair_of_levels() -> None:
    """As if computed in whole numbers: no rounding error ever drops a level."""
    levels = np.arange(256).reshape(16, 16)
    picture = _gray(levels)
    pictures = render(picture, np.ones((1, 1)), _zeros(16, 16))
    total = levels[..., None] + np.array(DARK_BLUE)  # 0..383
    assert pictures["cam"].tolist() == (255 * total // 383).tolist()


def test_truncation_is_exact_for_every_span() -> None:
    """Quotients that are whole numbers must not fall below them, as they do in float32."""
    for span in range(1, 511):
        levels = np.arange(span + 1)
        guided = np.repeat(levels[:, None, None], 3, axis=2).astype(np.float32)  # (span + 1, 1, 3)
        gb = render(_zeros(span + 1, 1), np.zeros((1, 1)), guided, ["gb"])["gb"]
        assert np.array_equal(gb[:, 0, 0], 255 * levels // span)


def test_gb_is_stretched_over_all_channels_together() -> None:
    guided = np.array([[[-1.0, 0.0, 1.0], [3.0, 2.0, -1.0]]], np.float32)
    pictures = render(_zeros(1, 2), np.array([[0.0, 1.0]]), guided)
    assert pictures["gb"].tolist() == [[[0, 63, 127], [255, 191, 0]]]


def test_cam_gb_multiplies_before_it_stretches() -> None:
    guided = np.array([[[-1.0, 0.0, 1.0], [3.0, 2.0, -1.0]]], np.float32)
    pictures = render(_zeros(1, 2), np.array([[0.0, 1.0]]), guided)
    # The left pixel becomes 0, the right one keeps 3, 2, -1: from -1 to 3.
    assert pictures["cam_gb"].tolist() == [[[63, 63, 63], [255, 191, 0]]]


def test_constant_pictures_become_zeros() -> None:
    guided = _zeros(2, 2)
    guided[...] = -5
    pictures = render(_zeros(2, 2), np.zeros((1, 1)), guided)
    assert not pictures["gb"].any()
    assert not pictures["cam_gb"].any()


def test_the_brightest_value_is_always_255() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        guided = rng.normal(size=(3, 3, 3)).astype(np.float32) * np.float32(10.0 ** rng.integers(-12, 12))
        gb = render(_zeros(3, 3), np.zeros((1, 1)), guided, ["gb"])["gb"]
        assert (gb.min(), gb.max()) == (0, 255)


def test_only_what_is_asked_is_drawn_and_in_a_fixed_order() -> None:
    everything = render(_gray([[0, 9]]), np.array([[0.0, 1.0]]), np.ones((1, 2, 3), np.float32))
    some = render(_gray([[0, 9]]), np.array([[0.0, 1.0]]), np.ones((1, 2, 3), np.float32), {"gb", "heatmap"})
    assert tuple(everything) == OUTPUTS
    assert list(some) == ["heatmap", "gb"]
    for name, picture in some.items():
        assert np.array_equal(picture, everything[name])


def test_pictures_are_the_same_whatever_the_gradients_memory_order() -> None:
    rng = np.random.default_rng(1)
    planes = rng.normal(size=(3, 70, 50)).astype(np.float32)
    picture, map_ = rng.random((70, 50, 3)).astype(np.float32), rng.random((7, 5))
    view, copy = planes.transpose(1, 2, 0), np.ascontiguousarray(planes.transpose(1, 2, 0))
    for name, expected in render(picture, map_, copy).items():
        got = render(picture, map_, view)[name]
        assert np.array_equal(got, expected)
        assert got.shape == (70, 50, 3)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous


def test_inputs_are_not_changed() -> None:
    picture, map_, guided = _gray([[0, 9]]), np.array([[1.0, 2.0]], np.float32), np.ones((1, 2, 3), np.float32)
    before = picture.copy(), map_.copy(), guided.copy()
    render(picture, map_, guided)
    assert all(np.array_equal(a, b) for a, b in zip(before, (picture, map_, guided), strict=True))


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown outputs"):
        render(_zeros(1, 1), np.zeros((1, 1)), _zeros(1, 1), ["saliency"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_the_images_error(bad: float) -> None:
    guided = _zeros(2, 2)
    guided[1, 1, 1] = bad
    with pytest.raises(ModelError, match="not finite"):
        render(_zeros(2, 2), np.array([[0.0, 1.0]]), guided)
    with pytest.raises(ModelError, match="not finite"):
        min_max_scaled(np.array([[bad, 0]]))


def _decoded(data: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1]


def test_png_keeps_every_value() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(_decoded(encode(picture, "png")), picture)


def test_jpeg_keeps_colors_apart_at_edges() -> None:
    """With chroma subsampling a one-pixel checkerboard of red and blue would be purple; quality 95 alone errs by 12."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[::2, ::2, 0] = picture[1::2, 1::2, 0] = 255
    picture[::2, 1::2, 2] = picture[1::2, ::2, 2] = 255
    data = encode(picture)
    assert data[:3] == b"\xff\xd8\xff"
    assert np.abs(_decoded(data).astype(int) - picture).max() <= 24


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown picture format 'gif'"):
        encode(np.zeros((1, 1, 3), np.uint8), "gif")
