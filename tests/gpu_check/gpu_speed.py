"""How fast: beside other libraries, how busy the device is, what the host does, and the batch size that is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import gpu_adapter as adapter
import peers
import torch
from gpu_part import Found, Place, seconds, wait_for
from torch.profiler import ProfilerActivity, profile

from worker.device.batch_size import BatchSizes
from worker.engine.explain import OutOfMemory

BATCHES: Final = (1, 8, 32, 128)
#: pytorch-grad-cam takes one image at a time for guided gradients: larger batches tell no more.
_PEERS_LARGEST: Final = 32
_T = TypeVar("_T")
_R = TypeVar("_R")


def throughput(place: Place) -> Found:
    """Images a second of map and guided gradient, from arrays on the host to arrays on the host."""
    device, found = place.open(), Found()
    batches = (1, 4) if place.quick else BATCHES if place.cuda else BATCHES[:3]
    network = adapter.load(place.network, device, place.size)
    inputs = torch.randn(max(batches), 3, *network.size, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(len(inputs), dtype=torch.int64)

    def ours(precision: str) -> peers.Explain:
        def run(x: torch.Tensor, class_ids: torch.Tensor) -> peers.Answer:
            batch = x.contiguous(memory_format=torch.channels_last).to(device)
            answer = adapter.on_tensors(network, batch, class_ids, precision)
            return answer.maps[0][:, 0].cpu().numpy(), answer.guided[:, 0].cpu().numpy()

        return run

    teams: dict[str, Callable[[], peers.Explain]] = {f"ours {p}": partial(ours, p) for p in place.precisions()}
    teams["pytorch-grad-cam"] = lambda: peers.pytorch_grad_cam(place.network, place.kind)
    teams["captum"] = lambda: peers.captum(place.network, place.kind)
    found.lines.append(f"images/s, {place.network}{'':<8}" + "".join(f"{f'batch {batch}':>11}" for batch in batches))
    for label, make in teams.items():
        try:
            run = make()
        except ImportError as error:
            found.lines.append(f"{label:<20}not installed: {error}")
            continue
        row: dict[str, float] = {}
        for batch in batches:
            if label.startswith("ours") or batch <= _PEERS_LARGEST:
                each = lambda: run(inputs[:batch], classes[:batch])  # noqa: B023, E731 - called at once
                try:
                    row[str(batch)] = batch / seconds(each, device, for_s=0.1 if place.quick else 1.0)
                except (OutOfMemory, torch.OutOfMemoryError):
                    break
        found.values[label] = row
        cells = (f"{row[str(batch)]:.1f}" if str(batch) in row else "-" for batch in batches)
        found.lines.append(f"{label:<26}" + "".join(f"{cell:>11}" for cell in cells))
    return found


def busy(place: Place) -> Found:
    """Share of the time in which kernels run, while batch after batch goes from the host and back."""
    device, found = place.open(), Found()
    network = adapter.load(place.network, device, place.size)
    for batch in (1, 8) if place.quick else (1, 32, 128) if place.cuda else (1, 16):
        pictures = adapter.noise(network, batch)
        adapter.explain_in_turn(network, pictures, 2)
        wait_for(device)
        share = (_kernels if place.cuda else _processor)(lambda: adapter.explain_in_turn(network, pictures, 5), device)  # noqa: B023
        found.values[str(batch)] = share
        what = "kernels run" if place.cuda else f"{torch.get_num_threads()} threads compute"
        found.lines.append(f"batch {batch}: {what} in {share:.0%} of the time, fp32, the next batch waiting")
    return found


def _kernels(run: Callable[[], object], device: torch.device) -> float:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        began = time.perf_counter()
        run()
        wait_for(device)
        took_us = 1e6 * (time.perf_counter() - began)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or ()
        if event.device_type.name == "CUDA" and not event.name.startswith("Mem")
    )
    return union(spans) / took_us


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Length of what spans, in the order of their starts, cover together."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _processor(run: Callable[[], object], _device: torch.device) -> float:
    began, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.process_time() - cpu) / (time.perf_counter() - began) / torch.get_num_threads()


def host(place: Place) -> Found:
    """Core-milliseconds of the host an image, by stage: the worker's own functions, one after the other."""
    device, found = place.open(), Found()
    torch.set_num_threads(1)
    network = adapter.load(place.network, device, place.size)
    images = 8 if place.quick else 64
    files = [adapter.photo(number) for number in range(images)]

    def each(stage: str, run: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        run(items[0])
        cpu = time.process_time()
        answers = [run(item) for item in items]
        found.values[stage] = 1000 * (time.process_time() - cpu) / images
        return answers

    try:
        pictures = each("decode", adapter.decode, files)
    except ImportError:
        found.lines.append("decoding is left out: it needs simplejpeg, `pip install simplejpeg`")
        pictures = [adapter.decode_without_extras(data) for data in files]
    fitted = each("fit", lambda picture: adapter.fit(picture, network), pictures)
    batches = [fitted[first : first + 32] for first in range(0, images, 32)]
    answers = [answer for batch in each("explain", lambda b: adapter.explain(network, b), batches) for answer in batch]
    drawn = each("draw", lambda pair: adapter.draw(*pair), list(zip(fitted, answers, strict=True)))
    each("encode", adapter.encode, drawn)
    if not place.cuda:
        del found.values["explain"]  # the device's own work
    found.values["together"] = sum(found.values.values())
    size_kb = sum(map(len, files)) / len(files) / 1000
    found.lines.append(f"core-ms an image, JPEGs of 500 x 375 px and {size_kb:.0f} kB, one thread:")
    found.lines.append("  ".join(f"{stage} {core_ms:.2f}" for stage, core_ms in found.values.items()))
    return found


def batch_size(place: Place) -> Found:
    """Let the worker's own search find how many images a batch should have."""
    device, found = place.open(), Found()
    network = adapter.load(place.network, device, place.size)
    ended: list[int] = []
    sizes = BatchSizes(
        8 if place.quick else 256 if place.cuda else 16,
        remember=lambda _key, size: ended.append(size),
        allows=adapter.memory_allows_twice,
    )
    tried: dict[int, list[float]] = {}
    pictures: list[Any] = []
    while not ended:
        size = sizes.size("check")
        pictures = pictures if len(pictures) == size else adapter.noise(network, size)
        halved: list[int] = []
        began = time.perf_counter()
        adapter.explain(network, pictures, halved=halved.append)
        took = time.perf_counter() - began
        for each in halved:
            sizes.too_large("check", each)
        if not halved:
            sizes.ran("check", size, took)
            tried.setdefault(size, []).append(size / took)
    found.values = {"found": ended[0], "images_per_s": {str(size): max(each) for size, each in tried.items()}}
    speeds = ", ".join(f"{size}: {max(each):.1f}" for size, each in tried.items())
    found.lines.append(f"the search ends with {ended[0]} images a batch; images/s by size: {speeds}")
    return found
