"""The engine `half`: models whose numbers all are in half precision, beside torch's choice of what is safe in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.device.batches import Explained, explain_classes
from worker.engine.explain import Explanations, explain_many, half_precision
from worker.models.networks import load


def _apart(one: Explanations, other: Explanations) -> list[float]:
    """How far maps, guided gradients and logits are apart: one minus their correlation."""

    def each(a: Tensor, b: Tensor) -> float:
        return 1 - float(np.corrcoef(a.flatten().double(), b.flatten().double())[0, 1])

    return [each(one.maps[0], other.maps[0]), each(one.guided, other.guided), each(one.logits, other.logits)]


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "mobilenet_v3_small", "regnet_y_400mf", "swin_t", "timm/coat_lite_tiny"]
)
def test_a_model_in_half_precision_is_as_near_to_float32_as_autocast(name: str) -> None:
    full, half = (load(name, "random", size=(96, 96), dtype=dtype) for dtype in (None, torch.bfloat16))
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    right = explain_many(full.model, full.views, x)
    autocast = explain_many(full.model, full.views, x, right.class_ids, autocast=torch.bfloat16)
    own = explain_many(half.model, half.views, x, right.class_ids)
    assert (half_precision(full.model), half_precision(half.model)) == (None, torch.bfloat16)
    assert {own.logits.dtype, own.maps[0].dtype, own.guided.dtype} == {torch.float32}
    assert own.guided_relus == right.guided_relus
    for far, theirs in zip(_apart(own, right), _apart(autocast, right), strict=True):
        assert 0 < far < 2 * theirs + 2e-3


def test_workers_explain_with_it_as_with_any_other() -> None:
    network = load("squeezenet1_1", "random", size=(64, 64), dtype=torch.bfloat16)
    batch = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    for answer in explain_classes(network, batch, [None] * 3, precision="bf16").answers():
        assert isinstance(answer, list)
        (one,) = answer
        assert isinstance(one, Explained)
        assert one.guided is not None
        assert {one.logits.dtype, one.map.dtype, one.guided.dtype} == {np.dtype(np.float32)}
