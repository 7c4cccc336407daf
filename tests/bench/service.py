"""End to end: how fast images become pictures in the store, beside pure `explain` and what people do instead.

    PYTHONPATH=. python tests/bench/service.py [--quick] [--part cpu]… [--json FILE]

Real photos lie in S3 when the clock starts at a job's submission; it stops when the job has ended with all its objects
there, which are counted. Servers and workers share this machine's cores. Networks are resnet50 with random weights and
a real EfficientNet-Lite0. Contestants take turns round by round, each warm; medians with the spread.

cpu:       our worker with two threads; pure `explain`, in a process of its own on arrays that are there already; a
           script with pytorch-grad-cam; Celery as people use it, a task an image in two processes
scaling:   one worker pinned to a core, and two pinned to one each; pure `explain` on one core
gpu-shape: a device that takes a fixed time a batch: ours, and Celery as people use it
stages:    core-milliseconds an image of each stage and server
memory:    the worker's memory over 5,000 images
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
from service_peers import Naive, Pure, Script, process, serve_pure, serve_script
from service_rig import Rig, Timed, children_of, machine
from service_stages import print_stages
from service_targets import Targets

from deploy.stack import Stack
from producer.jobs.model.spec import Pack

NETWORKS = ("resnet50", "efficientnet_lite0")
PARTS = ("cpu", "scaling", "gpu-shape", "stages", "memory")
DEVICE_MS = (30, 100)
DEVICE_BATCH = 32
#: Size of chunks, how pictures are packed, and what is said of it.
GPU_JOBS: tuple[tuple[int, Pack, str], ...] = ((64, "none", ""), (128, "none", ""), (128, "tar", ", tar"))
#: Of jobs that one and two workers share: many chunks, so that it hardly matters who has the last one.
SHARED_CHUNK = 32
Contest = dict[str, tuple[Callable[[int], Timed], int]]


def rounds_of(contest: Contest, rounds: int) -> dict[str, list[Timed]]:
    """Let contestants take turns; each is a way to time so many images, and how many."""
    found: dict[str, list[Timed]] = {label: [] for label in contest}
    for number in range(rounds):
        for label, (timed, images) in contest.items():
            found[label].append(timed(images))
            click.echo(f"  round {number + 1}: {label}: {found[label][-1].per_s:.1f} images/s", err=True)
    return found


def per_s(found: list[Timed]) -> float:
    """The median of images/s."""
    return statistics.median(each.per_s for each in found)


def core_ms(found: list[Timed]) -> float:
    """The median of core-milliseconds an image, workers and servers together: what other programs disturb least."""
    return statistics.median(sum(each.core_ms.values()) for each in found)


def show(title: str, found: dict[str, list[Timed]], base: str) -> None:
    """Print a table; ratios are of medians: of images/s, and of images per core-second, servers included."""
    click.echo(f"\n{title}")
    click.echo(f"{'':<34}{'images':>7}{'images/s':>10}{'spread':>14}{'ratio':>8}{'by CPU':>8}  core-ms an image")
    for label, rounds in found.items():
        speeds = [each.per_s for each in rounds]
        names = dict.fromkeys(name for each in rounds for name in each.core_ms)
        spent = {name: statistics.median(each.core_ms.get(name, 0.0) for each in rounds) for name in names}
        click.echo(
            f"{label:<34}{rounds[0].images:>7}{per_s(rounds):>10.1f}{f'{min(speeds):.1f}-{max(speeds):.1f}':>14}"
            f"{per_s(rounds) / per_s(found[base]):>8.2f}{core_ms(found[base]) / core_ms(rounds):>8.2f}  "
            + ", ".join(f"{name} {ms:.1f}" for name, ms in spent.items())
        )


def cpu(rig: Rig, network: str, rounds: int, targets: Targets) -> dict[str, list[Timed]]:
    """Ours beside the others, all with two cores."""
    with ExitStack() as held:
        worker, double = rig.start_worker(), rig.start_worker(processes=2, queue="high")
        held.callback(worker.stop)
        held.callback(double.stop)
        naive = Naive(rig, network)
        held.callback(naive.stop)
        pure = Pure(rig, held.enter_context(process(serve_pure, network, rig.photos)))
        script = Script(rig, held.enter_context(process(serve_script, network, rig.photos)))
        rig.warm([worker], network)
        rig.warm([double], network, 2)
        naive.timed(8)
        script.timed(4)
        count = len(rig.photos)
        contest: Contest = {
            "pure explain": (pure.timed, min(count, 192)),
            "gradcam-queue": (lambda images: rig.timed([worker], network, images), count),
            "gradcam-queue, a process a core": (lambda images: rig.timed([double], network, images), count),
            "pytorch-grad-cam, script": (script.timed, max(8, count // 10)),
            "Celery, a task an image": (naive.timed, max(16, count // 4)),
        }
        found = rounds_of(contest, rounds)
    show(f"{network}, fp32, two cores", found, "pure explain")
    ours = per_s(found["gradcam-queue"])
    two = per_s(found["gradcam-queue, a process a core"])
    targets.add(f"{network}: ours / pure explain", ours / per_s(found["pure explain"]), 0.75, network == "resnet50")
    targets.add(f"{network}: ours / script", ours / per_s(found["pytorch-grad-cam, script"]), 4.0, True)
    targets.add(f"{network}: ours / Celery, a task an image", ours / per_s(found["Celery, a task an image"]), 1.0, True)
    targets.add(f"{network}: a process a core / Celery", two / per_s(found["Celery, a task an image"]), 1.0, False)
    show_waits(network, found["gradcam-queue"], targets)
    return found


def show_waits(network: str, rounds: list[Timed], targets: Targets) -> None:
    """Print the job's own table of stages, and how much of the time the device waited."""
    images, stages = rounds[0].images, rounds[0].status["stages"]
    for kind, words in (("work_s", "at work"), ("wait_s", "waited for")):
        medians = {name: statistics.median(each.status["stages"][name][kind] for each in rounds) for name in stages}
        each = ", ".join(f"{name} {1000 * seconds / images:.1f}" for name, seconds in medians.items())
        click.echo(f"job.json, wall-clock ms an image {words}: {each}")
    idle = 1 - statistics.median(each.status["device_busy"] for each in rounds)
    targets.add(f"{network}: device waits for input", idle, 0.05, network == "resnet50", most=True)


