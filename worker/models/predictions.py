"""Logits become probabilities and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.results import Prediction
from worker.engine.segmentation import RANKING, SHARES

#: How many predictions are told.
MOST: Final = 5


def top_predictions(
    logits: NDArray[np.floating[Any]],
    class_ids: Sequence[int],
    categories: Sequence[str] | None,
    beside: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Turn logits into probabilities by softmax in float64; a single logit, whose softmax is always 1, by the sigmoid.

    Where the class of each pixel is told, a class's probability is its share of the pixels.

    Args:
        logits: (K,), finite.
        class_ids: The classes that were explained.
        categories: K names, if there are any.
        beside: What the reader of the output tells beside; of pixels, what `worker.engine.segmentation` tells.

    Returns:
        The explained classes, and the five most likely ones, most likely first.
    """
    if beside and SHARES in beside:
        probabilities = beside[SHARES].astype(np.float64)  # (K,)
        ranked = _largest(beside[RANKING])
        most_likely = [index for index in ranked if probabilities[index] > 0] or ranked[:1]
    else:
        probabilities = _probabilities(logits.astype(np.float64))  # (K,)
        most_likely = _largest(probabilities)

    def prediction(index: int) -> Prediction:
        name = categories[index] if categories else None
        return Prediction(class_id=index, class_name=name, probability=round(float(probabilities[index]), 6))

    return tuple(map(prediction, class_ids)), tuple(map(prediction, most_likely))


def top_boxes(
    scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], count: int, categories: Sequence[str] | None
) -> tuple[Prediction, ...]:
    """Return class and score of each of an image's boxes, in their order.

    Args:
        scores: (B,) in [0, 1].
        labels: (B,) class ids.
        count: How many of them are boxes; the others fill up.
        categories: Names of the classes, if there are any.
    """
    named = [None if categories is None else categories[label] for label in labels[:count]]
    return tuple(
        Prediction(class_id=int(label), class_name=name, probability=round(float(score), 6))
        for score, label, name in zip(scores[:count], labels[:count], named, strict=True)
    )


def _largest(probabilities: NDArray[np.floating[Any]]) -> list[int]:
    """The indices of the largest, of equal ones the first; sorting a thousand would cost ten times as much."""
    count = min(MOST, len(probabilities))
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
