"""Images per second of map and guided gradient: ours beside the others' and beside what the hardware allows.

    python tests/bench/explain.py [--network resnet50]… [--batch 16] [--rounds 5] [--precision fp32]…

Same weights (random, seeded), same inputs, same threads. Each contestant has a process of its own, as its users have
it: ours keeps freed memory as the worker does, which would speed up the others in the same process. They take turns
round by round, so that a busy machine slows all of them; medians with the spread, and how far results agree with ours.

pytorch-grad-cam's guided backpropagation takes one image at a time; captum's and torchcam's take the batch, but need a
forward pass each for map and gradient. "two passes an image" is how Grad-CAM programs mostly are written: image by
image, a forward and a full backward pass for the map and again for the gradient, gradients of all parameters among it.

The limit is the time of the folded network's convolutions and linear layers alone, each forward and back to its input,
channels last, in fp32: the best of all rounds.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import click
import numpy as np
import torch
from peers import Answer, Explain, built, captum, pytorch_grad_cam
from torch import Tensor, nn

from worker.device import batches
from worker.engine.explain import View, as_they_are, explain_many
from worker.models.batchnorm import make_fast
from worker.pictures.render import heat_of

NETWORKS = ("resnet50", "vgg16", "densenet121", "inception_v3")
OURS = "gradcam-queue"
LIMIT = "limit"


def ours(name: str, size: tuple[int, int], precision: str) -> Explain:
    model, layer = built(name)
    make_fast(model.requires_grad_(False), [layer], size)

    def run(inputs: Tensor, classes: Tensor) -> Answer:
        batch = inputs.contiguous(memory_format=torch.channels_last)
        answer = explain_many(model, [View(layer, as_they_are)], batch, classes, autocast=batches.PRECISIONS[precision])
        return answer.maps[0][:, 0].numpy(), answer.guided[:, 0].numpy()

    return run


def torchcam(name: str) -> Explain:
    from captum.attr import GuidedBackprop
    from torchcam.methods import GradCAM as TorchCam

    model, layer = built(name)

    def run(inputs: Tensor, classes: Tensor) -> Answer:
        with TorchCam(model, layer) as cam:
            (maps,) = cam(classes.tolist(), model(inputs.clone().requires_grad_()), normalized=False)
        guided = GuidedBackprop(model).attribute(inputs.clone().requires_grad_(), classes)
        return maps.detach().relu().numpy(), guided.detach().numpy()

    return run


def two_passes(name: str) -> Explain:
    model, layer = built(name)
    guided_model = copy.deepcopy(model)

    def only_positive(_module: nn.Module, gradients: Any, _outputs: Any) -> tuple[Tensor]:
        return (gradients[0].clamp(min=0),)

    for module in guided_model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
            module.register_full_backward_hook(only_positive)

    def one(image: Tensor, class_id: int) -> Answer:
        kept: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            kept.append(output)
            output.retain_grad()
            return output.clone()

        handle = layer.register_forward_hook(keep)
        model.zero_grad()
        model(image)[0, class_id].backward()
        handle.remove()
        (output,) = kept
        assert output.grad is not None
        map_ = (output.grad.mean((2, 3), keepdim=True) * output).sum(1).relu()
        x = image.clone().requires_grad_()
        guided_model.zero_grad()
        guided_model(x)[0, class_id].backward()
        assert x.grad is not None
        return map_.detach().numpy(), x.grad.numpy()

    def run(inputs: Tensor, classes: Tensor) -> Answer:
        answers = [one(image[None], c) for image, c in zip(inputs, classes.tolist(), strict=True)]
        maps, guided = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return maps, guided

    return run


def limit(name: str, inputs: Tensor) -> Callable[[], float]:
    """Give the seconds of all convolutions and linear layers, forward and back to their inputs."""
    model, layer = built(name)
    make_fast(model.requires_grad_(False), [layer], (inputs.shape[2], inputs.shape[3]))
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda m, args, _out: calls.append((m, args[0].clone().requires_grad_())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(inputs.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    def seconds() -> float:
        total = 0.0
        for module, x in calls:
            gradient = torch.ones_like(module(x))
            started = time.perf_counter()
            torch.autograd.grad(module(x), x, gradient)
            total += time.perf_counter() - started
        return total

    return seconds


def differences(answer: Answer, reference: Answer, size: tuple[int, int]) -> tuple[float, float]:
    """Largest difference of maps, each in 0..1 and resized; and of gradients, as a share of the largest."""
    maps = max(
        float(np.abs(heat_of([a], size)[0] - heat_of([b], size)[0]).max())
        for a, b in zip(answer[0], reference[0], strict=True)
    )
    return maps, float(np.abs(answer[1] - reference[1]).max() / np.abs(reference[1]).max())


def contestant(label: str, name: str, size: tuple[int, int]) -> Explain:
    """Make the contestant of that label."""
    if label.startswith(OURS):
        batches.open_device("cpu")  # as the worker sets its process up
        return ours(name, size, label.rsplit(maxsplit=1)[-1])
    return OTHERS[label](name)


OTHERS: dict[str, Callable[[str], Explain]] = {
    "pytorch-grad-cam": pytorch_grad_cam,
    "captum": captum,
    "torchcam + captum": torchcam,
    "two passes an image": two_passes,
}


def serve(pipe: Connection, label: str, name: str, batch: int) -> None:
    """Answer once, then be timed whenever asked; in a process of its own."""
    warnings.simplefilter("ignore")
    size = (299, 299) if name == "inception_v3" else (224, 224)
    inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    if label == LIMIT:
        batches.open_device("cpu")
        measure = limit(name, inputs)
        pipe.send(None)
    else:
        classes = torch.arange(batch)
        run = contestant(label, name, size)
        pipe.send(run(inputs, classes))

        def measure() -> float:
            started = time.perf_counter()
            run(inputs, classes)
            return time.perf_counter() - started

    while pipe.recv():
        pipe.send(measure())


@contextmanager
def process(label: str, name: str, batch: int) -> Iterator[Connection]:
    """Start a contestant; it idles until asked."""
    context = get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(there, label, name, batch), daemon=True)
    child.start()
    try:
        yield here
        here.send(False)
        child.join()
    finally:
        child.kill()


def contest(name: str, batch: int, rounds: int, precisions: tuple[str, ...]) -> None:
    """Run one network's contest and print its table."""
    size = (299, 299) if name == "inception_v3" else (224, 224)
    teams = [f"{OURS} {precision}" for precision in precisions] + list(OTHERS)
    seconds: dict[str, list[float]] = {label: [] for label in [*teams, LIMIT]}
    with ExitStack() as running:
        pipes, answers = {}, {}
        for label in seconds:
            pipes[label] = running.enter_context(process(label, name, batch))
            answers[label] = pipes[label].recv()
        for _ in range(rounds):
            for label, pipe in pipes.items():
                pipe.send(True)
                seconds[label].append(pipe.recv())
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    floor = min(seconds[LIMIT])
    click.echo(
        f"\n{name}, batch {batch}, {torch.get_num_threads()} threads, {rounds} rounds, torch {torch.__version__}; "
        f"limit {batch / floor:.1f} images/s"
    )
    ratios = "".join(f"{precision + ' is':>10}" for precision in precisions)
    click.echo(f"{'':<22}{'images/s':>9}{'spread':>13}{'of limit':>10}{ratios}{'map differs':>13}{'gb differs':>12}")
    for label in teams:
        spread = f"{batch / max(seconds[label]):.1f}-{batch / min(seconds[label]):.1f}"
        faster = "".join(f"{medians[label] / medians[f'{OURS} {precision}']:>9.1f}x" for precision in precisions)
        map_, guided = differences(answers[label], answers[teams[0]], size)
        click.echo(
            f"{label:<22}{batch / medians[label]:>9.1f}{spread:>13}{floor / medians[label]:>10.2f}{faster}"
            f"{map_:>13.1e}{guided:>12.1e}"
        )


@click.command()
@click.option("--network", "names", multiple=True, default=NETWORKS, type=click.Choice(NETWORKS))
@click.option("--batch", default=16)
@click.option("--rounds", default=5)
@click.option("--precision", "precisions", multiple=True, default=("fp32", "bf16"), type=click.Choice(("fp32", "bf16")))
def main(names: tuple[str, ...], batch: int, rounds: int, precisions: tuple[str, ...]) -> None:
    """Run the contests, one a network."""
    for name in names:
        contest(name, batch, rounds, precisions)


if __name__ == "__main__":
    main()