def scaling(rig: Rig, network: str, rounds: int, targets: Targets) -> dict[str, list[Timed]]:
    """One and two workers, pinned to a core each."""
    images = min(len(rig.photos), 256)  # the whole run stays under 25 minutes
    found: dict[str, list[Timed]] = {}
    cores = sorted(os.sched_getaffinity(0))
    one, free, two, alone = (
        "one worker on one core, servers there",
        "one worker on one core",
        "two workers on a core each",
        "pure explain on one core",
    )
    with ExitStack() as held:
        workers = [rig.start_worker(core=core) for core in cores[:2]]
        for worker in workers:
            held.callback(worker.stop)
        pure = Pure(rig, held.enter_context(process(serve_pure, network, rig.photos, cores[0])))
        rig.warm(workers, network)

        def single(count: int) -> Timed:
            # The other one stands still: what is stopped takes no work and no core.
            stopped = [p for p in workers[1].processes() if p.status() != psutil.STATUS_STOPPED]
            for each in stopped:
                each.suspend()
            # A read of the queues that it began is answered for a second yet, and would take a message along.
            time.sleep(3.0)
            try:
                return rig.timed(workers[:1], network, count, SHARED_CHUNK)
            finally:
                for each in stopped:
                    each.resume()

        def confined(count: int) -> Timed:
            rig.confine_servers({cores[0]})
            try:
                return single(count)
            finally:
                rig.confine_servers(set(cores))

        contest: Contest = {
            alone: (pure.timed, max(16, images // 4)),
            free: (single, images // 2),
            one: (confined, images // 2),
            two: (lambda count: rig.timed(workers, network, count, SHARED_CHUNK), images),
        }
        found = rounds_of(contest, rounds)
    show(f"{network}, fp32, workers pinned to cores", found, alone)
    targets.add(
        f"{network}: two pinned / one, servers on both cores", per_s(found[two]) / per_s(found[free]), 1.7, True
    )
    targets.add(f"{network}: two pinned / one, all on its core", per_s(found[two]) / per_s(found[one]), 1.7, False)
    targets.add(f"{network}: one pinned / pure explain", per_s(found[free]) / per_s(found[alone]), 0.75, False)
    return found


def gpu_shape(
    rig: Rig, network: str, rounds: int, targets: Targets, device_ms: tuple[int, ...]
) -> dict[str, list[Timed]]:
    """Ours and Celery as people use it, with a device that takes a fixed time a batch."""
    every: dict[str, list[Timed]] = {}
    for ms in device_ms:
        lock = str(rig.folder / "device.lock")
        extra = {"BENCH_DEVICE_MS": str(ms), "BENCH_DEVICE_LOCK": lock}
        if ms == DEVICE_MS[0]:
            extra["BENCH_DEVICE_THREAD"] = str(rig.folder / "device-thread")
        ours = extra | {"GRADCAM_WORKER_BATCH_SIZE": str(DEVICE_BATCH)}
        peer = f"{ms} ms: Celery, a task an image"
        with ExitStack() as held:
            naive = Naive(rig, network, extra)
            held.callback(naive.stop)
            naive.timed(8)
            found = rounds_of({peer: (naive.timed, max(32, len(rig.photos) // 3))}, rounds)
        for processes, words in ((1, "one process"), (2, "two processes")):
            worker = rig.start_worker(processes=processes, extra=ours)
            try:
                rig.warm([worker], network, processes)
                contest: Contest = {
                    f"{ms} ms: {words}, chunk {chunk}{packed}": (
                        partial(rig.timed, [worker], network, chunk=chunk, pack=pack),
                        4 * len(rig.photos),  # else a second of beginning and end is a third of it
                    )
                    for chunk, pack, packed in GPU_JOBS
                }
                found |= rounds_of(contest, rounds)
            finally:
                worker.stop()
        show(f"{network}, a device of {ms} ms a batch of up to {DEVICE_BATCH}", found, peer)
        best = max(per_s(each) for label, each in found.items() if label != peer)
        if ms == DEVICE_MS[0]:
            gpu_targets(found, ms, targets)
            share = device_share(rig.folder, ms)
            targets.add("host work on the device's thread, of a batch's time", share, 0.10, True, most=True)
        targets.add(f"device of {ms} ms a batch: ours / Celery, a task an image", best / per_s(found[peer]), 5.0, True)
        every |= found
    return every


def gpu_targets(found: dict[str, list[Timed]], ms: int, targets: Targets) -> None:
    """How fast a fast device is fed, and what of the host an image takes."""

    def of(words: str, packed: bool) -> list[list[Timed]]:
        return [each for label, each in found.items() if f"ms: {words}, " in label and ("tar" in label) == packed]

    def worker_ms(rounds: list[Timed]) -> float:
        return statistics.median(each.core_ms["worker child"] + each.core_ms["worker main"] for each in rounds)

    one, two = (max(map(per_s, of(words, False))) for words in ("one process", "two processes"))
    targets.add(f"device of {ms} ms: images/s, one process", one, 220, True)
    targets.add(f"device of {ms} ms: images/s, two processes", two, 260, True)
    least = min(map(worker_ms, of("one process", False)))
    targets.add(f"device of {ms} ms: worker's core-ms an image", least, 4.0, True, most=True)
    least = min(map(worker_ms, of("one process", True)))
    targets.add(f"device of {ms} ms: worker's core-ms an image, --pack tar", least, 2.5, True, most=True)


def device_share(folder: Path, ms: int) -> float:
    """What the devices' threads did themselves, in CPU time, as a share of the time of their batches."""
    notes = [file.read_text().split() for file in folder.glob("device-thread.*")]
    batches, seconds = (sum(float(note[column]) for note in notes) for column in (0, 1))
    return 1000 * seconds / max(batches, 1) / ms


def memory(rig: Rig, network: str, quick: bool, targets: Targets) -> list[dict[str, float]]:
    """The memory of the worker's child, as images go through."""
    images = 1000 if quick else 5000
    worker = rig.start_worker()
    try:
        rig.warm([worker], network)
        child = max(children_of(worker), key=lambda process: process.memory_info().rss)
        job = rig.submit(network, [rig.uris[n % len(rig.uris)] for n in range(images)])
        seen: list[dict[str, float]] = []
        while not (status := rig.client.status(job)).ended:
            seen.append({"done": status.done, "rss_mb": child.memory_info().rss / 2**20})
            time.sleep(0.25)
        rig.check(job, images)
        seen.append({"done": images, "rss_mb": child.memory_info().rss / 2**20})
    finally:
        worker.stop()
    step = 500 if images > 1000 else 100
    first = next(each for each in seen if each["done"] >= step)
    after = [each["rss_mb"] for each in seen if each["done"] >= step]
    click.echo(f"\nmemory of the worker's child, {network}, over {images} images")
    for done in range(step, images + 1, step):
        at = next(each for each in seen if each["done"] >= done)
        click.echo(f"{at['done']:>8} images{at['rss_mb']:>8.0f} MB")
    click.echo(f"largest {max(after):.0f} MB, {max(after) / first['rss_mb'] - 1:+.1%} of that at {first['done']:.0f}")
    targets.add(
        f"memory at the end, of that after {step} images", after[-1] / first["rss_mb"], 1.05, not quick, most=True
    )
    return seen


@click.command()
@click.option("--part", "parts", multiple=True, default=PARTS, type=click.Choice(PARTS))
@click.option("--network", "networks", multiple=True, default=NETWORKS, type=click.Choice(NETWORKS))
@click.option("--rounds", type=int, help="3, or 1 with --quick")
@click.option("--images", type=int, help="500, or 128 with --quick")
@click.option("--device-ms", multiple=True, type=int, default=DEVICE_MS, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer images and one round: whether it works, not how fast it is.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything that was measured.")
def main(
    parts: tuple[str, ...],
    networks: tuple[str, ...],
    rounds: int | None,
    images: int | None,
    device_ms: tuple[int, ...],
    quick: bool,
    json_file: Path | None,
) -> None:
    """Print the tables, and at the end which numbers are reached."""
    rounds = rounds or (1 if quick else 3)
    targets = Targets()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gradcam-bench-") as name, Stack(Path(name) / "stack", workers=0) as stack:
        os.environ.update(stack.environment())
        # As the launcher has it for ours: threads that wait spinning take ten times as long on a busy machine.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        rig = Rig(stack, Path(name), images or (128 if quick else 500))
        found["machine"] = machine(stack)
        click.echo(f"end to end: {found['machine']}")
        click.echo(f"{len(rig.photos)} photos, {rounds} rounds, 4 pictures each; Redis and S3 on the same cores")
        for network in networks:
            if "cpu" in parts:
                found[f"cpu {network}"] = cpu(rig, network, rounds, targets)
        if "stages" in parts:
            found["stages"] = {network: print_stages(rig, network) for network in networks}
        if "gpu-shape" in parts:
            found["gpu-shape"] = gpu_shape(rig, networks[0], rounds, targets, device_ms)
        if "scaling" in parts:
            found["scaling"] = scaling(rig, networks[0], rounds, targets)
        if "memory" in parts:
            found["memory"] = memory(rig, networks[-1], quick, targets)
    targets.show()
    if json_file:
        found["targets"] = targets.rows
        json_file.write_text(json.dumps(found, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value)


if __name__ == "__main__":
    # Ended either way it must end what it started; a shell lets what it runs in the background ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    main()
