"""The device that this process owns: batches of arrays go in, arrays of explanations come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from producer.jobs.errors import JobError, ModelError, WorkerError
from worker.explain import OutOfMemory, explain

if TYPE_CHECKING:
    from worker.networks import Network

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Explained:
    """One image's part of an explained batch, in host memory."""

    #: (K,) before softmax.
    logits: Floats
    class_id: int
    #: (h, w), not normalised.
    map: Floats
    #: (H, W, 3), signed.
    guided: Floats
    guided_relus: int


def choose(kind: str) -> torch.device:
    """Give the one device that the launcher left visible.

    Raises:
        WorkerError: A GPU was asked for and there is none to be used.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise WorkerError("no CUDA device can be used: check the driver with `nvidia-smi`, or use --devices cpu")
    return torch.device(kind)


def explain_arrays(
    network: Network, inputs: Sequence[Floats], class_ids: Sequence[int | None]
) -> list[Explained | ModelError]:
    """Explain a batch; when it does not fit into the device's memory, its halves one after the other.

    Args:
        network: Model and layer on their device.
        inputs: N arrays (3, H, W) float32, of one size.
        class_ids: N class ids, None for the predicted class; in range.

    Returns:
        N explanations, an error in place of one whose logits are not finite.

    Raises:
        JobError: The network cannot be explained at this layer.
        WorkerError: The device failed.
    """
    try:
        return _explain(network, inputs, class_ids)
    except OutOfMemory as error:
        if len(inputs) == 1:
            raise WorkerError(f"not even one image fits into the memory of {network.device}") from error
    except ValueError as error:
        raise JobError(f"{network.name} cannot be explained at {network.layer_name}: {error}") from None
    except RuntimeError as error:
        raise WorkerError(f"{network.device} failed: {str(error).splitlines()[0]}") from error
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(inputs) // 2
    first = explain_arrays(network, inputs[:half], class_ids[:half])
    return first + explain_arrays(network, inputs[half:], class_ids[half:])


def _explain(
    network: Network, inputs: Sequence[Floats], class_ids: Sequence[int | None]
) -> list[Explained | ModelError]:
    batch = torch.from_numpy(np.stack(inputs))  # (N, 3, H, W)
    if network.device.type == "cuda":
        batch = batch.pin_memory().to(network.device, non_blocking=True)
    answer = explain(network.model, network.layer, batch, class_ids)
    logits = answer.logits.float().cpu().numpy()  # (N, K)
    maps = answer.maps.float().cpu().numpy()  # (N, h, w)
    guided = answer.guided.permute(0, 2, 3, 1).float().cpu().numpy()  # (N, H, W, 3)
    classes = answer.class_ids.cpu().tolist()
    if not len(inputs) == len(logits) == len(maps) == len(guided):
        raise AssertionError("a batch came back with another length")
    return [
        Explained(row, class_id, map_, gradient, answer.guided_relus)
        if np.isfinite(row).all()
        else ModelError("the network's answer is not finite for this image")
        for row, class_id, map_, gradient in zip(logits, classes, maps, guided, strict=True)
    ]
