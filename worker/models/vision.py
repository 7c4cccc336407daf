"""torchvision, imported without torch's compiler.

RoI align, which torchvision imports with everything else, has one question for the compiler: whether it supports a
device. Importing the compiler for it takes as long as importing torch itself, in each process, and no network that a
worker computes is compiled. So the compiler is imported when the question is asked.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_COMPILER: Final = "torch._dynamo.utils"


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


_import()
from torchvision import models  # noqa: E402

__all__ = ["models"]
