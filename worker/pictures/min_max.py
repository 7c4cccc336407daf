"""Numbers of a map or a gradient brought to [0, 1] by their own minimum and maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.errors import ModelError

Floats = NDArray[np.floating[Any]]


def min_max_scaled(values: Floats) -> tuple[NDArray[np.float32], bool]:
    """Return (values - min) / (max - min) over the whole array as float32, and whether it was flat: then all is 0.

    Args:
        values: Of any shape and range; not changed.

    Raises:
        ModelError: A value is not finite in float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(values, np.float32)
        low = values.min()
        span = values.max() - low
    # Minimum and maximum carry NaN and infinity along: the span tells of every value.
    if not np.isfinite(span):
        raise not_finite()
    if span == 0:
        return np.zeros_like(values), True
    scaled = values - low
    scaled /= span
    return scaled, False


def not_finite() -> ModelError:
    """Return what to say of numbers that no picture can be made of."""
    return ModelError("the network's gradients for this image are not finite")
