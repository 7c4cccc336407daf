"""Choose the layers to look at, and how their outputs become maps (N, C, h, w).

One forward pass on an empty picture tells what runs, how often, in which order and in which shape. A layer puts out
maps, maps with their channels last (Swin, blocks of ConvNeXt), or tokens of a transformer. An output is refused when
its axes cannot be told apart for certain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from producer.jobs.model.errors import JobError
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted, shown
from worker.engine.explain import View
from worker.engine.output import Entry, chosen_entry, logits_of
from worker.engine.segmentation import Segmentation
from worker.models.vision import models

LAST_CONV: Final = "last-conv"
LAST_FEATURES: Final = "last-features"
#: How many layers with maps an error names.
_NAMED: Final = 5
#: The last map with all its channels before global pooling, in torchvision's families; code finds transformers'.
_LAST_FEATURES: Final[dict[type[nn.Module], str]] = {
    models.AlexNet: "features",
    models.ConvNeXt: "features",
    models.DenseNet: "features",
    models.EfficientNet: "features",
    models.GoogLeNet: "inception5b",
    models.Inception3: "Mixed_7c",
    models.MaxVit: "blocks.3",
    models.MNASNet: "layers",
    models.MobileNetV2: "features",
    models.MobileNetV3: "features",
    models.RegNet: "trunk_output",
    models.ResNet: "layer4",
    models.ShuffleNetV2: "conv5",
    models.SqueezeNet: "features",
    models.SwinTransformer: "norm",
    models.VGG: "features",
}

#: How timm's, torchvision's and transformers' residual networks call what goes around a block's convolutions.
_SHORTCUTS: Final = frozenset({"downsample", "shortcut"})

ToMaps = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a transformer lie, for a model that does not say it itself."""

    #: How many patches there are down and across; several where the network joins patches on its way.
    grids: tuple[tuple[int, int], ...]
    #: How many tokens stand before those of the patches.
    prefix: int
    #: The layer that `last-features` means; "" where it has to be found as in other networks.
    last: str


@dataclass(frozen=True)
class Run:
    """One run of one module in a forward pass."""

    name: str
    module: nn.Module
    #: Of the output for one image; () where that is no tensor.
    shape: tuple[int, ...]
    #: The last layer with weights that ran before its end; it tells how many channels there are.
    source: Run | None
    #: How many layers with weights ran before its end.
    depth: int


@dataclass(frozen=True)
class Reads:
    """How a model is fed and read."""

    #: How many channels its pictures have.
    channels: int = 3
    #: Where in its output the logits are; None for the usual place.
    output: Entry = None
    #: The layers that `last-conv` means, as a job names them.
    layer: str = LAST_CONV
    #: Where its tokens lie, if it is a transformer that does not say so itself.
    tokens: Tokens | None = None
    #: The module within which `last-conv` and `last-features` are looked for; "" for the whole model.
    within: str = ""


@dataclass(frozen=True)
class Survey:
    """What ran in a forward pass of one image, in the order in which it ended."""

    #: The network's name, for sentences about it.
    name: str
    model: nn.Module
    #: (height, width) of the input in px.
    size: tuple[int, int]
    runs: list[Run]
    classes: int
    reads: Reads = Reads()
    #: Which part of the model's output is read, in words; "" where the output is the logits.
    output_read: str = ""

    @property
    def tokens(self) -> Tokens | None:
        """Where its tokens lie, if the model itself does not say."""
        return self.reads.tokens


def survey(name: str, model: nn.Module, size: tuple[int, int], reads: Reads | None = None) -> Survey:
    """Run the model once on an empty picture of `size`, in eval mode and on the CPU; no hook stays.

    Raises:
        JobError: The model gives no logits.
    """
    reads = reads or Reads()
    runs: list[Run] = []
    weighted: list[Run] = []

    def note(layer: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        is_source = _channels(module) is not None
        run = Run(layer, module, shape, weighted[-1] if weighted and not is_source else None, len(weighted) + is_source)
        if is_source:
            weighted.append(run)
        runs.append(run)

    handles = [module.register_forward_hook(partial(note, layer)) for layer, module in model.named_modules() if layer]
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, reads.channels, *size))
    finally:
        for handle in handles:
            handle.remove()
    try:
        logits = logits_of(output, 1, reads.output)
    except ValueError as error:
        raise JobError(f"{name} cannot be explained: {error}") from None
    return Survey(name, model, size, runs, logits.shape[1], reads, chosen_entry(output, reads.output))


@dataclass(frozen=True)
class LayerLine:
    """A module that runs, for a list to choose from."""

    name: str
    #: Its class.
    kind: str
    #: Of its output, without the axis of images; () where that is no tensor.
    shape: tuple[int, ...]
    #: How often it runs in one forward pass; only a module that runs once can be looked at.
    times: int
    #: (C, h, w) of its maps; None if it has none.
    maps: tuple[int, ...] | None
    last_conv: bool
    last_features: bool


