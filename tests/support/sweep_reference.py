"""Maps and guided gradients of any network a second time, on another way: nothing prepared, nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import reference
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Expected:
    #: (N, h, w) for each layer, (N, 3, H, W), and how many ReLUs stand between the input and the answer.
    maps: list[Tensor]
    guided: Tensor
    relus: int


class _CountedReLUs(reference._GuidedReLUs):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        bounds = [*args[1:3], *((kwargs or {}).get(name) for name in ("min_val", "max_val"))]
        is_relu = func in self.replaced and (func is not nn.functional.hardtanh or bounds[:2] == [0, 6])
        # A ReLU of what does not depend on the picture, as in Swin v2's position bias, guides nothing.
        self.count += is_relu and result.requires_grad
        return result


def explain(model: nn.Module, layers: list[str], inputs: Tensor, class_ids: Tensor) -> Expected:
    """Explain square inputs (N, 3, H, H) with a forward and a backward pass for the maps and another for the rest."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()  # a ReLU in place behind the layer must not change what is kept

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(layers)]
    x = inputs.clone().requires_grad_()
    score = model(x).gather(1, class_ids[:, None]).sum()
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(score, list(outputs.values()))
    maps = {name: _map(a, g) for (name, a), g in zip(outputs.items(), gradients, strict=True)}

    x = inputs.clone().requires_grad_()
    with _CountedReLUs() as counted:
        score = model(x).gather(1, class_ids[:, None]).sum()
    (guided,) = torch.autograd.grad(score, x)
    return Expected([maps[name] for name in layers], guided, counted.count)


def _map(activation: Tensor, gradient: Tensor) -> Tensor:
    a, g = _places_by_channels(activation.detach()), _places_by_channels(gradient)  # (N, places, C)
    side = math.isqrt(a.shape[1])
    return torch.einsum("npc,nc->np", a, g.mean(dim=1)).clamp(min=0).unflatten(1, (side, side))  # (N, h, w)


def _places_by_channels(output: Tensor) -> Tensor:
    """(N, places, C): of square pictures the two equal sides are the places, and tokens before a square are others."""
    if output.ndim == 3:
        places = math.isqrt(output.shape[1]) ** 2
        return output[:, output.shape[1] - places :]
    _, first, second, third = output.shape
    assert (second == third) != (first == second), output.shape
    return output.flatten(2).transpose(1, 2) if second == third else output.flatten(1, 2)
