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


def _nothing_to_do() -> None:
    pass


class ModelCache(Generic[K, V]):
    """Models by key, the least recently used out first; safe to share between threads.

    What is kept never exceeds `max_bytes`, except that the last model loaded is kept whatever its size: it is at work.
    One that was let go takes its memory until those who work with it are done.

    Args:
        max_bytes: What all models kept may take.
        load: Makes the model of a key. It may call `make_room` as soon as it knows how much memory that will take, so
            that old and new never lie on the device together where both do not fit.
        let_go: Called after models were let go.
    """

    def __init__(self, max_bytes: int, load: Callable[[K], V], let_go: Callable[[], None] = _nothing_to_do) -> None:
        self._max_bytes = max_bytes
        self._load, self._let_go = load, let_go
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()  # the most recently used last
        self._loading: dict[K, Future[V]] = {}
        #: What models that are being loaded will take.
        self._coming: dict[K, int] = {}

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
                self._coming.pop(key, None)
            mine.set_exception(error)
            raise
        size_bytes = model_bytes(value.model)
        with self._lock:
            gone = self._make_room(key, size_bytes)
            self._kept[key] = (value, self._coming.pop(key))
            del self._loading[key]
        mine.set_result(value)
        if gone:
            self._let_go()
        return value

    def __contains__(self, key: K) -> bool:
        """Whether the model of `key` is at hand now."""
        with self._lock:
            return key in self._kept

    def make_room(self, key: K, size_bytes: int) -> None:
        """Let models go until that of `key`, which is being loaded, fits; from now on it counts as there."""
        with self._lock:
            gone = self._make_room(key, size_bytes)
        # After the lock, as it takes its time, and others want models that are kept.
        if gone:
            self._let_go()

    def clear(self) -> None:
        """Let all models go."""
        with self._lock:
            self._kept.clear()
        self._let_go()

    @property
    def bytes(self) -> int:
        """How many bytes the kept models take."""
        with self._lock:
            return self._taken()

    def _make_room(self, key: K, size_bytes: int) -> int:
        """Return how many models were let go."""
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
