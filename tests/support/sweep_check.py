"""One network against the reference, in float64: maps and guided gradients at its two named layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import sweep_reference
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from producer.jobs.model.errors import JobError
from worker.engine.explain import View, explain_many
from worker.models import weights
from worker.models.architectures import find
from worker.models.batchnorm import fold_batch_norms
from worker.models.layers import LAST_CONV, LAST_FEATURES, select_layers, survey

#: Relative to the largest value; rounding of float64 leaves 1e-9 in the deepest of these networks.
TOLERANCE = 1e-6
#: Square inputs in px; where not said, timm's networks run at their own size and torchvision's at 96.
_SIZES = {"inception_v3": 139, "maxvit_t": 224, "vit_h_14": 112, "vit": 128}
_SMALL = 96
#: Of how many choices of classes one must give maps that are not all zero.
_TRIES = 6


@dataclass
class Row:
    """What came out for one network at one layer."""

    network: str
    layer: str
    size: int
    layer_name: str = ""
    #: (h, w), how many images of the batch have nothing but zeros, and how many ReLUs were guided.
    map: tuple[int, ...] = ()
    flat: int = 0
    relus: int = 0
    #: The largest difference from the reference, relative to the largest value, of map and of guided gradient.
    difference: float = 0.0
    seconds: float = 0.0
    #: Why the network is refused, and what is wrong otherwise.
    refused: str = ""
    faults: list[str] = field(default_factory=list)


def check(name: str, batch: int = 2) -> list[Row]:
    """Explain a network with random weights, and compare; a row for each of the two layers."""
    began = time.perf_counter()
    model, size = _model(name)
    seen = survey(name, model, (size, size))
    rows, views = [], []
    for layer in (LAST_CONV, LAST_FEATURES):
        row = Row(name, layer, size)
        rows.append(row)
        try:
            ((row.layer_name, view),) = select_layers(seen, layer).items()
            views.append(view)
        except JobError as error:
            row.refused = str(error)
    chosen = [row for row in rows if not row.refused]
    if chosen:
        _compare(model.double(), views, chosen, batch)
    for row in rows:
        row.seconds = time.perf_counter() - began
    return rows


def _compare(model: nn.Module, views: list[View], rows: list[Row], batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 3, rows[0].size, rows[0].size, generator=generator, dtype=torch.float64)
    for first in range(_TRIES):
        class_ids = torch.arange(batch) * 7 + first
        # First, so that whatever the other does to the model, this one is of the model as it was.
        expected = sweep_reference.explain(model, [row.layer_name for row in rows], x, class_ids)
        if all(map_.any() for map_ in expected.maps):
            break  # maps of nothing but zeros would agree for no reason
    maps, guided, relus = explain_views(model, views, x, class_ids)
    for row, got, right in zip(rows, maps, expected.maps, strict=True):
        row.map, row.relus, row.flat = tuple(got.shape[1:]), relus, int((got.amax(dim=(1, 2)) == 0).sum())
        row.difference = max(_difference(got, right), _difference(guided, expected.guided))
        if not (got.isfinite().all() and guided.isfinite().all()):
            row.faults.append("not finite")
        if not row.difference <= TOLERANCE:
            row.faults.append(f"differs by {row.difference:.1e}")
        if relus != expected.relus:
            row.faults.append(f"{relus} ReLUs guided, the reference has {expected.relus}")
        if not guided.any():
            row.faults.append("the guided gradient is zero")


def explain_views(
    model: nn.Module, views: Sequence[View], inputs: Tensor, class_ids: Tensor
) -> tuple[list[Tensor], Tensor, int]:
    """Maps (N, h, w) of each view, guided gradients (N, 3, H, W) and the number of guided ReLUs: what is tested."""
    fold_batch_norms(model, [view.module for view in views], inputs[:1])
    answer = explain_many(model, views, inputs, class_ids)
    return [maps[:, 0] for maps in answer.maps], answer.guided[:, 0], answer.guided_relus


def _model(name: str) -> tuple[nn.Module, int]:
    """A network with random weights, and the side of its inputs in px."""
    architecture = find(name, None)
    family = name.partition("_")[0]
    size = architecture.size[0] if "/" in name else _SIZES.get(name, _SIZES.get(family, _SMALL))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_model(name, image_size=size) if family == "vit" else architecture.build(architecture.classes)
    weights.randomize(model)
    return model.eval().requires_grad_(False), size


def _difference(got: Tensor, right: Tensor) -> float:
    largest = float(right.abs().max())
    return float((got - right).abs().max()) / (largest or 1.0)
