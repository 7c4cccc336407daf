"""Logits become probabilities and class names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.results import Prediction

_TOP: Final = 5


def top_predictions(
    logits: NDArray[np.floating[Any]], class_ids: Sequence[int], categories: Sequence[str] | None
) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Turn logits into probabilities by softmax in float64; a single logit, whose softmax is always 1, by the sigmoid.

    Args:
        logits: (K,), finite.
        class_ids: The classes that were explained.
        categories: K names, if there are any.

    Returns:
        The explained classes, and the five most likely ones, most likely first.
    """
    probabilities = _probabilities(logits.astype(np.float64))  # (K,)

    def prediction(index: int) -> Prediction:
        name = categories[index] if categories else None
        return Prediction(class_id=index, class_name=name, probability=round(float(probabilities[index]), 6))

    return tuple(map(prediction, class_ids)), tuple(map(prediction, _largest(probabilities)))


def _largest(probabilities: NDArray[np.float64]) -> list[int]:
    """The indices of the largest, of equal ones the first; sorting a thousand would cost ten times as much."""
    count = min(_TOP, len(probabilities))
    least = np.partition(probabilities, -count)[-count]
    among = np.flatnonzero(probabilities >= least)
    found: list[int] = among[np.argsort(-probabilities[among], kind="stable")[:count]].tolist()
    return found


def _probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(logits) == 1:
        # As for training by binary cross-entropy; by tanh, which never overflows.
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum())
