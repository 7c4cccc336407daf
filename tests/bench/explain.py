"""Images per second of map and guided gradient: ours beside pytorch-grad-cam and captum, interleaved, in one run.

    python tests/bench/explain.py [--network resnet50] [--batch 16] [--rounds 5]

Same weights (random, seeded), same inputs, same threads. pytorch-grad-cam's guided backpropagation takes one image at
a time; captum's takes the batch, its map another pass. Medians over the rounds with the spread, and how far results
agree.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import click
import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from captum.attr import GuidedBackprop, LayerGradCam
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from worker import networks
from worker.explain import explain

Answer = tuple[np.ndarray, np.ndarray]


def contestants(name: str, inputs: torch.Tensor, classes: torch.Tensor) -> dict[str, Callable[[], Answer]]:
    """Each gives (N, h, w) maps after ReLU and (N, 3, H, W) guided gradients."""
    ours, theirs, captums = (networks.load(name, weights="random") for _ in range(3))
    for other in (theirs, captums):  # as their users have them; pytorch-grad-cam does not run otherwise
        other.model.requires_grad_(True)

    def us() -> Answer:
        answer = explain(ours.model, ours.layer, inputs, classes)
        return answer.maps.numpy(), answer.guided.numpy()

    def pytorch_grad_cam() -> Answer:
        targets = [ClassifierOutputTarget(c) for c in classes.tolist()]
        with GradCAM(model=theirs.model, target_layers=[theirs.layer]) as cam:
            maps = cam(input_tensor=inputs, targets=targets)
        guided = GuidedBackpropReLUModel(model=theirs.model, device=torch.device("cpu"))
        gradients = [guided(image[None], target_category=c) for image, c in zip(inputs, classes.tolist(), strict=True)]
        return maps, np.stack([g.transpose(2, 0, 1) for g in gradients])

    def captum() -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = LayerGradCam(captums.model, captums.layer).attribute(inputs, classes, relu_attributions=True)
            guided = GuidedBackprop(captums.model).attribute(inputs.clone().requires_grad_(), classes)
        return maps.detach().numpy()[:, 0], guided.detach().numpy()

    return {"gradcam-queue": us, "pytorch-grad-cam": pytorch_grad_cam, "captum": captum}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference as a share of the largest value; nan when the shapes differ (a resized map)."""
    return float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else float("nan")


@click.command()
@click.option("--network", default="resnet50")
@click.option("--batch", default=16)
@click.option("--rounds", default=5)
def main(network: str, batch: int, rounds: int) -> None:
    """Run the contest and print a table."""
    size = networks.load(network, weights="random").size
    inputs = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(batch)
    teams = contestants(network, inputs, classes)
    reference = teams["gradcam-queue"]()
    agreement = {name: [relative(x, y) for x, y in zip(run(), reference, strict=True)] for name, run in teams.items()}
    seconds: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(rounds):
        for name, run in teams.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    threads = torch.get_num_threads()
    click.echo(f"{network}, batch {batch}, fp32, {threads} threads, {rounds} rounds, torch {torch.__version__}")
    click.echo(f"{'':<18}{'images/s':>9}{'spread':>15}{'ours is':>9}{'map differs':>13}{'gb differs':>12}")
    for name, median in medians.items():
        spread = f"{batch / max(seconds[name]):.1f}-{batch / min(seconds[name]):.1f}"
        ratio = median / medians["gradcam-queue"]
        map_, guided = agreement[name]
        click.echo(f"{name:<18}{batch / median:>9.1f}{spread:>15}{ratio:>8.1f}x{map_:>13.1e}{guided:>12.1e}")


if __name__ == "__main__":
    main()
