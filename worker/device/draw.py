"""The pictures of a batch, drawn where its numbers are: `worker.pictures.render` for many images at once, in torch.

On a GPU this saves the host a millisecond an image and the way of 600 kB of floats. A CPU draws with OpenCV, image by
image (`worker/pictures/render.py`), in a fifth of the time; docs/scaling.md has the figures.

Both give the same bytes where a map is not resized. Where it is, the two round other last bits, and a level of the
heatmap may be one off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from worker.pictures.render import JET, OUTPUTS


@dataclass(frozen=True)
class Drawn:
    """Pictures of N images and K classes, on the device where they were drawn."""

    #: Output → (N, K, H, W, 3) uint8 RGB.
    pictures: dict[str, Tensor]
    #: (N, K) bool: every map is the same number everywhere.
    flat: Tensor
    #: (N, K) bool: False where map or guided gradient holds what is not a number, and the pictures mean nothing.
    finite: Tensor


def draw_batch(pictures: Tensor, maps: Sequence[Tensor], guided: Tensor, outputs: Collection[str]) -> Drawn:
    """Draw the pictures of a batch that `outputs` names, as `worker.pictures.render.draw` does for one image.

    Args:
        pictures: (N, H, W, 3) uint8 RGB, or (N, H, W, 1) grey, as resized for the network.
        maps: one (N, K, h, w) a layer, >= 0, not normalized; several are averaged as
            `worker.pictures.render.heat_of` does.
        guided: (N, K, C, H, W), signed guided gradient.
        outputs: which of `OUTPUTS` to draw.
    """
    n, k = guided.shape[:2]
    shape = (n, k, pictures.shape[1], pictures.shape[2], 3)
    heat, flat, finite = _heat(maps, shape[2:4])  # (N*K, H, W), two of (N*K,)
    found: dict[str, Tensor] = {}
    heatmap = _jet(heat.device)[(heat * 255).to(torch.uint8).int()]  # (N*K, H, W, 3) uint8, levels truncated
    if "heatmap" in outputs:
        found["heatmap"] = heatmap
    if "cam" in outputs:
        base = pictures[:, None].expand(-1, k, -1, -1, 3).reshape(heatmap.shape)
        found["cam"], _ = _stretched(base.float() + heatmap)
    if "gb" in outputs or "cam_gb" in outputs:
        gradient = guided.float().permute(0, 1, 3, 4, 2).expand(shape).reshape(heatmap.shape)  # (N*K, H, W, 3)
        found["gb"], fine = _stretched(gradient)
        finite = finite & fine
        if "cam_gb" in outputs:
            found["cam_gb"], fine = _stretched(gradient * heat[..., None])
            finite = finite & fine
    return Drawn(
        {name: found[name].reshape(shape) for name in OUTPUTS if name in outputs},
        flat.reshape(n, k),
        finite.reshape(n, k),
    )


def _heat(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(N*K, H, W) float32 in [0, 1]; whether all maps are flat, and whether all are finite, (N*K,) bool each."""
    heats, flats, finites = [], [], []
    for each in maps:
        small = each.float().flatten(0, 1)  # (N*K, h, w)
        scaled, span = _min_max_scaled(small)
        resized = functional.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)
        heats.append(resized[:, 0])
        flats.append(span == 0)
        finites.append(span.isfinite())
    heat = heats[0]
    if len(heats) > 1:
        # Again, as pytorch-grad-cam does with an average.
        heat, _ = _min_max_scaled(torch.stack(heats).sum(0) / len(heats))
    return heat, torch.stack(flats).all(0), torch.stack(finites).all(0)


def _min_max_scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """(M, …) each brought to [0, 1] by its own range, zeros where it is constant, and the (M,) ranges."""
    flat = values.flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    span = high - low  # carries NaN and infinity along
    scaled = (flat - low).div_(torch.where(span == 0, 1, span))
    return scaled.view(values.shape), span[:, 0]


def _stretched(values: Tensor) -> tuple[Tensor, Tensor]:
    """(M, H, W, 3), each stretched over its own range to 0..255, truncated; and which are finite, (M,) bool."""
    scaled, span = _min_max_scaled(values)
    return scaled.mul_(255).to(torch.uint8), span.isfinite()


@lru_cache(maxsize=4)
def _jet(device: torch.device) -> Tensor:
    return torch.from_numpy(JET[:, 0]).to(device)  # (256, 3) uint8 RGB
