"""Networks with random weights, each built once a run: a test has a copy, which it may change."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from worker.models.networks import RANDOM, Network, load


def network(name: str, *, size: tuple[int, int] | None = None, prepared: bool = False) -> Network:
    """What `worker.models.networks.load` gives for random weights, except that biases are zero."""
    return copy.deepcopy(_built(name, size, prepared))


# The largest take half a GB.
@functools.lru_cache(maxsize=6)
def _built(name: str, size: tuple[int, int] | None, prepared: bool) -> Network:
    with without_numbers():
        return load(name, RANDOM, size=size, prepared=prepared)


@contextmanager
def without_numbers() -> Iterator[None]:
    """What is built within has zeros for weights: for those who ask for names and shapes alone, or give their own."""
    names = ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor.detach().zero_())
        yield
