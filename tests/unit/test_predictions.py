from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from worker.models.predictions import above, top_predictions


def test_probabilities_are_those_of_a_softmax_in_order() -> None:
    logits = np.random.default_rng(0).standard_normal(10).astype(np.float32) * 30
    (chosen,), top5 = top_predictions(logits, [3], None)
    expected = torch.tensor(logits, dtype=torch.float64).softmax(0)
    assert chosen.probability == pytest.approx(float(expected[3]), abs=1e-6)
    assert [guess.class_id for guess in top5] == expected.topk(5).indices.tolist()
    assert chosen.class_name is None


def test_huge_logits_overflow_nothing_and_few_classes_are_enough() -> None:
    (chosen,), top5 = top_predictions(np.array([3e38, 0.0], np.float32), [0], ["yes", "no"])
    assert (chosen.class_name, chosen.probability) == ("yes", 1.0)
    assert len(top5) == 2


@pytest.mark.parametrize("logit", [-8.0, 0.0, 1.5, -3e38, 3e38])
def test_the_probability_of_a_single_logit_is_its_sigmoid(logit: float) -> None:
    """A softmax over one number is 1, whatever the number."""
    (chosen,), top5 = top_predictions(np.array([logit], np.float32), [0], ["ill"])
    assert chosen.probability == pytest.approx(float(torch.tensor(logit, dtype=torch.float64).sigmoid()), abs=1e-6)
    assert (chosen.class_name, top5) == ("ill", (chosen,))


LOGITS = np.array([2.0, -1.0, 0.5, 0.25, -3e38], np.float32)


def test_by_the_sigmoid_each_class_has_a_probability_of_its_own() -> None:
    chosen, top5 = top_predictions(LOGITS, [2, 4], None, "sigmoid")
    assert [each.probability for each in chosen] == [pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-6), 0.0]
    assert [each.class_id for each in top5] == [0, 2, 3, 1, 4]
    assert all(each.score is None for each in top5)


def test_without_an_activation_the_output_itself_is_told_and_no_probability() -> None:
    (chosen,), top5 = top_predictions(LOGITS, [1], ["a", "b", "c", "d", "e"], "none")
    assert (chosen.class_name, chosen.probability, chosen.score) == ("b", None, -1.0)
    assert [each.score for each in top5[:2]] == [2.0, 0.5]
    (age,), _ = top_predictions(np.array([63.25], np.float32), [0], ["age"], "none")
    assert (age.score, age.probability) == (63.25, None)


@dataclass
class Asked:
    class_id: int
    logits: np.ndarray = field(default_factory=lambda: LOGITS)


@pytest.mark.parametrize(
    ("threshold", "activation", "classes", "count"),
    [
        (0.5, "sigmoid", [0, 2], 3),  # two were explained, a third is above as well
        (0.6, "sigmoid", [0, 2], 2),
        (0.63, "sigmoid", [0], 1),
        (0.99, "sigmoid", [0], 0),  # the most likely is explained all the same
        (0.5, None, [0], 1),
        (0.15, "softmax", [0, 2], 2),
        (0.25, "none", [0, 2], 2),  # above, not at
        (-5.0, "none", [0, 2], 4),
    ],
)
def test_classes_above_a_threshold_are_kept_and_counted(
    threshold: float, activation: Any, classes: list[int], count: int
) -> None:
    kept, found = above([Asked(0), Asked(2)], threshold, activation)
    assert ([each.class_id for each in kept], found) == (classes, count)


@pytest.mark.parametrize("classes", [1, 3, 5, 6, 1000])
def test_of_equally_likely_classes_the_first_come_first(classes: int) -> None:
    logits = np.random.default_rng(classes).integers(0, 4, classes).astype(np.float32)
    _, top5 = top_predictions(logits, [0], None)
    assert [guess.class_id for guess in top5] == np.argsort(-logits, kind="stable")[:5].tolist()
