"""Faults inside libraries, caused for real: Python reads this file in each process that has its folder on PYTHONPATH.

A picture that ends with one of the words below does to the process that decodes it what a broken decoder would do, and
a weights file to the one that loads it what broken weights would.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any


def _segfault() -> None:
    ctypes.string_at(0)


def _killed() -> None:
    # As the kernel does when memory runs out.
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(3600)


def _hang_all() -> None:
    # Keeps the interpreter's lock: no thread of this process runs any more.
    ctypes.PyDLL(None).pause()


def _raise() -> None:
    raise LookupError("nobody thought of https://user:hidden@example.org/weights\nand more")


def _memory() -> None:
    # As the allocator of torch says it.
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1 TB")


_WORDS: dict[bytes, Callable[[], None]] = {
    b"poison:segfault": _segfault,
    b"poison:killed": _killed,
    b"poison:hang": _hang,
    b"poison:hang-all": _hang_all,
    b"poison:error": _raise,
    b"poison:memory": _memory,
}


def _act(tail: bytes) -> None:
    for word, fault in _WORDS.items():
        if tail.endswith(word):
            fault()


def _poison_networks(module: ModuleType) -> None:
    load = module.load

    def poisoned(name: str, weights: Any = None, *others: Any, **more: Any) -> Any:
        if hasattr(weights, "read_bytes"):
            _act(weights.read_bytes()[-32:])
        return load(name, weights, *others, **more)

    module.load = poisoned  # type: ignore[attr-defined]


def _poison_decoder(name: str, module: ModuleType) -> None:
    decode = getattr(module, name)

    def poisoned(buffer: Any, *options: Any, **more: Any) -> Any:
        _act(bytes(buffer[-32:]))
        return decode(buffer, *options, **more)

    setattr(module, name, poisoned)


_FAULTY: dict[str, Callable[[ModuleType], None]] = {
    "cv2": partial(_poison_decoder, "imdecode"),
    "simplejpeg": partial(_poison_decoder, "decode_jpeg"),
    "worker.models.networks": _poison_networks,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the others find these modules, and is called when they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        poison = _FAULTY.pop(fullname, None)
        if poison is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            # cv2 puts another module in its own place while it is loaded.
            poison(sys.modules[fullname])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
