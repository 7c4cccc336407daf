"""Ask a network where it looked: one forward pass gives Grad-CAM maps and guided gradients for a batch.

Grad-CAM is arXiv:1610.02391, guided backpropagation arXiv:1412.6806. Guidance hooks the nodes of the autograd graph,
not modules: modules never see `F.relu` or a ReLU whose input has a second reader, the graph does. Nothing of the model
is touched: no module is changed, no `.grad` is written, every hook is gone afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from producer.jobs.errors import WorkerError

#: Number of axes of a batch of maps (N, C, h, w) and of a batch of logits (N, K).
_NCHW, _NK = 4, 2
#: Nodes behind which ReLUs cannot be seen, so that guidance would silently be the plain gradient.
_OPAQUE_NODES = ("CompiledFunctionBackward", "CheckpointFunctionBackward", "DifferentiableGraphBackward")


class OutOfMemory(WorkerError):
    """The batch does not fit into the memory of the device."""


@dataclass(frozen=True)
class Explanation:
    """What the network said about a batch of N images and why; all tensors are detached, on the model's device."""

    #: (N, K), before softmax; may hold values that are not finite, which is the caller's to check row by row.
    logits: Tensor
    #: (N,) int64, the class that drives map and guided gradient of each image.
    class_ids: Tensor
    #: (N, h, w), Grad-CAM after ReLU, >= 0, neither normalised nor resized.
    maps: Tensor
    #: (N, 3, H, W), signed guided gradient of the class's logit with respect to the normalised input.
    guided: Tensor
    #: How many ReLUs were guided; 0 means that `guided` is the plain gradient.
    guided_relus: int


def explain(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    class_ids: Sequence[int | None] | Tensor | None = None,
) -> Explanation:
    """Explain a batch with one forward and two backward passes (the first only down to `layer`).

    Args:
        model: gives (N, K) logits; in eval mode, so that images do not influence each other; not compiled or scripted.
        layer: the module of `model` whose (N, C, h, w) output is looked at; runs once in a forward pass.
        inputs: (N, 3, H, W) floating point, normalised for the network, on the model's device; not changed.
        class_ids: (N,) integers; None, or None or -1 in place of one, means the class predicted.

    Unlike the paper's figures the maps are not normalised. Where a ReLU follows `layer` in place, the maps are of the
    output before it.

    Raises:
        ValueError: the model, layer, inputs or class ids cannot be used so; the caller's mistake.
        OutOfMemory: the device's memory does not suffice; a smaller batch may fit.
    """
    _refuse_unusable(model, inputs)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _explain(model, layer, inputs, class_ids)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
    # Raised outside the except block: the caught error's traceback would keep the tensors alive that did not fit.
    raise OutOfMemory(f"a batch of {len(inputs)} images does not fit into the memory of {inputs.device}")


def _explain(
    model: nn.Module, layer: nn.Module, inputs: Tensor, class_ids: Sequence[int | None] | Tensor | None
) -> Explanation:
    # An inference tensor can never take part in autograd, only its copy can.
    x = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()  # (N, 3, H, W)
    with _output_of(layer) as kept:
        logits = model(x)  # (N, K)
    activation = _checked(kept, logits, len(x))  # (N, C, h, w)

    classes = _classes(class_ids, logits.detach())  # (N,)
    # By gather: logits[:, c] would mix the images. Their sum is safe as images are independent in eval mode.
    score = logits.gather(1, classes[:, None]).sum()  # ()

    # The map comes first: armed hooks would guide this gradient too.
    (gradient,) = torch.autograd.grad(score, activation, retain_graph=True, allow_unused=True)  # (N, C, h, w)
    if gradient is None:
        raise ValueError("the logits do not depend on the output of the chosen layer")
    with _guided_relus(score) as count:
        (guided,) = torch.autograd.grad(score, x)  # (N, 3, H, W)
    return Explanation(logits.detach(), classes, _grad_cam(activation.detach(), gradient), guided, count)


