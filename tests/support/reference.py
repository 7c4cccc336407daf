"""Guided backpropagation a second time, on another way: a ReLU of our own in place of torch's, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it
from torch.overrides import TorchFunctionMode


class _GuidedReLU(torch.autograd.Function):
    """min(max(x, 0), high), whose gradient passes where 0 < x < high and where it is positive itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < high))
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return gradient * passes * (gradient > 0), None


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    out = _GuidedReLU.apply(x, float("inf"))
    return x.copy_(out) if inplace else out


def _relu_(x: Tensor) -> Tensor:
    return _relu(x, inplace=True)


def _relu6(x: Tensor, inplace: bool = False) -> Tensor:
    out = _GuidedReLU.apply(x, 6.0)
    return x.copy_(out) if inplace else out


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    # What nn.ReLU6 calls.
    return _relu6(x, inplace) if (min_val, max_val) == (0, 6) else F.hardtanh(x, min_val, max_val, inplace)


class _GuidedReLUs(TorchFunctionMode):
    """While open, each function of torch that is a ReLU is ours."""

    replaced: ClassVar[dict[Callable[..., Any], Callable[..., Tensor]]] = {
        F.relu: _relu,
        torch.relu: _relu,
        Tensor.relu: _relu,
        torch.relu_: _relu_,
        Tensor.relu_: _relu_,
        F.relu6: _relu6,
        F.hardtanh: _hardtanh,
    }

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.replaced.get(func, func)(*args, **(kwargs or {}))


def guided_gradient(model: nn.Module, inputs: Tensor, class_ids: Tensor) -> Tensor:
    """Signed guided gradient of each image's class, (N, 3, H, W)."""
    x = inputs.clone().requires_grad_()
    with _GuidedReLUs():
        logits = model(x)
    score = logits[torch.arange(len(x)), class_ids].sum()
    return torch.autograd.grad(score, x)[0]
