"""Pictures become what a network reads, on its device: bytes travel, numbers do not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def normalized(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pictures of the network's size into the network's input: (pictures / 255 - mean) / std.

    Args:
        pictures: (N, H, W, C) uint8, RGB or grey, on any device.
        mean: C numbers, of channels in [0, 1].
        std: C numbers, of channels in [0, 1].

    Returns:
        (N, C, H, W) float32 on the same device, channels last in memory: the order in which the bytes came.
    """
    means, stds = _constants(tuple(mean), tuple(std), pictures.shape[2], pictures.device)
    # Division, not a product with 1/255: so that 255 times the picture gives the bytes back exactly.
    return pictures.to(torch.float32).div_(255).sub_(means).div_(stds).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (C,) or, for a CPU, (W, C): a CPU is five times slower along an axis of three."""
    means, stds = (torch.tensor(each, dtype=torch.float32, device=device) for each in (mean, std))
    if device.type == "cpu":
        means, stds = (each.expand(width, len(mean)).contiguous() for each in (means, stds))
    return means, stds
