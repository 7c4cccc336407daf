"""torchvision and timm, imported without torch's compiler.

RoI align, which torchvision imports with everything else, has one question for the compiler: whether it supports a
device. Importing the compiler for it takes as long as importing torch itself, in each process, and no network that a
worker computes is compiled. So the compiler is imported when the question is asked.

timm asks, while it is imported, that some methods of one family (NaFlexViT) never be compiled. Nothing is, so that
they may stay as they are; only who compiles such a network of their own, with timm imported by us, misses that wish.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import torch

_COMPILER: Final = "torch._dynamo.utils"
#: Held while timm is imported: a second thread would keep our stand-in for what torch has, and put it back last.
_importing: Final = threading.Lock()


class _Later(ModuleType):
    """Stands where the compiler's module will be."""

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        from torch._dynamo import utils

        return bool(utils.is_compile_supported(device_type))


def _import() -> None:
    if _COMPILER in sys.modules:
        return  # somebody else has imported it
    sys.modules[_COMPILER] = _Later(_COMPILER)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass  # another release wants more of the compiler: it is imported below, compiler and all
    finally:
        del sys.modules[_COMPILER]


def import_timm() -> ModuleType:
    """Import timm. Raises ImportError: it is not there."""
    with _importing:
        if "timm" in sys.modules or "torch._dynamo" in sys.modules:
            return import_module("timm")  # nothing is saved any more
        disable = torch.compiler.disable
        torch.compiler.disable = _as_it_is
        try:
            return import_module("timm")
        finally:
            torch.compiler.disable = disable


def _as_it_is(fn: Any = None, recursive: Any = True, *, reason: Any = None) -> Any:
    """Stand where `torch.compiler.disable` is, as a decorator with arguments or without."""
    return _as_it_is if fn is None else fn


_import()
from torchvision import models  # noqa: E402

__all__ = ["import_timm", "models"]
