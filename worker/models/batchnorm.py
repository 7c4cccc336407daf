"""Make a model faster with the same answers: fold BatchNorms into convolutions, lay out memory channels last.

A BatchNorm in eval mode multiplies each channel and adds to it; the convolution before it can do that as well. The
autograd graph of one forward pass shows the pairs, also where tracing does not work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from worker.engine import guided_relu
from worker.engine.output import Entry, logits_of
from worker.models.layers import Reads

#: Largest difference of the folded model's answers, as a share of the largest value, in float64. Random deep networks
#: amplify rounding a million times.
_TOLERANCE: Final = 1e-6
#: The one node that may read a convolution's, as torch calls it on CPU and GPU.
_NORM_NODES: Final = (["NativeBatchNormBackward0"], ["CudnnBatchNormBackward0"], ["MiopenBatchNormBackward0"])
#: An attribute as it was: owner, name, value.
_Change = tuple[nn.Module, str, Any]


@dataclass(frozen=True)
class FoldedModel:
    """A faster model, and how many of its BatchNorms were folded."""

    model: nn.Module
    folded: int


@dataclass(frozen=True)
class _Pair:
    """A convolution and the BatchNorm that alone reads its output."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d


@dataclass(frozen=True)
class _Run:
    """What one forward pass did."""

    #: The outputs of the layers looked at, in the order of their runs, then the logits.
    answers: list[Tensor]
    #: How often each module ran.
    runs: Counter[nn.Module]
    #: Module → the node that made its output, and the node that made its first input.
    made: dict[nn.Module, Node | None]
    read: dict[nn.Module, Node | None]


def make_fast(
    model: nn.Module,
    layer_modules: Sequence[nn.Module],
    size: tuple[int, int],
    device: str | torch.device = "cpu",
    reads: Reads | None = None,
    dtype: torch.dtype | None = None,
) -> FoldedModel:
    """Fold a freshly loaded model on the CPU, in place; then move it to the device in channels-last memory.

    Args:
        model: in eval mode, with frozen parameters.
        layer_modules: modules of `model` that are looked at; they stay in it, and their outputs stay the same.
        size: (height, width) of its input in px.
        device: where the model is put.
        reads: how it is fed and read; None for three channels, and logits in the usual place.
        dtype: in what its parameters and buffers are there; None leaves them as they are.
    """
    reads = reads or Reads()
    example = torch.randn(1, reads.channels, *size, generator=torch.Generator().manual_seed(0))
    _, folded = fold_batch_norms(model, layer_modules, example, reads.output)
    # All in one step: a model of channels first, or of twice the size, never lies on the device.
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FoldedModel(model, folded)


def fold_batch_norms(
    model: nn.Module, layer_modules: Sequence[nn.Module], example_input: Tensor, output: Entry = None
) -> tuple[nn.Module, int]:
    """Fold each BatchNorm that alone reads a convolution's output, in place, and replace it by its activation.

    A layer looked at is no part of a pair, nor the convolution that gives its output: its maps would change. If logits
    or outputs of these layers differ afterwards, in float64, the model is put back as it was.

    Args:
        model: in eval mode, with frozen parameters, all of one floating point dtype; it is changed.
        layer_modules: modules of `model` that are looked at.
        example_input: (N, C, H, W) of noise, not zeros, on the model's device.
        output: where in the model's output its logits are; None for the usual place.

    Returns:
        The same model, and how many BatchNorms were folded.
    """
    if not any(_can_fold(module) for module in model.modules()):
        return model, 0
    dtype = next(model.parameters()).dtype
    with torch.inference_mode(False), _in_float64(model, dtype):
        example = example_input.detach().double()
        try:
            before = _run(model, layer_modules, example, output)
        except RuntimeError:  # it holds float32 tensors that are no buffers: no check is possible
            return model, 0
        pairs = _pairs(before, layer_modules)
        undo = [change for pair in pairs for change in _fold(model, pair)]
        if pairs and not _answers_alike(model, layer_modules, example, before.answers, output):
            for owner, name, value in reversed(undo):
                setattr(owner, name, value)
            return model, 0
    return model, len(pairs)


