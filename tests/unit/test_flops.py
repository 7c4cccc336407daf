"""What an explanation costs, counted at the level of operators: in forward passes of the network, F."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from built import network as network_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from worker.engine.explain import View, as_they_are, explain_many
from worker.models.batchnorm import make_fast


class _Flops(TorchDispatchMode):
    """Adds up convolutions and matrix products; torch's own FlopCounterMode does not get on with autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _counted(run: Callable[[], object]) -> int:
    with _Flops() as flops:
        run()
    return flops.total


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "densenet121", "inception_v3"])
def test_each_class_costs_one_more_forward_pass(name: str) -> None:
    network = network_of(name)
    # Half the network's own size: what counts is a ratio.
    size = (network.size[0] // 2, network.size[1] // 2)
    inputs = torch.randn(1, 3, *size)
    model = make_fast(network.model, [network.layer], size).model
    with torch.no_grad():
        forward = _counted(lambda: model(inputs))
    assert forward > 1e9
    views = [View(network.layer, as_they_are)]
    for classes, limit in ((1, 2.1), (3, 4.2)):
        assert _counted(lambda: explain_many(model, views, inputs, top_k=classes)) <= limit * forward  # noqa: B023
