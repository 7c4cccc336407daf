"""Ask a network where it looked: Grad-CAM maps and guided gradients of a batch from one forward pass.

Grad-CAM is arXiv:1610.02391, guided backpropagation arXiv:1412.6806. `methods.py` makes the maps,
`guided_relu.py` guides the gradient. The model stays as it was: no module changes, nobody writes `.grad`, and every
hook is gone afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from producer.jobs.model.errors import WorkerError
from worker.engine import guided_relu
from worker.engine.methods import GRADCAM, METHODS
from worker.engine.output import Entry, scores_of

#: (N,) or (N, K) class ids; None or -1 in place of one means the most likely.
ClassIds = Sequence[int | None] | Sequence[Sequence[int | None]] | Tensor | None

#: Number of axes of a batch of maps (N, C, h, w) and of a batch of logits (N, K).
_NCHW, _NK = 4, 2
_HALVES = (torch.float16, torch.bfloat16)


class OutOfMemory(WorkerError):
    """The batch does not fit into the memory of the device."""


@dataclass(frozen=True)
class View:
    """A module to look at, and how its output is read as maps."""

    #: Runs once in a forward pass of the model.
    module: nn.Module
    #: Turns the module's output, and its gradient, into (N, C, h, w) by moving values alone. Tokens become a grid, last
    #: channels move to second place, and what is no place in the picture (a class token) is left out.
    to_maps: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Explanations:
    """What the network said about a batch of N images and why K classes; all tensors are detached, on its device."""

    #: (N, number of classes), before softmax, float32 or float64; not always finite, as in `Explanation`.
    logits: Tensor
    #: (N, K) int64, the classes explained.
    class_ids: Tensor
    #: One (N, K, h, w) a view, after ReLU, neither normalized nor resized, float32 or float64.
    maps: list[Tensor]
    #: (N, K, C, H, W), signed guided gradient of each class's logit with respect to the normalized input.
    guided: Tensor
    #: How many ReLUs were guided; 0 means that `guided` is the plain gradient.
    guided_relus: int
    #: What the reader of the output tells beside, as in `worker.engine.output.Scores`.
    beside: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """What the network said about a batch of N images and why; all tensors are detached, on the model's device."""

    #: (N, K), before softmax; may hold values that are not finite; the caller checks row by row.
    logits: Tensor
    #: (N,) int64, the class that drives map and guided gradient of each image.
    class_ids: Tensor
    #: (N, h, w), Grad-CAM after ReLU, >= 0, neither normalized nor resized.
    maps: Tensor
    #: (N, C, H, W), signed guided gradient of the class's logit with respect to the normalized input.
    guided: Tensor
    #: How many ReLUs were guided; 0 means that `guided` is the plain gradient.
    guided_relus: int


def explain(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    class_ids: Sequence[int | None] | Tensor | None = None,
    *,
    output: Entry = None,
    down: bool = False,
) -> Explanation:
    """Explain a batch with one forward and two backward passes (the first only down to `layer`).

    Args:
        model: gives (N, K) logits, or what `worker.engine.output` finds them in; in eval mode, so that images do not
            influence each other; not compiled or scripted.
        layer: the module of `model` whose (N, C, h, w) output is looked at; runs once in a forward pass.
        inputs: (N, C, H, W) floating point, normalized for the network, on the model's device; not changed. C is the
            number of channels that the model reads, mostly 3.
        class_ids: (N,) integers; None, or None or -1 in place of one, means the class predicted.
        output: the key, attribute or place of the logits in what the model gives, where it is not the usual one; or
            what reads them.
        down: explain minus the class's logit: what speaks against the class.

    Unlike the paper's figures the maps are not normalized. Where a ReLU follows `layer` in place, the maps are of the
    output before it.

    Raises:
        ValueError: the model, layer, inputs or class ids cannot be used so; the caller's mistake.
        OutOfMemory: the device's memory does not suffice; a smaller batch may fit.
    """
    answer = explain_many(model, [View(layer, as_they_are)], inputs, class_ids, output=output, down=down)
    (maps,) = answer.maps  # (N, 1, h, w)
    return Explanation(answer.logits, answer.class_ids[:, 0], maps[:, 0], answer.guided[:, 0], answer.guided_relus)