@contextmanager
def _in_float64(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """From float32 to float64 and back no bit is lost."""
    model.double()
    try:
        yield
    finally:
        model.to(dtype)


def _can_fold(module: nn.Module) -> bool:
    # timm's BatchNormAct2d is a BatchNorm2d with an activation `act` behind it.
    known = type(module) is nn.BatchNorm2d or (isinstance(module, nn.BatchNorm2d) and hasattr(module, "act"))
    return known and module.running_var is not None


def _run(model: nn.Module, layer_modules: Sequence[nn.Module], example: Tensor, output: Entry = None) -> _Run:
    found = _Run([], Counter(), {}, {})

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found.runs[module] += 1
        # Taken now: a later in-place change gives the tensor another node.
        found.made[module] = getattr(output, "grad_fn", None)
        found.read[module] = getattr(inputs[0], "grad_fn", None) if inputs else None
        if module in layer_modules and isinstance(output, Tensor):
            found.answers.append(output.detach().clone())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad():
            logits = logits_of(model(example.clone().requires_grad_()), len(example), output)
    finally:
        for handle in handles:
            handle.remove()
    found.answers.append(logits)
    return found


def _pairs(run: _Run, layer_modules: Sequence[nn.Module]) -> list[_Pair]:
    """Find the pairs: both run once, and only the BatchNorm's node reads the convolution's."""
    (*_, logits) = run.answers
    if logits.grad_fn is None:
        return []
    read_by = guided_relu.readers(logits.grad_fn)
    shown = [run.made.get(layer) for layer in layer_modules]
    convs = {run.made[module]: module for module in run.runs if isinstance(module, nn.Conv2d)}
    pairs = []
    for norm in run.runs:
        node = run.read[norm]
        conv = convs.get(node)
        if not _can_fold(norm) or conv is None or node is None or node in shown:
            continue
        looked_at = any(module in layer_modules for module in norm.modules())
        alone = [reader.name() for reader in read_by.get(node, [])] in _NORM_NODES
        if alone and not looked_at and run.runs[norm] == run.runs[conv] == 1 and _uses_its_weight(node, conv):
            pairs.append(_Pair(conv, cast(nn.BatchNorm2d, norm)))
    return pairs


def _uses_its_weight(node: Any, conv: nn.Conv2d) -> bool:
    # Weight standardization, for one, changes the weight before its use, and would change a folded one differently.
    return node.name() == "ConvolutionBackward0" and bool(node._saved_weight.data_ptr() == conv.weight.data_ptr())


def _fold(model: nn.Module, pair: _Pair) -> list[_Change]:
    """Fold one pair; return each attribute as it was before."""
    conv, norm = pair.conv, pair.norm
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)  # both (C,)
    scale = torch.rsqrt(variance + norm.eps)  # (C,)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -mean if conv.bias is None else conv.bias - mean  # (C,)
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias
    changes: list[_Change] = [(conv, "weight", conv.weight), (conv, "bias", conv.bias)]
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    replacement = getattr(norm, "act", None) or nn.Identity().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is norm:
                changes.append((parent, name, norm))
                setattr(parent, name, replacement)
    return changes


def _answers_alike(
    model: nn.Module,
    layer_modules: Sequence[nn.Module],
    example: Tensor,
    expected: Sequence[Tensor],
    output: Entry,
) -> bool:
    try:
        got = _run(model, layer_modules, example, output).answers
    except (AttributeError, RuntimeError, TypeError):  # the model reads an attribute that `nn.Identity` lacks
        return False
    # Not finite is not alike: there is nothing to compare then.
    return all(bool((a - b).abs().max() <= _TOLERANCE * b.abs().max()) for a, b in zip(got, expected, strict=True))
