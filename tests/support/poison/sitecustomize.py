"""Faults inside the decoders, for real: Python reads this file in each process that has its folder on PYTHONPATH.

A picture that ends with one of the words below does to the process that decodes it what a broken decoder would do.
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


_WORDS: dict[bytes, Callable[[], None]] = {
    b"poison:segfault": _segfault,
    b"poison:killed": _killed,
    b"poison:hang": _hang,
    b"poison:hang-all": _hang_all,
}


#: Which function of which module decodes.
_DECODERS = {"cv2": "imdecode", "simplejpeg": "decode_jpeg"}


def _poison(module: ModuleType, name: str) -> None:
    decode = getattr(module, name)

    def poisoned(buffer: Any, *options: Any, **more: Any) -> Any:
        tail = bytes(buffer[-32:])
        for word, fault in _WORDS.items():
            if tail.endswith(word):
                fault()
        return decode(buffer, *options, **more)

    setattr(module, name, poisoned)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the others find a decoder's module, and is called when it is loaded."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            # cv2 puts another module in its own place while it is loaded.
            _poison(sys.modules[fullname], _DECODERS[fullname])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path[:0] = [_Finder(module) for module in _DECODERS]
