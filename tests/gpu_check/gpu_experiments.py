"""What may make a GPU faster and no worker does by default: measured here, so that it is known whether it would pay.

`half` is a setting of workers (`GRADCAM_WORKER_ENGINE`). CUDA graphs and fused convolutions are experiments alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_adapter as adapter
import torch
from gpu_part import Found, Place, Skipped, seconds
from gpu_right import correlation
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from worker.device.batches import PRECISIONS
from worker.engine import guided_relu
from worker.engine.explain import _output_of
from worker.engine.methods import gradcam
from worker.engine.precision import float32_products
from worker.models.networks import Network

#: A whole model in half precision may be so many times as far from float32 as autocast is.
_FARTHER = 3.0
#: Differences below this are of rounding.
_ROUNDING = 2e-3


def half(place: Place) -> Found:
    """Whole models in half precision against autocast: how far from float32, and how fast."""
    device, found = place.open(), Found()
    names = ("squeezenet1_1",) if place.quick else ("resnet50", "vgg16", "efficientnet_b0", "vit_b_16")
    for name in names if place.cuda else names[:1]:
        network = adapter.load(name, device, place.size)
        batch = 4 if place.quick else 32 if place.cuda else 8
        x = _batch(network, batch)
        full = adapter.on_tensors(network, x, None, "fp32")
        for precision in (each for each in place.precisions() if PRECISIONS[each] is not None):
            own = adapter.load(name, device, place.size, dtype=PRECISIONS[precision])
            row: dict[str, float] = {}
            for label, model in (("autocast", network), ("half", own)):
                answer = adapter.on_tensors(model, x, full.class_ids, precision)
                run = lambda: adapter.on_tensors(model, x, full.class_ids, precision)  # noqa: B023, E731 - called at once
                row[f"{label}_map"] = correlation(answer.maps[0], full.maps[0])
                row[f"{label}_guided"] = correlation(answer.guided, full.guided)
                row[f"{label}_images_per_s"] = batch / seconds(run, device, for_s=0.1 if place.quick else 1.0)
            row["faster"] = row["half_images_per_s"] / row["autocast_images_per_s"]
            found.values[f"{name} {precision}"] = row
            found.lines.append(
                f"{name:<16}{precision:<6}batch {batch}: {row['half_images_per_s']:.1f} images/s, autocast "
                f"{row['autocast_images_per_s']:.1f} ({row['faster']:.2f} times); correlation with fp32: map "
                f"{row['half_map']:.5f} ({row['autocast_map']:.5f}), guided {row['half_guided']:.5f} "
                f"({row['autocast_guided']:.5f})"
            )
            for what in ("map", "guided"):
                if 1 - row[f"half_{what}"] > _FARTHER * (1 - row[f"autocast_{what}"]) + _ROUNDING:
                    found.wrong.append(f"{name} in {precision}: with the engine `half` the {what} is farther off")
    return found


def graphs(place: Place) -> Found:
    """Record the kernels of a small batch once and play them again: whether that can be, and how fast it is."""
    device, found = place.open(), Found()
    network = adapter.load(place.network, device, place.size)
    for batch in (1,) if place.quick else (1, 8):
        x = _batch(network, batch).requires_grad_()
        chosen = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        with float32_products(tf32=False):
            run = lambda: explained(network, x, chosen)  # noqa: B023, E731 - called at once
            right = adapter.on_tensors(network, x.detach(), chosen.cpu(), "fp32")
            found.values[str(batch)] = row = {"alike": correlation(run()[2], right.guided[:, 0])}
            if not row["alike"] > 1 - _ROUNDING:
                found.wrong.append(f"what would be recorded is another thing: correlation {row['alike']:.5f}")
            if not place.cuda:
                found.lines.append(f"batch {batch}: not captured: the CPU has no graphs of kernels")
                continue
            try:
                row |= _recorded(run, x, device)
            except RuntimeError as error:
                # No fault of ours, and nothing depends on it: the device may be unusable now, for this process.
                found.lines.append(f"batch {batch}: not captured: {str(error).splitlines()[0]}")
                break
            found.lines.append(
                f"batch {batch}: captured; {row['replay_ms']:.2f} ms a batch, {row['eager_ms']:.2f} ms without: "
                f"{row['eager_ms'] / row['replay_ms']:.2f} times as fast; other inputs played: correlation "
                f"{row['played']:.6f}"
            )
    return found


def explained(network: Network, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, maps and guided gradients of given classes, (N, 1), with nothing in between that waits for the device."""
    (view, *_) = network.views
    with torch.enable_grad():
        with _output_of(view.module) as kept:
            logits = network.model(x)
        score = logits.gather(1, chosen).sum()
        (gradient,) = torch.autograd.grad(score, kept[0], retain_graph=True)
        maps = gradcam(view.to_maps(kept[0].detach()), view.to_maps(gradient))
        with guided_relu.guided(logits):
            (guided,) = torch.autograd.grad(score, x)
    return logits.detach(), maps, guided


