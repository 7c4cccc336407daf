"""The models used last stay in memory, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from itertools import chain
from typing import Generic, Protocol, TypeVar

from torch import nn


class HasModel(Protocol):
    """What the cache can keep; its size is that of its model's parameters and buffers."""

    @property
    def model(self) -> nn.Module:
        """Return the model that takes the memory."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=HasModel)


def _nothing_to_do() -> None:
    pass


class ModelCache(Generic[K, V]):
    """Models by key; the least recently used goes first. Safe to share between threads.

    The models kept never exceed `max_bytes`, except that the last one loaded stays whatever its size: it is in use.
    An evicted model takes its memory until nobody uses it any more.

    Args:
        max_bytes: The most that all models kept may take.
        load: Loads the model of a key. It may call `make_room` as soon as it knows how much memory the model will take:
            old and new then never share a device that does not hold both.
        evicted: Called after models were evicted.
    """

    def __init__(self, max_bytes: int, load: Callable[[K], V], evicted: Callable[[], None] = _nothing_to_do) -> None:
        self._max_bytes = max_bytes
        self._load, self._evicted = load, evicted
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()  # the most recently used last
        self._loading: dict[K, Future[V]] = {}
        #: Key → the bytes that a model which is loading will take.
        self._coming: dict[K, int] = {}

    def get(self, key: K, load: Callable[[K], V] | None = None) -> V:
        """Return the model of `key`; load it if it is not kept, once for all threads that ask at the same time.

        An error of `load` reaches all who wait for it; the next call tries again.

        Args:
            key: Of the model.
            load: What this caller loads it with; None for what the cache was made with.
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
            value = (load or self._load)(key)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
                self._coming.pop(key, None)
            mine.set_exception(error)
            raise
        size_bytes = model_bytes(value.model)
        with self._lock:
            evicted = self._make_room(key, size_bytes)
            self._kept[key] = (value, self._coming.pop(key))
            del self._loading[key]
        mine.set_result(value)
        if evicted:
            self._evicted()
        return value

    def __contains__(self, key: K) -> bool:
        """Return whether the model of `key` is kept now."""
        with self._lock:
            return key in self._kept

    def make_room(self, key: K, size_bytes: int) -> None:
        """Evict models until that of `key`, which is loading, fits; from now on it counts as kept."""
        with self._lock:
            evicted = self._make_room(key, size_bytes)
        # After the lock: it takes time, and other threads want models that are kept.
        if evicted:
            self._evicted()

    def clear(self) -> None:
        """Evict all models."""
        with self._lock:
            self._kept.clear()
        self._evicted()

    @property
    def bytes(self) -> int:
        """Return how many bytes the models kept take."""
        with self._lock:
            return self._taken()

    def _make_room(self, key: K, size_bytes: int) -> int:
        """Return how many models were evicted."""
        self._coming[key] = size_bytes
        before = len(self._kept)
        while self._kept and self._taken() + sum(self._coming.values()) > self._max_bytes:
            self._kept.popitem(last=False)
        return before - len(self._kept)

    def _taken(self) -> int:
        return sum(size for _, size in self._kept.values())


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones counted once."""
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))
