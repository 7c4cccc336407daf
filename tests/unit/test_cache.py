from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from worker.models.cache import ModelCache, model_bytes


@dataclass
class _Kept:
    model: nn.Module


@dataclass
class _Loader:
    """Makes a model of as many bytes as its key says, and remembers the order."""

    loads: list[int] = field(default_factory=list)

    def __call__(self, n_bytes: int) -> _Kept:
        self.loads.append(n_bytes)
        return _Kept(nn.Linear(n_bytes // 4, 1, bias=False))


def test_a_model_is_loaded_once_and_kept() -> None:
    load = _Loader()
    cache = ModelCache(100, load)
    assert cache.get(40) is cache.get(40)
    assert load.loads == [40]


def test_the_least_recently_used_goes_first() -> None:
    load = _Loader()
    cache = ModelCache(100, load)
    for key in (40, 48, 40, 44, 40, 48):  # 48 is out when 44 comes, 44 when 48 comes back
        cache.get(key)
    assert load.loads == [40, 48, 44, 48]


def test_what_is_kept_never_exceeds_the_limit() -> None:
    cache = ModelCache(100, _Loader())
    for key in (40, 60, 20, 80, 100, 4):
        cache.get(key)
        assert cache.bytes <= 100


def test_the_last_model_is_kept_whatever_its_size() -> None:
    load = _Loader()
    cache = ModelCache(100, load)
    for key in (40, 400, 400, 40):
        cache.get(key)
    assert load.loads == [40, 400, 40]
    assert cache.bytes == 40


def test_buffers_count_and_shared_weights_count_once() -> None:
    norm = nn.BatchNorm1d(2)
    assert model_bytes(norm) == 4 * 2 * 4 + 8
    assert model_bytes(nn.Sequential(norm, norm)) == model_bytes(norm)
    assert model_bytes(nn.Linear(3, 1, bias=False, dtype=torch.float64)) == 24


def test_many_who_ask_at_once_load_once() -> None:
    all_ask, load = threading.Barrier(8), _Loader()
    slow = threading.Event()

    def load_slowly(key: int) -> _Kept:
        slow.wait(0.2)
        return load(key)

    cache = ModelCache(100, load_slowly)

    def ask(_: int) -> _Kept:
        all_ask.wait()
        return cache.get(40)

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(ask, range(8)))
    assert load.loads == [40]
    assert all(one is kept[0] for one in kept)


def test_a_load_does_not_hold_up_what_is_kept() -> None:
    begun, go_on, load = threading.Event(), threading.Event(), _Loader()

    def load_when_told(key: int) -> _Kept:
        if key == 44:
            begun.set()
            go_on.wait(5)
        return load(key)

    cache = ModelCache(100, load_when_told)
    cache.get(40)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, 44)
        begun.wait(5)
        cache.get(40)
        assert not loading.done()
        go_on.set()


def test_a_failed_load_reaches_all_who_wait_and_is_tried_again() -> None:
    both_ask, tries = threading.Barrier(2), _Loader()

    def load(key: int) -> _Kept:
        kept = tries(key)
        if len(tries.loads) == 1:
            threading.Event().wait(0.2)
            raise ValueError("no such model")
        return kept

    cache = ModelCache(100, load)

    def ask(_: int) -> BaseException | None:
        both_ask.wait()
        try:
            cache.get(40)
        except ValueError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(ask, range(2)))
    assert errors[0] is errors[1] is not None
    assert cache.get(40).model is not None
    assert tries.loads == [40, 40]


# --- room -------------------------------------------------------------------------------------------------------------


def test_old_models_are_gone_before_a_new_one_takes_memory() -> None:
    there: list[int] = []

    def load(key: int) -> _Kept:
        cache.make_room(key, key)
        there.append(cache.bytes)
        return _Kept(nn.Linear(key // 4, 1, bias=False))

    cache: ModelCache[int, _Kept] = ModelCache(100, load)
    for key in (40, 60, 80, 20):
        cache.get(key)
    assert there == [0, 40, 0, 80]


def test_a_model_that_is_let_go_dies() -> None:
    cache = ModelCache(100, _Loader())
    first = weakref.ref(cache.get(80).model)
    assert first() is not None
    cache.get(60)
    assert first() is None


def test_models_loaded_at_the_same_time_count_on_each_others_room() -> None:
    both_load = threading.Barrier(2)

    def load(key: int) -> _Kept:
        cache.make_room(key, key)
        both_load.wait()
        return _Kept(nn.Linear(key // 4, 1, bias=False))

    cache: ModelCache[int, _Kept] = ModelCache(100, load)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cache.get, (80, 60)))
    assert cache.bytes in {60, 80}


def test_memory_is_given_back_when_models_were_let_go_and_only_then() -> None:
    given_back: list[int] = []
    cache: ModelCache[int, _Kept] = ModelCache(100, _Loader(), lambda: given_back.append(cache.bytes))
    for key in (40, 60, 40, 60):
        cache.get(key)
    assert given_back == []
    cache.get(80)
    assert given_back == [80]
    cache.clear()
    assert given_back == [80, 0]


def test_room_made_for_a_model_that_could_not_be_loaded_is_free_again() -> None:
    def load(key: int) -> _Kept:
        cache.make_room(key, key)
        if key == 96:
            raise ValueError("no such model")
        return _Kept(nn.Linear(key // 4, 1, bias=False))

    cache: ModelCache[int, _Kept] = ModelCache(100, load)
    with pytest.raises(ValueError, match="no such model"):
        cache.get(96)
    cache.get(40)
    cache.get(60)
    assert cache.bytes == 100
