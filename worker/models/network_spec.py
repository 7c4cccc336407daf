"""What a network of one's own reads and gives: `from gradcam_queue import NetworkSpec`. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class NetworkSpec:
    """A network that a function gives to workers, with what they must know of it; docs/own-model.md explains it."""

    #: A new module on each call; trained, or without weights where jobs give them by --weight-path. Workers put it into
    #: eval mode and onto their device.
    model: nn.Module
    #: Of its inputs in px: (height, width), or one number for both.
    size: int | tuple[int, int] = 224
    #: How many channels it reads: 3 (RGB) or 1 (grey). None: as many as its first convolution reads.
    channels: int | None = None
    #: What is subtracted from a pixel in [0, 1], and by what it is divided then: a number for each channel, or one for
    #: all. None: those of ImageNet for RGB; 0 and 1 for grey.
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    #: The name of each class, in the order of its outputs.
    categories: Sequence[str] | None = None
    #: The layer looked at where a job names none: `last-conv`, `last-features`, or dotted names of modules.
    layer: str = "last-conv"
    #: Where in its output the logits are: a key or an attribute, or a place in a tuple. None: the output itself, the
    #: first tensor of a tuple, or what is called `logits`.
    output: str | int | None = None
    #: What makes a probability of an output: `softmax`, `sigmoid` (each class by itself), or `none` for what is no
    #: probability, or is one already. None: sigmoid for one output, else softmax.
    activation: str | None = None
    #: What it tells: the class of a picture, or that of each pixel, by scores of (images, classes, height, width).
    task: Literal["classification", "segmentation"] = "classification"
    #: Of a segmentation: the class that is the predicted one only of an image where no other is; None: it has none.
    background: int | None = 0