def listed(seen: Survey) -> list[LayerLine]:
    """List the modules that run, in the order in which they end; `last-conv` and `last-features` are marked."""
    times = Counter(run.module for run in seen.runs)
    marked = [_if_any(seen, LAST_CONV), _if_any(seen, LAST_FEATURES)]
    lines = {}
    for run in seen.runs:
        maps = to_maps(seen, run) if times[run.module] == 1 else None
        made = tuple(maps(torch.empty(run.shape)).shape[1:]) if maps else None
        kind, marks = type(run.module).__name__, [run.name in names for names in marked]
        lines[run.name] = LayerLine(run.name, kind, run.shape[1:], times[run.module], made, *marks)
    return list(lines.values())


def _if_any(seen: Survey, wanted: str) -> list[str]:
    with suppress(JobError):
        return list(select_layers(seen, wanted))
    return []


def select_layers(seen: Survey, wanted: str) -> dict[str, View]:
    """Find the layers: their dotted names in the order of `wanted`, and how to make maps of them.

    Args:
        seen: the network.
        wanted: `last-conv`, `last-features` or a module's dotted name, or several with commas between them.

    Raises:
        JobError: a layer does not exist, does not run exactly once, or gives no maps; or there is none of the kind.
    """
    wanted = seen.reads.layer if wanted == LAST_CONV else wanted
    return dict(_choose(seen, name.strip()) for name in wanted.split(","))


def last_conv(seen: Survey) -> str:
    """Return the name of the last convolution with a map; `last-features` where convolutions are only the entrance.

    A transformer cuts the picture into patches by a convolution: its first layer, which knows nothing yet.
    """
    runs = [run for run in _inner(seen) if isinstance(run.module, nn.Conv2d)]
    if isinstance(seen.reads.output, Segmentation) and not seen.reads.within:
        # The maps of the one that makes the scores of pixels are those scores again.
        runs = [run for run in runs if run.shape[1] != seen.classes] or runs
    if runs and not seen.reads.within and _is_entrance(seen, runs[-1]):
        return last_features(seen)
    if not runs:
        raise JobError(f"{seen.name} has no convolution that maps can be made of; name a layer")
    return runs[-1].name


def shortcut_note(seen: Survey) -> str:
    """Say so where the last convolution lies on the shortcut of a residual block; empty where it does not.

    Where the last stage has one block, its shortcut ends in a 1x1 convolution that runs behind the main branch.
    """
    found = _if_any(seen, LAST_CONV)
    if seen.reads.layer != LAST_CONV or len(found) != 1 or not _is_shortcut(found[0]):
        return ""
    main = [run.name for run in _inner(seen) if isinstance(run.module, nn.Conv2d) and not _is_shortcut(run.name)]
    other = f" (here {shown(main[-1])})" if main else ""
    return (
        f"The last convolution, {shown(found[0])}, lies on the shortcut of a residual block, so last-conv shows "
        f"nothing of the block's own convolutions: name last-features, or the last of these{other}, by --layer-name."
    )


def last_features(seen: Survey) -> str:
    """Return the name of the last map with all its channels before global pooling.

    A table has torchvision's families. In transformers whose tokens keep their places it is the input of the last
    block's attention: behind that the class token may go on alone. Else it is the last output larger than 1x1.
    """
    if seen.reads.within and (inner := _inner(seen)):
        return inner[-1].name
    for family, layer in _LAST_FEATURES.items():
        if isinstance(seen.model, family):
            return layer
    if layer := seen.tokens.last if seen.tokens else _last_tokens(seen):
        return layer
    runs = [run for run in _usable(seen) if len(run.shape) == 4]  # noqa: PLR2004 - the axes of maps
    if not runs or _is_entrance(seen, runs[-1]):
        raise JobError(f"the last maps of {seen.name} are not recognized; name a layer")
    return runs[-1].name


def to_maps(seen: Survey, run: Run) -> ToMaps | None:
    """Return how a layer's output becomes (N, C, h, w) maps; None if it does not, or not for certain."""
    channels = _channels(run.source.module if run.source else run.module)
    match run.shape:
        case (1, first, second, third):
            is_first = second * third > 1 and _has_proportions(second, third, seen.size)
            is_last = first * second > 1 and _has_proportions(first, second, seen.size) and channels == third
            if is_first and is_last:
                is_first, is_last = type(run.module) is nn.Conv2d, type(run.module) in (nn.Linear, nn.LayerNorm)
            if is_first and not _is_attention(seen, run):
                return _unchanged
            return _channels_to_front if is_last else None
        case (1, count, width) if channels == width:
            for places in _grids(seen):
                skipped = count - math.prod(places)
                if skipped in (0, _prefix(seen)):
                    return partial(_tokens_to_maps, skipped, places)
    return None


