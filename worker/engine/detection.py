"""Detection: a network gives boxes with a class and a score each, and each box is explained by its own score.

A column of the scores is a box. Which boxes there are, and where, is held fixed: no gradient goes through the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from worker.engine.output import Scores, shown

#: Of each image its boxes (B, 4), x0 y0 x1 y1 in px of the input; their classes (B,); and how many there are. What
#: stands behind is filled up with zeros, up to the image of a batch that has the most.
BOXES, LABELS, COUNT = "boxes", "labels", "count"
_SCORES: Final = "scores"


@dataclass(frozen=True)
class Detection:
    """Reads what torchvision's detectors give: of each image a dict of boxes, labels and scores in [0, 1]."""

    #: At most so many boxes an image, those with the highest scores.
    max_boxes: int = 5
    #: What scores less is left out.
    min_score: float = 0.5

    def __call__(self, output: Any, batch: int) -> Scores:
        """Make scores of an output: (N, B), B the most boxes of an image, at least 1.

        Raises:
            ValueError: It holds no boxes; says what there is.
        """
        if not isinstance(output, Sequence) or len(output) != batch or not all(map(_is_detected, output)):
            what = shown(output[0]) if isinstance(output, Sequence) and output else shown(output)
            raise ValueError(f"the model gives {what} for an image, not a dict of boxes, labels and scores")
        kept = [self._kept(each[_SCORES]) for each in output]
        columns = max(1, *map(len, kept))

        def filled(name: str) -> Tensor:
            """(N, B, …) of the boxes that are kept."""
            rows = [each[name][those] for each, those in zip(output, kept, strict=True)]
            return torch.stack([pad(row, (*(0, 0) * (row.ndim - 1), 0, columns - len(row))) for row in rows])

        boxes, labels = (filled(name).detach() for name in (BOXES, LABELS))
        count = torch.tensor([len(each) for each in kept], device=boxes.device)  # (N,)
        beside = {BOXES: boxes, LABELS: labels, COUNT: count}
        return Scores(filled(_SCORES), beside=beside, varies=True)

    def words(self, _output: Any) -> str:
        """Say what of the output is read."""
        return "the score of each box"

    def _kept(self, scores: Tensor) -> Tensor:
        """The places of the boxes that are explained, that with the highest score first."""
        order = scores.detach().argsort(descending=True, stable=True)[: self.max_boxes]
        return order[scores.detach()[order] >= self.min_score]


def _is_detected(each: Any) -> bool:
    names = (BOXES, LABELS, _SCORES)
    return isinstance(each, Mapping) and all(isinstance(each.get(name), Tensor) for name in names)
