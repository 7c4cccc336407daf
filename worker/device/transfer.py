"""The way to the device and back: on CUDA through pinned memory, on streams of their own, while others compute.

Pinned buffers are used in turn by torch's own allocator for them: one is given out again when the copies that it took
part in have ended. `record_stream` says the same of the device's memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfers:
    """Brings pictures to one device, and what came of them back; used by the thread that computes.

    Args:
        device: Where to. A CPU's memory is the host's: nothing is copied then.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        #: Whether copies go on while the caller does something else.
        self.overlap = device.type == "cuda"
        self._there, self._back = (
            torch.cuda.Stream(device) if self.overlap else None  # type: ignore[no-untyped-call]
            for _ in range(2)
        )

    def to_device(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """N pictures of one (H, W, C) become (N, H, W, C) uint8 on the device; what is computed next waits for it."""
        batch = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.uint8, pin_memory=self.overlap)
        np.stack(pictures, out=batch.numpy())
        if self._there is None:
            return batch
        with torch.cuda.stream(self._there):
            there = batch.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._there)
        there.record_stream(computing)
        return there

    def to_host(self, tensors: Mapping[str, Tensor]) -> Copies:
        """Begin to bring tensors back, as soon as they are computed."""
        if self._back is None:
            return Copies({name: each.contiguous().numpy() for name, each in tensors.items()}, None)
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        here = {}
        with torch.cuda.stream(self._back):
            for name, each in tensors.items():
                there = each.contiguous()
                host = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
                host.copy_(there, non_blocking=True)
                each.record_stream(self._back)
                here[name] = host.numpy()
            ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            ended.record(self._back)
        return Copies(here, ended)


class Copies:
    """What comes back from a device.

    Args:
        arrays: Where it arrives, by name.
        ended: When all of it has; None: it is there.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], ended: torch.cuda.Event | None) -> None:
        self._arrays, self._ended = arrays, ended

    def wait(self) -> dict[str, NDArray[Any]]:
        """Wait for it; other threads go on.

        Raises:
            RuntimeError: The device failed meanwhile.
        """
        if self._ended is not None:
            self._ended.synchronize()
        return self._arrays
