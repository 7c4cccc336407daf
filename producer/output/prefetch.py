"""Work that goes on ahead of the one who reads its results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def prefetch_map(
    pool: Executor,
    function: Callable[[_In], _Out],
    items: Iterable[_In],
    *,
    depth: int | Callable[[], int],
    wait: Callable[[_In, Future[_Out]], _Out] = lambda _, future: future.result(),
) -> Generator[_Out, None, None]:
    """Apply a function to a stream in a pool's threads; results come in order, memory stays flat.

    Args:
        pool: Whose threads do the work.
        function: What to apply; its exception is raised where its result would have come.
        items: Read only as far as needed.
        depth: How many items may be under way or waiting to be read; asked again for each where it may change.
        wait: Gives the result of an item's future, or something in its place.

    Yields:
        The function's results, in the order of the items.
    """
    window: deque[tuple[_In, Future[_Out]]] = deque()
    try:
        for item in items:
            window.append((item, pool.submit(function, item)))
            while len(window) >= (depth() if callable(depth) else depth):
                yield wait(*window.popleft())
        while window:
            yield wait(*window.popleft())
    finally:
        for _, future in window:
            future.cancel()
