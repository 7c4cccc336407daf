"""Guided backpropagation (arXiv:1412.6806): its one change to a backward pass, at the nodes of the autograd graph.

The graph also shows `F.relu` and a ReLU whose input has a second reader; modules do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

#: Nodes that hide ReLUs: behind them guidance would silently be the plain gradient.
_OPAQUE_NODES = ("CompiledFunctionBackward", "CheckpointFunctionBackward", "DifferentiableGraphBackward")
#: Nodes that are a ReLU if this attribute of theirs is 0: the bound below which nothing passes.
_LOWER_BOUNDS = {
    "ClampMinBackward0": "_saved_min",
    "ThresholdBackward0": "_saved_threshold",
    "HardtanhBackward0": "_saved_min_val",
    "ClampBackward1": "_saved_min",
}
#: Those of them that end above too, as ReLU6 does.
_CAPPED = ("HardtanhBackward0", "ClampBackward1")


@contextmanager
def guided(logits: Tensor) -> Iterator[int]:
    """While open, each ReLU behind `logits` passes back only what is positive; yields how many ReLUs there are.

    A ReLU's own gradient already is g * 1[input > 0] (ReLU6: 0 < input < 6), so what is left of arXiv:1412.6806 is
    1[g > 0]. ReLUs are `relu`, `relu6`, `hardtanh`, `clamp` and `threshold` that pass nothing below 0, as module,
    function or method. Leaky ReLU, SiLU and GELU are left alone: guided backpropagation is not defined for them. So are
    the gates of hard-swish and hard-sigmoid written out, `relu6(x + 3) / 6`: something capped whose input has a
    constant added, and which is read by nothing but products and quotients. A ReLU6 that looks the same is taken for
    a gate; one written as `maximum(x, 0)` or `x * (x > 0)` is not seen.

    Raises:
        ValueError: part of the graph is hidden.
    """
    handles = [node.register_hook(_only_positive) for node in _relu_nodes(logits)]
    try:
        yield len(handles)
    finally:
        for handle in handles:
            handle.remove()


def readers(last: Node) -> dict[Node, list[Node]]:
    """Return each node of the graph that ends in `last` with the nodes that read its result, once for each time.

    Walks without recursion: deep networks have deeper graphs than Python's stack.
    """
    found: dict[Node, list[Node]] = {last: []}
    todo = [last]
    while todo:
        reader = todo.pop()
        for node, _ in reader.next_functions:
            if node is None:
                continue
            if node not in found:
                found[node] = []
                todo.append(node)
            found[node].append(reader)
    return found


def _relu_nodes(logits: Tensor) -> list[Node]:
    if logits.grad_fn is None:
        raise ValueError("the logits do not depend on the inputs")
    graph = readers(logits.grad_fn)
    for node in graph:
        # Any in-place change of a view becomes a CopySlices: with one input it may be a ReLU.
        in_a_view = node.name().endswith("CopySlices") and len(node.next_functions) == 1
        if in_a_view or node.name().startswith(_OPAQUE_NODES):
            raise ValueError(f"the model hides its ReLUs from guided backpropagation ({node.name()})")
    return [node for node, read_by in graph.items() if _is_relu(node) and not _is_gate(node, read_by)]


def _is_relu(node: Any) -> bool:
    name = node.name()
    bound = _LOWER_BOUNDS.get(name)
    return name == "ReluBackward0" or (bound is not None and getattr(node, bound) == 0)


def _is_gate(node: Node, read_by: Sequence[Node]) -> bool:
    if node.name() not in _CAPPED or not all(reader.name() in ("MulBackward0", "DivBackward0") for reader in read_by):
        return False
    (source, _), *_ = node.next_functions
    # A constant that is added has no node of its own.
    return source is not None and source.name() == "AddBackward0" and any(n is None for n, _ in source.next_functions)


def _only_positive(grad_inputs: Sequence[Tensor | None], _grad_outputs: object) -> None:
    # In place: a node owns what it gives, and these passes wait for memory.
    for gradient in grad_inputs:
        if gradient is not None:
            gradient.clamp_(min=0)
