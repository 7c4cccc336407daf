"""The numbers behind the pictures as one `.npz` file: maps and guided gradient, for users who draw their own.

Names in the file: `map` for one layer, `map_0`, `map_1`, … in the asked order for several, (h, w) float32 each, at its
layer's own resolution and not normalized; `guided`, (H, W, 3) float16, signed, in [-1, 1]; `guided_scale`, () float32,
the largest absolute value of the gradient: `guided * guided_scale` is the gradient.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.pictures.min_max import Floats, not_finite


def to_npz(maps: Sequence[Floats], guided: Floats) -> bytes:
    """Write maps and guided gradient as a compressed `.npz`; the same numbers give the same bytes.

    Args:
        maps: one (h, w) map a layer, after ReLU, not normalized; their sizes may differ.
        guided: (H, W, 3) signed guided gradient, of any magnitude that float32 holds.

    float16 alone would lose gradients below 6e-8 and above 65504, so it is divided by its largest absolute value.
    The error is at most 1 in 2048 of a value, or 3e-8 of the largest one.

    Raises:
        ModelError: a map or the gradient is not finite.
        ValueError: there is no map.
    """
    if not maps:
        raise ValueError("there is no map to write")
    names = ["map"] if len(maps) == 1 else [f"map_{i}" for i in range(len(maps))]
    arrays: dict[str, Any] = {name: _finite(map) for name, map in zip(names, maps, strict=True)}
    gradient = _finite(guided)
    scale = np.abs(gradient).max()
    arrays["guided"] = (gradient / (scale or np.float32(1))).astype(np.float16)
    arrays["guided_scale"] = np.asarray(scale, np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # dates every member 1980-01-01
    return file.getvalue()


def _finite(values: Floats) -> NDArray[np.float32]:
    """Return values as float32 in C order: another order in memory would give other bytes."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(array).all():
        raise not_finite()
    return array
