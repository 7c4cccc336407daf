"""What makes a probability of a network's output."""

from __future__ import annotations

from typing import Literal, get_args

Activation = Literal["softmax", "sigmoid", "none"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