def explain_many(
    model: nn.Module,
    views: Sequence[View],
    inputs: Tensor,
    class_ids: ClassIds = None,
    *,
    top_k: int = 1,
    method: str = GRADCAM,
    autocast: torch.dtype | None = None,
    output: Entry = None,
    down: bool = False,
) -> Explanations:
    """Explain a batch for K classes an image at several layers: one forward and K backward passes.

    Each class costs two backward passes, of which the first ends at the earliest of the views.

    Args:
        model: as in `explain`.
        views: the layers looked at, at least one.
        inputs: as in `explain`; fastest in channels_last memory, for a model prepared by `worker.models.batchnorm`.
            A model whose parameters are in half precision reads them in it; its answers are float32 as any other's.
        class_ids: (N,) or (N, K) integers; None or -1 in column k means the class that is k-th most likely, from 0.
        top_k: K, where `class_ids` is None.
        method: how maps are made, a name of `worker.engine.methods.METHODS`.
        autocast: runs the forward pass in this half precision where torch deems it safe; maps are made in float32.
        output: as in `explain`.
        down: as in `explain`; which classes are the most likely stays the same.

    Raises:
        ValueError: the model, views, inputs, class ids or method cannot be used so; the caller's mistake.
        OutOfMemory: the device's memory does not suffice; a smaller batch may fit.
    """
    _refuse_unusable(model, inputs)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    asked = torch.full((len(inputs), top_k), -1) if class_ids is None else class_ids
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _explain(model, views, inputs, asked, METHODS[method], autocast, output, down=down)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Raised outside the except block: the caught error's traceback would keep the tensors alive that did not fit.
    raise OutOfMemory(f"a batch of {len(inputs)} images does not fit into the memory of {inputs.device}")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch or Python says that memory is full."""
    # The CPU's allocator has no error class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def as_they_are(output: Tensor) -> Tensor:
    """Read the output of a convolution as maps: it is."""
    return output


def _explain(
    model: nn.Module,
    views: Sequence[View],
    inputs: Tensor,
    class_ids: Sequence[Any] | Tensor,
    to_map: Callable[[Tensor, Tensor], Tensor],
    autocast: torch.dtype | None,
    output: Entry,
    *,
    down: bool,
) -> Explanations:
    # An inference tensor never takes part in autograd; its copy does.
    x = inputs.clone() if inputs.is_inference() else inputs.detach()  # (N, C, H, W)
    x = x.to(half_precision(model) or x.dtype).requires_grad_()
    with ExitStack() as hooks:
        kept = [hooks.enter_context(_output_of(view.module)) for view in views]
        if autocast is not None:
            hooks.enter_context(torch.autocast(x.device.type, autocast))
        scores = scores_of(model(x), len(x), output)  # (N, number of classes)
    activations = [_checked(*each, len(x)) for each in zip(views, kept, strict=True)]  # each as the module's
    logits = _at_least_float32(scores.logits)
    ranking = logits.detach() if scores.ranking is None else scores.ranking
    if scores.varies and isinstance(class_ids, Tensor):
        class_ids = class_ids[:, : ranking.shape[1]]
    classes = _classes(class_ids, ranking)  # (N, K)
    # By gather: logits[:, c] would mix the images. Their sum is safe as images are independent in eval mode.
    explained = -logits if down else logits
    sums = [explained.gather(1, chosen[:, None]).sum() for chosen in classes.unbind(1)]  # K of ()

    # The maps come first: armed hooks would guide these gradients too.
    maps = [_maps(score, views, activations, to_map) for score in sums]  # K lists of (N, h, w), one a view
    with guided_relu.guided(logits) as count:
        guided = [
            torch.autograd.grad(score, x, retain_graph=score is not sums[-1])[0]  # (N, C, H, W)
            for score in sums
        ]
    by_view = [_stack(list(of_view)) for of_view in zip(*maps, strict=True)]
    guided_ = _at_least_float32(_stack(guided))
    return Explanations(logits.detach(), classes, by_view, guided_, count, scores.beside)


def _maps(
    score: Tensor,
    views: Sequence[View],
    activations: Sequence[Tensor],
    to_map: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """One class's (N, h, w) map of each view, all from one backward pass."""
    gradients = torch.autograd.grad(score, activations, retain_graph=True, allow_unused=True)
    maps = []
    for view, activation, gradient in zip(views, activations, gradients, strict=True):
        if gradient is None:
            raise ValueError("the logits do not depend on the output of the chosen layer")
        A, G = (_at_least_float32(view.to_maps(each)) for each in (activation.detach(), gradient))  # (N, C, h, w)
        maps.append(to_map(A, G))
    return maps


