"""What a device draws of a batch is what the host draws of each image, which `test_render.py` holds against others."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.device.draw import draw_batch
from worker.pictures.render import JET, OUTPUTS, draw, heat_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Color → its level in the heatmap.
LEVELS = {tuple(color): level for level, color in enumerate(JET[:, 0].tolist())}


def levels(heatmap: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.array([LEVELS[tuple(color)] for color in heatmap.reshape(-1, 3).tolist()])


def by_the_host(
    pictures: torch.Tensor, maps: list[torch.Tensor], guided: torch.Tensor, at: tuple[int, int]
) -> tuple[dict[str, NDArray[np.uint8]], bool]:
    heat, flat = heat_of([each[at].numpy() for each in maps], (pictures.shape[1], pictures.shape[2]))
    return draw(pictures[at[0]].numpy(), heat, guided[at].permute(1, 2, 0).contiguous().numpy()), flat


def some(n: int, k: int, size: tuple[int, int], layers: tuple[tuple[int, int], ...], seed: int = 0) -> tuple[
    torch.Tensor, list[torch.Tensor], torch.Tensor
]:  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (n, *size, 3), dtype=torch.uint8, generator=random)
    maps = [torch.rand((n, k, *layer), generator=random) * 10 ** (3 * number) for number, layer in enumerate(layers)]
    return pictures, maps, torch.randn((n, k, 3, *size), generator=random) / 1000


@pytest.mark.parametrize("size", [(224, 224), (96, 64), (33, 50)])
@pytest.mark.parametrize("layers", [((7, 7),), ((1, 1),), ((14, 7), (5, 9), (40, 60))])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 2)])
def test_a_batch_is_drawn_as_each_image_is(
    n: int, k: int, size: tuple[int, int], layers: tuple[tuple[int, int], ...]
) -> None:
    pictures, maps, guided = some(n, k, size, layers)
    drawn = draw_batch(pictures, maps, guided, OUTPUTS)
    assert drawn.finite.all()
    for at in product(range(n), range(k)):
        expected, flat = by_the_host(pictures, maps, guided, at)
        found = {name: picture[at].numpy() for name, picture in drawn.pictures.items()}
        assert bool(drawn.flat[at]) == flat
        assert list(found) == list(OUTPUTS)
        assert np.array_equal(found["gb"], expected["gb"])
        away = np.abs(levels(found["heatmap"]) - levels(expected["heatmap"]))
        assert away.max() <= 1
        assert away.mean() < 0.01
        assert np.abs(found["cam_gb"].astype(int) - expected["cam_gb"]).max() <= 1
        # Where the level is the same, so is everything.
        same = (away == 0).reshape(size)
        assert np.abs(found["cam"].astype(int) - expected["cam"])[same].max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40), st.floats(1e-30, 1e30))
def test_where_no_map_is_resized_the_bytes_are_the_same(seed: int, height: int, width: int, scale: float) -> None:
    pictures, (map_,), guided = some(2, 1, (height, width), ((height, width),), seed)
    drawn = draw_batch(pictures, [map_], guided * scale, OUTPUTS)
    for n in range(2):
        expected, _ = by_the_host(pictures, [map_], guided * scale, (n, 0))
        for name, picture in drawn.pictures.items():
            assert np.array_equal(picture[n, 0].numpy(), expected[name]), name


def test_a_map_that_is_the_same_everywhere_is_flat_and_level_0() -> None:
    pictures, _, guided = some(2, 1, (8, 8), ())
    maps = torch.stack([torch.full((1, 4, 4), 3.0), torch.eye(4)[None]])
    drawn = draw_batch(pictures, [maps], guided, ["heatmap"])
    assert drawn.flat.tolist() == [[True], [False]]
    assert (drawn.pictures["heatmap"][0] == torch.from_numpy(JET[0, 0])).all()


def test_a_constant_gradient_is_a_black_picture() -> None:
    pictures, maps, guided = some(1, 1, (8, 8), ((4, 4),))
    drawn = draw_batch(pictures, maps, torch.full_like(guided, 0.5), ["gb"])
    assert not drawn.pictures["gb"].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["map", "guided"])
def test_what_is_not_finite_is_told_of_its_own_image_and_class(value: float, which: str) -> None:
    pictures, (map_,), guided = some(2, 2, (8, 8), ((4, 4),))
    (map_ if which == "map" else guided)[1, 0].flatten()[3] = value
    drawn = draw_batch(pictures, [map_], guided, OUTPUTS)
    assert drawn.finite.tolist() == [[True, True], [False, True]]
    whole = draw_batch(pictures[:1], [map_[:1]], guided[:1], OUTPUTS)
    for name, picture in whole.pictures.items():
        assert torch.equal(drawn.pictures[name][0], picture[0])


def test_only_what_is_asked_for_is_drawn() -> None:
    pictures, maps, guided = some(1, 1, (8, 8), ((4, 4),))
    guided[:] = float("nan")
    drawn = draw_batch(pictures, maps, guided, ["cam", "heatmap"])
    assert list(drawn.pictures) == ["heatmap", "cam"]
    assert drawn.finite.all()  # nobody looks at the gradient


def test_a_grey_picture_and_its_gradient_are_drawn_grey() -> None:
    pictures, maps, guided = some(2, 1, (8, 8), ((4, 4),))
    grey = draw_batch(pictures[..., :1], maps, guided[:, :, :1], OUTPUTS)
    three = draw_batch(
        pictures[..., :1].expand(-1, -1, -1, 3), maps, guided[:, :, :1].expand(-1, -1, 3, -1, -1), OUTPUTS
    )
    for name, picture in grey.pictures.items():
        assert torch.equal(picture, three.pictures[name])
    gb = grey.pictures["gb"]
    assert torch.equal(gb[..., 0], gb[..., 2])


def test_half_precision_maps_are_drawn_in_float32() -> None:
    pictures, maps, guided = some(1, 1, (16, 16), ((16, 16),))
    half = [each.bfloat16() for each in maps]
    drawn = draw_batch(pictures, half, guided, ["heatmap"])
    expected = draw_batch(pictures, [each.float() for each in half], guided, ["heatmap"])
    assert torch.equal(drawn.pictures["heatmap"], expected.pictures["heatmap"])
