"""All that the check calls of the worker's way from a file to its pictures: what changes there changes here alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.device.batches import PRECISIONS, TF32, Computation, Explained, explain_classes, memory_allows_twice
from worker.engine.explain import Explanations, explain_many, half_precision
from worker.engine.precision import float32_products
from worker.models import networks
from worker.models.networks import Network
from worker.pictures import geometry, render

#: (H, W, 3) RGB, as `explain` takes it.
Picture = NDArray[np.uint8]

__all__ = ["memory_allows_twice"]


@dataclass(frozen=True)
class Answer:
    """What one image's batch came back with: one class, one layer."""

    map: NDArray[Any]
    #: None where a GPU was to draw and to send back nothing else.
    guided: NDArray[Any] | None
    #: What `draw` needs.
    explained: Explained


def load(
    name: str,
    device: torch.device,
    size: tuple[int, int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    prepared: bool = True,
) -> Network:
    """Load a network with random weights, the same on every call."""
    return networks.load(name, "random", device=device, size=size, dtype=dtype, prepared=prepared)


def on_tensors(network: Network, inputs: torch.Tensor, class_ids: torch.Tensor | None, precision: str) -> Explanations:
    """Explain a batch that is on the device already, in a precision, as a worker's device does."""
    autocast = None if half_precision(network.model) else PRECISIONS[precision]
    with float32_products(tf32=precision == TF32):
        return explain_many(network.model, network.views, inputs, class_ids, autocast=autocast)


def noise(network: Network, count: int) -> list[Picture]:
    """Pictures of noise of the network's size, on the host, the same on every call."""
    return list(np.random.default_rng(0).integers(0, 256, (count, *network.size, 3), np.uint8))


def explain(
    network: Network,
    pictures: Sequence[Picture],
    precision: str = "fp32",
    halved: Callable[[int], object] = lambda _: None,
    *,
    numbers: bool = False,
) -> list[Answer]:
    """Take a batch to the device and its answers back, of the most likely class of each image; wait for them."""
    return _answers(_launched(network, pictures, precision, halved, numbers=numbers))


def explain_in_turn(network: Network, pictures: Sequence[Picture], times: int) -> None:
    """Explain the same batch again and again; the device has the next before one is back, as in a worker."""
    under_way: list[Computation] = []
    for _ in range(times):
        under_way.append(_launched(network, pictures, "fp32", lambda _: None, numbers=False))
        if len(under_way) > 1:
            _answers(under_way.pop(0))
    for each in under_way:
        _answers(each)


def _launched(
    network: Network, pictures: Sequence[Picture], precision: str, halved: Callable[[int], object], *, numbers: bool
) -> Computation:
    # As workers do: a GPU draws, and guided gradients stay there; a CPU's pictures are drawn by OpenCV.
    draws = network.device.type == "cuda"
    return explain_classes(
        network,
        pictures,
        [None] * len(pictures),
        precision=precision,
        draw=render.OUTPUTS if draws else (),
        numbers=numbers or not draws,
        halved=halved,
    )


def _answers(computation: Computation) -> list[Answer]:
    taken = []
    for answer in computation.answers():
        if not isinstance(answer, list):
            raise answer
        taken.append(Answer(answer[0].map, answer[0].guided, answer[0]))
    return taken


# -- the host's stages, in their order ---------------------------------------------------------------------------------


def photo(number: int, width: int = 500, height: int = 375) -> bytes:
    """A JPEG file of about the size of a web photo: smooth colors with some noise."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    picture = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes())


def decode(data: bytes) -> Picture:
    """Bytes become a picture; raises ImportError where simplejpeg is not installed."""
    from worker.pictures.decode import decode as decoded

    return decoded(data)


def decode_without_extras(data: bytes) -> Picture:
    """The same by OpenCV alone, so that the later stages can be measured without simplejpeg."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def fit(picture: Picture, network: Network) -> Picture:
    """Bring a picture to the network's size."""
    return geometry.fit(picture, network.size, "squash", network.resize_px)[0]


def draw(picture: Picture, answer: Answer) -> dict[str, Picture]:
    """The four pictures of an image, drawn here unless the device did."""
    if answer.explained.drawn is not None:
        return answer.explained.drawn.pictures
    assert answer.guided is not None
    return render.draw(
        picture, render.heat_of(answer.explained.maps, (picture.shape[0], picture.shape[1]))[0], answer.guided
    )


def encode(pictures: dict[str, Picture]) -> dict[str, bytes]:
    """Their files."""
    return {kind: render.encode(picture) for kind, picture in pictures.items()}