def half_precision(model: nn.Module) -> torch.dtype | None:
    """Return the half precision that the model's parameters are in; None where they are in another one."""
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), None)
    return dtype if dtype in _HALVES else None


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in _HALVES else values


def _stack(of_classes: list[Tensor]) -> Tensor:
    """K of (N, …) become (N, K, …), without a copy where there is one class, as there mostly is."""
    return of_classes[0][:, None] if len(of_classes) == 1 else torch.stack(of_classes, dim=1)


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


def _refuse_unusable(model: nn.Module, inputs: Tensor) -> None:
    if inputs.ndim != _NCHW or not inputs.is_floating_point() or len(inputs) == 0:
        raise ValueError(f"inputs must be (N, C, H, W) floating point, not {tuple(inputs.shape)} {inputs.dtype}")
    for module in model.modules():
        if module.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        # A model compiled in place keeps its class and shows it by this attribute only.
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise ValueError("a compiled or scripted model hides its ReLUs; hand in the model it was made from")


def _checked(view: View, kept: list[Any], batch: int) -> Tensor:
    """The module's output, if it is what Grad-CAM is defined for."""
    if len(kept) != 1:
        raise ValueError(f"the chosen layer ran {len(kept)} times in one forward pass, not once")
    (activation,) = kept
    maps = view.to_maps(activation.detach()) if isinstance(activation, Tensor) else activation
    if not isinstance(maps, Tensor) or maps.ndim != _NCHW or len(maps) != batch:
        raise ValueError(f"the chosen layer gives {_shape(maps)} for {batch} images, not (N, C, h, w)")
    return cast(Tensor, activation)


def _shape(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _classes(class_ids: Sequence[Any] | Tensor, ranking: Tensor) -> Tensor:
    """(N, K) int64: the classes asked for; in column k, where none is, the k-th most likely."""
    if not isinstance(class_ids, Tensor):
        rows = [row if isinstance(row, Sequence) else [row] for row in class_ids]
        class_ids = torch.tensor([[-1 if c is None else c for c in row] for row in rows], dtype=torch.int64)
    asked = class_ids[:, None] if class_ids.ndim == 1 else class_ids  # (N, K)
    batch, known = ranking.shape
    if asked.ndim != _NK or len(asked) != batch or asked.is_floating_point():
        raise ValueError(f"class_ids must be {batch} integers, one an image, or as many rows of them")
    if not 0 < asked.shape[1] <= known:
        raise ValueError(f"class_ids must be 1 to {known} an image, not {asked.shape[1]}")
    if asked.min() < -1 or asked.max() >= known:
        raise ValueError(f"class_ids must be in 0..{known - 1}, not {asked.tolist()}")
    likely = ranking.argsort(dim=1, descending=True, stable=True)[:, : asked.shape[1]]  # (N, K)
    if likely.is_cuda and not asked.is_cuda:
        # A copy from pinned memory only: another would wait for all that the GPU has to do.
        asked = asked.pin_memory().to(likely, non_blocking=True)
    asked = asked.to(likely)
    return torch.where(asked < 0, likely, asked)
