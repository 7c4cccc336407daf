"""What lies in the device's memory, what happens when it is full, and whether two processes on it are faster."""

from __future__ import annotations

import multiprocessing
import resource
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import gpu_adapter as adapter
import torch
from gpu_part import Found, Place, Skipped, mib
from gpu_right import correlation

from worker.models import memory
from worker.models.cache import ModelCache, model_bytes
from worker.models.networks import Network

#: What may stay after a model was evicted: on a GPU nothing; on the CPU what the C library keeps in pieces.
_LEFT: Final = {"cuda": 2 * 2**20, "cpu": 48 * 2**20}
#: Two answers of one network, computed in batches of other sizes.
_ALIKE: Final = 0.9999


def room(place: Place) -> Found:
    """Load two models in turn, as jobs would, with room for one; and look at the memory each time."""
    device, found = place.open(), Found()
    names = ("squeezenet1_1", "resnet18") if place.quick else ("resnet50", "vgg16")
    largest = max(model_bytes(adapter.load(name, torch.device("cpu"), place.size).model) for name in names)
    cache = ModelCache[str, Network](
        largest + 1, lambda name: adapter.load(name, device, place.size), partial(memory.give_back, place.kind)
    )
    memory.give_back(place.kind)
    before, evicted = used_bytes(place), list[int]()
    for _ in range(3):
        for name in names:
            network = cache.get(name)
            adapter.explain(network, adapter.noise(network, 4 if place.quick or not place.cuda else 32))
            del network
        cache.clear()
        memory.give_back(place.kind)
        evicted.append(used_bytes(place))
    peak = (
        torch.cuda.max_memory_allocated() if place.cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    found.values = {"before_bytes": before, "peak_bytes": peak, "after_eviction_bytes": evicted}
    left = ", ".join(map(mib, evicted))
    found.lines.append(f"before {mib(before)}, at peak {mib(peak)}; after each of three rounds of evictions: {left}")
    if evicted[-1] - evicted[0] > _LEFT[place.kind]:
        found.wrong.append(f"evicted models leave memory behind: {left}")
    return found


def used_bytes(place: Place) -> int:
    """What tensors take on a GPU, or the whole process on the CPU."""
    if place.cuda:
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def full(place: Place) -> Found:
    """Let a batch have a third of the memory it needs; it is halved until it fits, and its answers stay the same."""
    if not place.cuda:
        raise Skipped("a full memory is provoked on GPUs alone; on the CPU the kernel would end the process")
    device, count = place.open(), 16 if place.quick else 64
    network = adapter.load(place.network, device, place.size)
    pictures = adapter.noise(network, count)
    torch.cuda.reset_peak_memory_stats()
    expected = adapter.explain(network, pictures, numbers=True)
    needs = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + needs / 3) / total)
    halved: list[int] = []
    try:
        answers = adapter.explain(network, pictures, halved=halved.append, numbers=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    alike = min(
        correlation(torch.as_tensor(a.guided), torch.as_tensor(b.guided))
        for a, b in zip(answers, expected, strict=True)
    )
    found = Found({"halved": halved, "correlation": alike, "needs_bytes": int(needs)})
    found.lines.append(
        f"a batch of {count} needs {mib(needs)} and got a third: batches of {halved} did not fit and were halved; "
        f"all {len(answers)} images came back, correlation {alike:.6f}"
    )
    if not halved:
        found.wrong.append(f"a batch of {count} fitted into a third of the memory it needs")
    if not alike > _ALIKE:
        found.wrong.append("images that were explained in halves have other answers")
    return found


def processes(place: Place) -> Found:
    """Let one process, then two at once, take batch after batch from arrays to files."""
    found, seconds = Found(), 0.5 if place.quick else 6.0
    for count in (1, 2):
        found.values[str(count)] = _together(place, count, seconds)
    one, two = found.values["1"], found.values["2"]
    found.lines.append(
        f"from arrays to files of four pictures, {place.network}, fp32: one process {one:.1f} images/s, "
        f"two {two:.1f}: {two / one:.2f} times"
    )
    return found


def _together(place: Place, count: int, seconds: float) -> float:
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    started = []
    for _ in range(count):
        here, there = context.Pipe()
        started.append(context.Process(target=_loop, args=(there, place, count, seconds), daemon=True))
        started[-1].start()
        there.close()
        pipes.append(here)
    try:
        for pipe in pipes:
            pipe.recv()  # loaded, and its kernels are chosen
        for pipe in pipes:
            pipe.send(None)
        return sum(float(pipe.recv()) for pipe in pipes)
    finally:
        for each in started:
            each.kill()
            each.join()


def _loop(pipe: Connection, place: Place, count: int, seconds: float) -> None:
    if not place.cuda:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    network = adapter.load(place.network, place.open(), place.size)
    batch = 4 if place.quick or not place.cuda else 32
    picture = adapter.fit(adapter.decode_without_extras(adapter.photo(0)), network)
    pictures = [picture] * batch

    def once() -> None:
        for answer in adapter.explain(network, pictures):
            adapter.encode(adapter.draw(picture, answer))

    once()
    once()
    pipe.send(None)
    pipe.recv()
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        once()
        images += batch
    pipe.send(images / (time.perf_counter() - began))