def _choose(seen: Survey, wanted: str) -> tuple[str, View]:
    if wanted in (LAST_CONV, LAST_FEATURES):
        wanted = last_conv(seen) if wanted == LAST_CONV else last_features(seen)
    known = dict(seen.model.named_modules(remove_duplicate=False))
    if not wanted or wanted not in known:
        like = nearest(wanted, filter(None, known)) or f"; {_with_maps(seen)}"
        raise JobError(f"{seen.name} has no layer {quoted(wanted)}{like}")
    runs = [run for run in seen.runs if run.module is known[wanted]]
    if len(runs) != 1:
        raise JobError(
            f"layer {quoted(wanted)} of {seen.name} runs {len(runs)} times in a forward pass, not once; "
            f"{_with_maps(seen)}"
        )
    maps = to_maps(seen, runs[0])
    if maps is None:
        shape = runs[0].shape or "no tensor"
        raise JobError(
            f"layer {quoted(wanted)} of {seen.name} gives {shape}, not maps (images, channels, height, width); "
            f"{_with_maps(seen)}"
        )
    return wanted, View(known[wanted], maps)


def _with_maps(seen: Survey) -> str:
    """Say which layers have maps, the last ones first."""
    names = list(dict.fromkeys(run.name for run in reversed(_usable(seen))))
    if not names:
        return "none of its layers has maps"
    return f"maps come from {', '.join(map(shown, names[:_NAMED]))}" + (", …" if len(names) > _NAMED else "")


def _usable(seen: Survey) -> list[Run]:
    times = Counter(run.module for run in seen.runs)
    return [run for run in seen.runs if times[run.module] == 1 and to_maps(seen, run)]


def _inner(seen: Survey) -> list[Run]:
    """The usable runs in the part of the model where layers are looked for."""
    within = f"{seen.reads.within}." if seen.reads.within else ""
    return [run for run in _usable(seen) if run.name.startswith(within)]


def _is_shortcut(name: str) -> bool:
    return not _SHORTCUTS.isdisjoint(name.split("."))


def _is_entrance(seen: Survey, run: Run) -> bool:
    return run.depth < seen.runs[-1].depth / 2


def _is_attention(seen: Survey, run: Run) -> bool:
    """Return whether the output is (1, heads, tokens, tokens): it has a picture's proportions too and is no map."""
    tokens = {math.prod(run.source.shape[1:-1])} if run.source else set()
    for grid in _grids(seen):
        tokens |= {math.prod(grid), math.prod(grid) + _prefix(seen)}
    return run.shape[-1] in tokens


def _last_tokens(seen: Survey) -> str:
    """Return the first layer that ends in the last block, if the block puts out as many tokens; "" if there is none."""
    path = "encoder.layers" if isinstance(seen.model, models.VisionTransformer) else "blocks"
    blocks = dict(seen.model.named_modules()).get(path)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        return ""
    *_, before, last = ["", *(f"{path}.{name}" for name, _ in blocks.named_children())]
    tokens = {run.name: run.shape for run in _usable(seen) if len(run.shape) == 3}  # noqa: PLR2004 - N, tokens, C
    first = next((run.name for run in seen.runs if run.name.startswith(f"{last}.")), "")
    # Where the norm stands behind the attention, its input is the output of the block before.
    if last in tokens and tokens.get(first) == tokens[last]:
        return first
    return before if before in tokens else ""


def _grids(seen: Survey) -> tuple[tuple[int, int], ...]:
    """Return how many patches there are down and across, where that is said; tokens are in rows of them."""
    if seen.tokens:
        return seen.tokens.grids
    if isinstance(seen.model, models.VisionTransformer):
        return ((seen.size[0] // seen.model.patch_size, seen.size[1] // seen.model.patch_size),)
    entrance = getattr(seen.model, "patch_embed", getattr(seen.model, "stem", None))
    grid: tuple[int, int] | None = getattr(entrance, "grid_size", None)
    return (grid,) if grid else ()


def _prefix(seen: Survey) -> int:
    """Return how many tokens stand before those of the patches: class tokens, registers."""
    if seen.tokens:
        return seen.tokens.prefix
    return 1 if isinstance(seen.model, models.VisionTransformer) else int(getattr(seen.model, "num_prefix_tokens", 0))


def _channels(module: nn.Module) -> int | None:
    """Return how many channels a layer with weights puts out; None if the module is no such layer."""
    normalized = getattr(module, "normalized_shape", None)
    if isinstance(normalized, tuple):
        return int(normalized[-1])
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        if isinstance(getattr(module, attribute, None), int) and hasattr(module, "weight"):
            return int(getattr(module, attribute))
    return None


def _has_proportions(height: int, width: int, size: tuple[int, int]) -> bool:
    # Within a pixel of the input's; (7, 768) are a width and channels.
    return abs(height * size[1] - width * size[0]) <= max(size)


def _unchanged(maps: Tensor) -> Tensor:
    return maps


def _channels_to_front(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)  # (N, C, h, w)


def _tokens_to_maps(skipped: int, places: tuple[int, int], tokens: Tensor) -> Tensor:
    patches = tokens[:, skipped:].transpose(1, 2)  # (N, C, h * w)
    return patches.reshape(*patches.shape[:2], *places)  # (N, C, h, w)
