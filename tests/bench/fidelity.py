"""How far maps and guided gradients in half precision are from those in fp32: the table of the documentation.

    python tests/bench/fidelity.py

The real efficientnet_lite0 on scikit-image's photographs, and a random resnet50 on noise. The largest difference of the
resized maps is in gray levels of 255; the cosine is that of two images' guided gradients, the worst of all images. For
all images the class is the one that fp32 finds most likely. On a CPU fp16 is what autocast makes of it there: workers
offer it on CUDA alone.
"""

from __future__ import annotations

import warnings

import click
import numpy as np
import skimage.data
import torch
from torch import Tensor

from worker.device.inputs import normalized
from worker.engine.explain import Explanations, View, as_they_are, explain_many
from worker.models import networks
from worker.models.batchnorm import make_fast
from worker.pictures.geometry import fit
from worker.pictures.render import heat_of

PHOTOS = ("astronaut", "cat", "coffee", "rocket")


def photographs(network: networks.Network) -> Tensor:
    """(N, 3, H, W) as workers prepare them."""
    pictures = [fit(getattr(skimage.data, name)(), network.size, "squash")[0] for name in PHOTOS]
    return normalized(torch.from_numpy(np.stack(pictures)), network.mean, network.std)


def compare(half: Explanations, full: Explanations, size: tuple[int, int]) -> tuple[float, float, float]:
    """Most gray levels between two maps, the mean of each image's, and the smallest cosine of guided gradients."""
    levels = [
        float(np.abs(heat_of([a.numpy()], size)[0] - heat_of([b.numpy()], size)[0]).max() * 255)
        for a, b in zip(half.maps[0][:, 0], full.maps[0][:, 0], strict=True)
    ]
    cosine = torch.nn.functional.cosine_similarity(half.guided.flatten(1), full.guided.flatten(1))
    return max(levels), sum(levels) / len(levels), cosine.min().item()


@click.command()
def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    click.echo(f"{'':<34}{'maps, worst':>12}{'maps, mean':>12}{'gb, cosine':>12}{'same class':>12}")
    for name, weights in (("efficientnet_lite0", None), ("resnet50", networks.RANDOM)):
        network = networks.load(name, weights)
        model = make_fast(network.model, [network.layer], network.size, network.device).model
        noise = torch.randn(4, 3, *network.size, generator=torch.Generator().manual_seed(0))
        inputs = (noise if network.random else photographs(network)).contiguous(memory_format=torch.channels_last)
        views = [View(network.layer, as_they_are)]
        full = explain_many(model, views, inputs)
        for label, autocast in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            half = explain_many(model, views, inputs, full.class_ids, autocast=autocast)
            worst, mean, cosine = compare(half, full, network.size)
            same = (half.logits.argmax(1) == full.class_ids[:, 0]).float().mean().item()
            what = f"{name}, {'noise' if network.random else 'photographs'}, {label}"
            click.echo(f"{what:<34}{worst:>12.1f}{mean:>12.1f}{cosine:>12.4f}{same:>12.0%}")


if __name__ == "__main__":
    main()
