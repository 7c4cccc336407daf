"""Logits become probabilities and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from producer.jobs.model.activations import Activation
from producer.jobs.model.results import Prediction
from worker.engine.segmentation import RANKING, SHARES

#: How many predictions are told.
MOST: Final = 5


class _Class(Protocol):
    """One explained class of an image."""

    @property
    def logits(self) -> NDArray[np.floating[Any]]: ...
    @property
    def class_id(self) -> int: ...


_C = TypeVar("_C", bound=_Class)


def usual(classes: int) -> Activation:
    """Return what makes a probability where nobody says: of one logit, whose softmax is always 1, the sigmoid."""
    return "sigmoid" if classes == 1 else "softmax"


def top_predictions(
    logits: NDArray[np.floating[Any]],
    class_ids: Sequence[int],
    categories: Sequence[str] | None,
    activation: Activation | None = None,
    beside: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Turn logits into probabilities in float64.

    Where the class of each pixel is told, a class's probability is its share of the pixels.

    Args:
        logits: (K,), finite.
        class_ids: The classes that were explained.
        categories: K names, if there are any.
        activation: What makes the probabilities, None for the usual; with `none` scores are told in place of them.
        beside: What the reader of the output tells beside; of pixels, what `worker.engine.segmentation` tells.

    Returns:
        The explained classes, and the five most likely ones, most likely first.
    """
    is_score = activation == "none"
    if beside and SHARES in beside:
        values, is_score = beside[SHARES].astype(np.float64), False  # (K,)
        ranked = _largest(beside[RANKING])
        most_likely = [index for index in ranked if values[index] > 0] or ranked[:1]
    else:
        values = _values_of(logits, activation)  # (K,)
        most_likely = _largest(values)

    def prediction(index: int) -> Prediction:
        name, value = categories[index] if categories else None, round(float(values[index]), 6)
        if is_score:
            return Prediction(class_id=index, class_name=name, score=value)
        return Prediction(class_id=index, class_name=name, probability=value)

    return tuple(map(prediction, class_ids)), tuple(map(prediction, most_likely))


def above(explained: Sequence[_C], threshold: float, activation: Activation | None) -> tuple[list[_C], int]:
    """Choose of the most likely classes, all explained, those that are above a threshold; at least the first.

    Args:
        explained: The most likely classes of one image, the most likely first.
        threshold: What a probability must be above, or with `none` a logit.
        activation: As in `top_predictions`.

    Returns:
        Them, and how many of all classes of the network are above it.
    """
    values = _values_of(explained[0].logits, activation)  # (K,)
    kept = [each for rank, each in enumerate(explained) if rank == 0 or values[each.class_id] > threshold]
    return kept, int((values > threshold).sum())


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


def _largest(values: NDArray[np.floating[Any]]) -> list[int]:
    """The indices of the largest, of equal ones the first; sorting a thousand would cost ten times as much."""
    count = min(MOST, len(values))
    least = np.partition(values, -count)[-count]
    among = np.flatnonzero(values >= least)
    found: list[int] = among[np.argsort(-values[among], kind="stable")[:count]].tolist()
    return found


def _values_of(logits: NDArray[np.floating[Any]], activation: Activation | None) -> NDArray[np.float64]:
    """Return each class's probability, or with `none` its logit; (K,) float64."""
    exact = logits.astype(np.float64)
    activation = activation or usual(len(logits))
    if activation == "none":
        return exact
    if activation == "sigmoid":
        # As for training by binary cross-entropy; by tanh, which never overflows.
        return np.asarray(0.5 * (1 + np.tanh(exact / 2)))
    shifted = np.exp(exact - exact.max())
    return np.asarray(shifted / shifted.sum())
