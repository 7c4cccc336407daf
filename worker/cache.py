"""Keep the models used last in memory, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from itertools import chain
from typing import Generic, Protocol, TypeVar

from torch import nn


class HasModel(Protocol):
    """What can be kept: its size is that of its model's parameters and buffers."""

    @property
    def model(self) -> nn.Module:
        """The model that takes the memory."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=HasModel)


class ModelCache(Generic[K, V]):
    """Models by key, the least recently used out first; safe to share between threads.

    What is kept never exceeds `max_bytes`, except that the last model loaded is kept whatever its size: it is at work.
    The size of a model is known once it is loaded, so old ones make room for it only then.
    """

    def __init__(self, max_bytes: int, load: Callable[[K], V]) -> None:
        self._max_bytes = max_bytes
        self._load = load
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()  # the most recently used last
        self._loading: dict[K, Future[V]] = {}

    def get(self, key: K) -> V:
        """Return the model of `key`; load it if it is not kept, once however many threads ask at the same time.

        What `load` raises reaches all who wait for it, and is not remembered.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            loading = self._loading.get(key)
            if loading is None:
                mine = self._loading[key] = Future()
        if loading is not None:
            return loading.result()
        try:
            value = self._load(key)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(key, value)
            del self._loading[key]
        mine.set_result(value)
        return value

    @property
    def bytes(self) -> int:
        """How many bytes the kept models take."""
        with self._lock:
            return sum(size for _, size in self._kept.values())

    def _keep(self, key: K, value: V) -> None:
        size_bytes = model_bytes(value.model)
        room_bytes = self._max_bytes - size_bytes
        while self._kept and sum(size for _, size in self._kept.values()) > room_bytes:
            self._kept.popitem(last=False)
        self._kept[key] = (value, size_bytes)


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones counted once."""
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