def _recorded(run: Callable[[], tuple[Tensor, ...]], x: Tensor, device: torch.device) -> dict[str, float]:
    eager_s = seconds(run, device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run()
    with torch.no_grad():
        x.copy_(torch.randn(x.shape, device=device, generator=torch.Generator(device).manual_seed(7)))
    graph.replay()
    torch.cuda.synchronize(device)
    played = recorded[2].clone()
    return {
        "eager_ms": 1000 * eager_s,
        "replay_ms": 1000 * seconds(graph.replay, device),
        "played": correlation(played, run()[2]),
    }


def fused(place: Place) -> Found:
    """Convolution, addition and ReLU in one call of cuDNN against three, at all shapes of resnet50's forward pass."""
    if not place.cuda:
        raise Skipped("fused convolutions are cuDNN's; on the CPU oneDNN's brought nothing (69 ms against 68)")
    device, found = place.open(), Found()
    network = adapter.load("resnet50", device, place.size)
    calls: list[tuple[str, nn.Conv2d, Tensor]] = []
    names = {module: name for name, module in network.model.named_modules()}

    def note(module: Any, inputs: tuple[Tensor], _output: object) -> None:
        if "downsample" not in names[module]:
            calls.append((names[module], module, inputs[0].detach()))

    hooks = [each.register_forward_hook(note) for each in names if isinstance(each, nn.Conv2d)]
    with torch.inference_mode(False), torch.no_grad():
        network.model(_batch(network, 4 if place.quick else 32))
        for hook in hooks:
            hook.remove()
        for precision in place.precisions():
            dtype = PRECISIONS[precision] or torch.float32
            try:
                with float32_products(tf32=precision == "tf32"):
                    row = _fused(calls, dtype, device)
            except RuntimeError as error:  # cuDNN has no such kernel for this GPU
                found.lines.append(f"{precision}: not fused: {str(error).splitlines()[0]}")
                continue
            found.values[precision] = row
            found.lines.append(
                f"{precision}: {row['fused_ms']:.2f} ms a forward pass of its convolutions, {row['apart_ms']:.2f} ms "
                f"apart: {row['apart_ms'] / row['fused_ms']:.2f} times as fast; least correlation {row['alike']:.6f}"
            )
            if not row["alike"] > 1 - _ROUNDING:
                found.wrong.append(f"fused convolutions in {precision} give other answers")
    return found


def _fused(calls: list[tuple[str, nn.Conv2d, Tensor]], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    row = {"fused_ms": 0.0, "apart_ms": 0.0, "alike": 1.0}
    for name, conv, taken in calls:
        x, weight = taken.to(dtype), conv.weight.to(dtype)
        bias = torch.zeros(len(weight), dtype=dtype, device=device) if conv.bias is None else conv.bias.to(dtype)
        how: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        # The last convolution of a block is added to what comes from before it.
        adds = name.endswith("conv3")
        added = torch.randn_like(F.conv2d(x, weight, bias, *how)) if adds else None

        def apart() -> Tensor:
            out = F.conv2d(x, weight, bias, *how)  # noqa: B023
            return (out if added is None else out.add_(added)).relu_()  # noqa: B023

        def together() -> Tensor:
            if added is None:  # noqa: B023
                return torch.cudnn_convolution_relu(x, weight, bias, *how)  # noqa: B023
            return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, *how)  # noqa: B023

        row["alike"] = min(row["alike"], correlation(together(), apart()))
        row["apart_ms"] += 1000 * seconds(apart, device, for_s=0.02)
        row["fused_ms"] += 1000 * seconds(together, device, for_s=0.02)
    return row


def _batch(network: Network, count: int) -> Tensor:
    shape = (count, 3, *network.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(network.device).contiguous(memory_format=torch.channels_last)