def _grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weigh the channels by their mean gradient and sum them: equations 1 and 2 of arXiv:1610.02391."""
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # eq. 1: (N, C, 1, 1)
    return (weights * activation).sum(dim=1).relu_()  # eq. 2: (N, h, w)


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Any]]:
    """Keep what the layer puts out; a copy goes on, so an in-place ReLU behind it cannot overwrite what is kept."""
    kept: list[Any] = []

    def keep(_module: nn.Module, _inputs: object, output: Any) -> Any:
        kept.append(output)
        return output.clone() if isinstance(output, Tensor) else output

    handle = layer.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def _guided_relus(score: Tensor) -> Iterator[int]:
    """While open, each ReLU behind `score` passes back only what is positive; yields how many ReLUs there are.

    A ReLU's own gradient already is g * 1[input > 0] (ReLU6: 0 < input < 6), so what is left of arXiv:1412.6806 is
    1[g > 0]. Leaky ReLU, SiLU and GELU are left alone: guided backpropagation is not defined for them.
    """
    handles = [node.register_hook(_only_positive) for node in _relu_nodes(score)]
    try:
        yield len(handles)
    finally:
        for handle in handles:
            handle.remove()


def _only_positive(grad_inputs: Sequence[Tensor | None], _grad_outputs: object) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else g.clamp(min=0) for g in grad_inputs)


def _relu_nodes(score: Tensor) -> list[Node]:
    """Walk the graph behind `score` once, without recursion: deep networks have deeper graphs than Python's stack."""
    found = []
    seen: set[Node] = set()
    todo = [score.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith(_OPAQUE_NODES):
            raise ValueError(f"the model hides its ReLUs from guided backpropagation ({node.name()})")
        if _is_relu(node):
            found.append(node)
        todo.extend(following for following, _ in node.next_functions)
    return found


def _is_relu(node: Any) -> bool:
    name: str = node.name()
    return name == "ReluBackward0" or (name == "HardtanhBackward0" and bool(node._saved_min_val == 0))


def _refuse_unusable(model: nn.Module, inputs: Tensor) -> None:
    if inputs.ndim != _NCHW or not inputs.is_floating_point() or len(inputs) == 0:
        raise ValueError(f"inputs must be (N, 3, H, W) floating point, not {tuple(inputs.shape)} {inputs.dtype}")
    for module in model.modules():
        if module.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        # A model compiled in place keeps its class and shows it by this attribute only.
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError("a compiled or scripted model hides its ReLUs; hand in the model it was made from")


def _checked(kept: list[Any], logits: Any, batch: int) -> Tensor:
    """The layer's (N, C, h, w) output, if it and the logits are what Grad-CAM is defined for."""
    if not isinstance(logits, Tensor) or logits.ndim != _NK or len(logits) != batch:
        raise ValueError(f"the model gives {_shape(logits)} for {batch} images, not one tensor of (N, K) logits")
    if len(kept) != 1:
        raise ValueError(f"the chosen layer ran {len(kept)} times in one forward pass, not once")
    (activation,) = kept
    if not isinstance(activation, Tensor) or activation.ndim != _NCHW or len(activation) != batch:
        raise ValueError(f"the chosen layer gives {_shape(activation)} for {batch} images, not (N, C, h, w)")
    return activation


def _shape(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _classes(class_ids: Sequence[int | None] | Tensor | None, logits: Tensor) -> Tensor:
    """(N,) int64: the classes asked for, the predicted one where none is."""
    predicted = logits.argmax(dim=1)  # (N,)
    if class_ids is None:
        return predicted
    if not isinstance(class_ids, Tensor):
        class_ids = torch.tensor([-1 if c is None else c for c in class_ids], dtype=torch.int64)
    if class_ids.shape != predicted.shape or class_ids.is_floating_point():
        raise ValueError(f"class_ids must be {len(predicted)} integers, one an image")
    if class_ids.min() < -1 or class_ids.max() >= logits.shape[1]:
        raise ValueError(f"class_ids must be in 0..{logits.shape[1] - 1}, not {class_ids.tolist()}")
    asked = class_ids.to(predicted)
    return torch.where(asked < 0, predicted, asked)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no error class of its own.
    return isinstance(error, torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
