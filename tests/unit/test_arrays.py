from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from producer.jobs.model.errors import ModelError
from worker.pictures.arrays import to_npz


def _read(data: bytes) -> dict[str, np.ndarray]:
    """The numbers as docs/geometry.md says that users read them."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    arrays["guided"] = arrays["guided"].astype("float32") * arrays.pop("guided_scale")
    return arrays


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.random((7, 9), np.float32), rng.standard_normal((32, 40, 3)).astype(np.float32)


def test_one_map_is_called_map() -> None:
    map, guided = _arrays()
    with np.load(io.BytesIO(to_npz([map], guided)), allow_pickle=False) as file:
        assert sorted(file.files) == ["guided", "guided_scale", "map"]
        assert np.array_equal(file["map"], map)
        assert {name: file[name].dtype.name for name in file.files} == {
            "map": "float32",
            "guided": "float16",
            "guided_scale": "float32",
        }
        assert file["guided_scale"].shape == ()
        assert np.abs(file["guided"]).max() == 1


def test_several_maps_are_numbered_and_keep_their_sizes() -> None:
    _, guided = _arrays()
    maps = [np.full((i + 1, i + 2), float(i)) for i in range(11)]
    arrays = _read(to_npz(maps, guided))
    assert set(arrays) == {"guided", *(f"map_{i}" for i in range(11))}
    assert all(np.array_equal(arrays[f"map_{i}"], map) for i, map in enumerate(maps))


@pytest.mark.parametrize("magnitude", [1e-9, 1e-37, 1.0, 1e6, 1e37])
def test_gradients_of_any_magnitude_come_back(magnitude: float) -> None:
    """float16 alone would make zeros of 1e-9 and infinities of 1e6."""
    map, guided = _arrays()
    guided = guided * np.float32(magnitude)
    arrays = _read(to_npz([map], guided))
    assert np.array_equal(arrays["map"], map)
    assert arrays["guided"].dtype == np.float32
    np.testing.assert_allclose(arrays["guided"], guided, rtol=2**-11, atol=3e-8 * float(np.abs(guided).max()))


def test_a_gradient_of_zeros_stays_zeros() -> None:
    guided = np.zeros((4, 4, 3), np.float32)
    assert np.array_equal(_read(to_npz([np.ones((2, 2))], guided))["guided"], guided)


def test_the_same_numbers_give_the_same_bytes() -> None:
    """However they lie in memory, whatever the time."""
    map, guided = _arrays()
    planes = np.ascontiguousarray(guided.transpose(2, 0, 1)).transpose(1, 2, 0)
    data = to_npz([map], guided)
    assert data == to_npz([np.asfortranarray(map)], planes)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_is_not_finite_in_float32_is_refused(bad: float) -> None:
    with pytest.raises(ModelError):
        to_npz([np.ones((2, 2))], np.full((2, 2, 3), bad))
    with pytest.raises(ModelError):
        to_npz([np.full((2, 2), bad)], np.ones((2, 2, 3)))


def test_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="no map"):
        to_npz([], np.ones((2, 2, 3)))
