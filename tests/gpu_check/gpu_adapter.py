"""All that the check calls of the worker's way from a file to its pictures: what changes there changes here alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from worker.device.batches import PRECISIONS, TF32, Explained, explain_classes, memory_allows_twice
from worker.engine.explain import Explanations, explain_many, half_precision
from worker.engine.precision import float32_products
from worker.models import networks
from worker.models.networks import Network
from worker.pictures import geometry, render

#: One picture as the network reads it, for `explain`.
Prepared = NDArray[np.float32]

__all__ = ["memory_allows_twice"]


@dataclass(frozen=True)
class Answer:
    """What one image's batch came back with: one class, one layer."""

    map: NDArray[Any]
    guided: NDArray[Any]
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


def noise(network: Network, count: int) -> list[Prepared]:
    """Pictures of noise as the network reads them, on the host, the same on every call."""
    shape = (count, 3, *network.size)
    return list(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def explain(
    network: Network,
    pictures: Sequence[Prepared],
    precision: str = "fp32",
    halved: Callable[[int], object] = lambda _: None,
) -> list[Answer]:
    """Take a batch from the host to the device and its answers back, the most likely class of each image."""
    answers = explain_classes(network, pictures, [None] * len(pictures), precision=precision, halved=halved)
    taken = []
    for answer in answers:
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


def decode(data: bytes) -> NDArray[np.uint8]:
    """Bytes become a picture; raises ImportError where simplejpeg is not installed."""
    from worker.pictures.decode import decode as decoded

    return decoded(data)


def decode_without_extras(data: bytes) -> NDArray[np.uint8]:
    """The same by OpenCV alone, so that the later stages can be measured without simplejpeg."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def fit(picture: NDArray[np.uint8], network: Network) -> NDArray[np.uint8]:
    """Bring a picture to the network's size."""
    return geometry.fit(picture, network.size, "squash", network.resize_px)[0]


def prepare(picture: NDArray[np.uint8], network: Network) -> Prepared:
    """Make of a picture of the network's size what `explain` takes."""
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (network.mean, network.std))
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)
    return (planes / np.float32(255) - mean) / std


def draw(picture: NDArray[np.uint8], answer: Answer) -> dict[str, NDArray[np.uint8]]:
    """The four pictures of an image."""
    heat = geometry.average_maps(answer.explained.maps, picture.shape[:2])
    return render.draw(picture / np.float32(255), heat, answer.guided)


def encode(pictures: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Their files."""
    return {kind: render.encode(picture) for kind, picture in pictures.items()}
