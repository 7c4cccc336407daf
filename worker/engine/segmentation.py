"""Segmentation: a network tells the class of each pixel, and a class is explained by the pixels where it is predicted.

As in the tutorial of pytorch-grad-cam for semantic segmentation: the score of a class is the sum of its logits over a
mask, which is held fixed: no gradient goes through the choice of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from worker.engine.output import Scores, picked, shown

#: How torchvision names the scores of pixels; registered networks may, too.
OUT: Final = "out"
#: The class of each pixel, the share of pixels of each class, and which class is the most likely, in `Scores.beside`.
PREDICTED, SHARES, RANKING = "predicted", "shares", "ranking"
#: Number of axes of a batch of scores of pixels (N, K, h, w).
_NKHW: Final = 4


@dataclass(frozen=True)
class Segmentation:
    """Reads the scores of pixels (N, K, h, w), before softmax, and makes one score a class of them.

    The score of class k is the sum of its logits over the pixels where it is predicted, or where `mask_class` is. A
    class is predicted where its logit is the largest; a single class where its logit is above 0. A class without any
    pixels has the score 0, and its map is flat.
    """

    #: The key, attribute or place of the scores of pixels in what the model gives; None for the usual one.
    entry: str | int | None = None
    #: The class that is the most likely one of an image only if no other is predicted anywhere; None: there is none.
    background: int | None = 0
    #: The class over whose pixels all classes are summed; None: each over its own.
    mask_class: int | None = None

    def __call__(self, output: Any, batch: int) -> Scores:
        """Make scores of an output.

        Raises:
            ValueError: It holds no scores of pixels; says what there is, and what to do.
        """
        maps = self._maps(output, batch)  # (N, K, h, w)
        count = maps.shape[1]
        predicted = maps.detach().argmax(dim=1)  # (N, h, w)
        if count == 1:
            predicted = torch.where(maps.detach()[:, 0] > 0, 0, -1)  # (N, h, w)
        classes = torch.arange(count, device=maps.device)[:, None, None]
        masks = predicted[:, None] == classes  # (N, K, h, w)
        pixels = masks.sum(dim=(2, 3)).float()  # (N, K)
        summed = masks if self.mask_class is None else (predicted == self.mask_class)[:, None]
        scores = (maps * summed).sum(dim=(2, 3))  # (N, K)
        ranking = self._ranking(pixels)
        shares = pixels / predicted[0].numel()
        return Scores(scores, ranking, {PREDICTED: predicted.int(), SHARES: shares, RANKING: ranking})

    def words(self, output: Any) -> str:
        """Say what of the output is read."""
        entry = self._entry(output)
        return "sums over pixels" + ("" if entry is None else f" of {entry!r}")

    def _maps(self, output: Any, batch: int) -> Tensor:
        maps = picked(output, self._entry(output))
        if isinstance(maps, Tensor) and maps.ndim == _NKHW and len(maps) == batch and maps.numel():
            # A sum over a hundred thousand pixels leaves the range of half precision.
            return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
        raise ValueError(
            f"the model gives {shown(maps)} for {batch} images, not one tensor of (N, K, h, w) scores of pixels; name "
            "it by NetworkSpec(output=…)"
        )

    def _entry(self, output: Any) -> str | int | None:
        usual = OUT if isinstance(output, Mapping) and OUT in output else None
        return usual if self.entry is None else self.entry

    def _ranking(self, pixels: Tensor) -> Tensor:
        """(N, K): the more pixels, the more likely; the background comes behind all classes that have some."""
        if self.background is None or not 0 <= self.background < pixels.shape[1] or pixels.shape[1] == 1:
            return pixels
        ranking = pixels.clone()
        ranking[:, self.background] = (pixels[:, self.background] > 0) / 2
        return ranking
