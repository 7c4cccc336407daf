"""What a float32 product means on a GPU: all of its 24 bits, or TF32, which reads the first 11 of each factor.

torch computes convolutions in TF32 on NVIDIA GPUs from Ampere on unless it is told otherwise, and matrix products not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch

#: The compute capability of the first GPUs with TF32: Ampere.
_AMPERE: Final = (8, 0)


class _Switch(NamedTuple):
    """One of torch's global switches, and its values without TF32 and with it."""

    owner: Any
    name: str
    without: Any
    allowed: Any


def has_tf32(device: torch.device) -> bool:
    """Whether the device computes in TF32 when it is asked to."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= _AMPERE


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """While open, convolutions and matrix products of float32 are computed as said; then as before.

    torch has these switches for the whole process, not for a thread: one thread computes at a time.
    """
    switches = _switches()
    before = [getattr(switch.owner, switch.name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch.owner, switch.name, switch.allowed if tf32 else switch.without)
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch.owner, switch.name, value)


def _switches(cudnn: Any = torch.backends.cudnn, matmul: Any = torch.backends.cuda.matmul) -> list[_Switch]:
    # torch 2.9 gave them new names, and raises where both kinds are used; before, there were only the older ones.
    if hasattr(cudnn, "conv"):
        return [_Switch(each, "fp32_precision", "ieee", "tf32") for each in (cudnn.conv, matmul)]
    return [_Switch(each, "allow_tf32", False, True) for each in (cudnn, matmul)]
