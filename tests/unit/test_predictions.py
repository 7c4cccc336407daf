from __future__ import annotations

import numpy as np
import pytest
import torch

from worker.models.predictions import top_predictions


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


@pytest.mark.parametrize("classes", [1, 3, 5, 6, 1000])
def test_of_equally_likely_classes_the_first_come_first(classes: int) -> None:
    logits = np.random.default_rng(classes).integers(0, 4, classes).astype(np.float32)
    _, top5 = top_predictions(logits, [0], None)
    assert [guess.class_id for guess in top5] == np.argsort(-logits, kind="stable")[:5].tolist()
