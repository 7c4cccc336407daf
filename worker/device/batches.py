"""The device that this process owns: batches of arrays go in, arrays of explanations come out."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from producer.jobs.model.errors import DeviceError, JobError, ModelError, NoRoom, NotHere, WorkerError
from worker.engine.explain import Explanations, OutOfMemory, View, as_they_are, explain_many
from worker.engine.methods import GRADCAM
from worker.models.memory import available_bytes

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from worker.models.networks import Network

Floats = NDArray[np.floating[Any]]
#: The classes asked of one image: one, several, or None for the most likely.
Asked = int | Sequence[int] | None

FP32: Final = "fp32"
#: In what the forward pass runs where it may, by the precision's name in a job.
PRECISIONS: Final[dict[str, torch.dtype | None]] = {FP32: None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: glibc's numbers of two options of its allocator (malloc.h), and the largest values they take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 1, 2**30


@dataclass(frozen=True)
class Explained:
    """What one class has to do with one image of an explained batch, in host memory."""

    #: (K,) before softmax, of all classes.
    logits: Floats
    class_id: int
    #: One (h, w) a layer looked at, not normalized.
    maps: tuple[Floats, ...]
    #: (H, W, 3), signed.
    guided: Floats
    guided_relus: int

    @property
    def map(self) -> Floats:
        """(h, w), the map of the only or first layer, not normalized."""
        return self.maps[0]


def open_device(kind: str) -> torch.device:
    """Give the one device that the launcher left visible, and set this process up for it.

    Raises:
        WorkerError: A GPU was asked for and there is none to be used.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise WorkerError("no CUDA device can be used: check the driver with `nvidia-smi`, or use --devices cpu")
    if kind == "cuda":
        # Batches have one shape, so that the search for the fastest convolutions pays.
        torch.backends.cudnn.benchmark = True
    else:
        _keep_freed_memory()
    return torch.device(kind)


def _keep_freed_memory() -> None:
    """Let the C library keep what large tensors leave: getting it anew from the kernel takes a tenth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it; others do without
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def size_key(network: Network, spec: JobSpec) -> str:
    """What the best batch size depends on, in words: network, layers, input, method, precision, classes, device."""
    height, width = network.size
    cuda = network.device.type == "cuda"
    where = torch.cuda.get_device_name(network.device) if cuda else f"{torch.get_num_threads()} CPU threads"
    how = f"{spec.method} {spec.precision}" + (f" top {spec.top_k}" if spec.top_k > 1 else "")
    how += " and its label" if spec.explain == "both" else ""
    return f"{network.workload} at {','.join(network.layer_names)} {height}x{width} {how} on {where}"


def memory_allows_twice() -> bool:
    """Whether a batch twice as large as the largest so far will fit, as far as can be told."""
    if torch.cuda.is_available():
        free_bytes, _ = torch.cuda.mem_get_info()
        # What the largest batch took is about the peak without what lies there between batches; its room is ours again.
        batch_bytes = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        return 2 * batch_bytes < free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes < available_bytes()


def explain_classes(
    network: Network,
    inputs: Sequence[Floats],
    class_ids: Sequence[Asked],
    *,
    top_k: int = 1,
    method: str = GRADCAM,
    precision: str = FP32,
    halved: Callable[[int], object] = lambda _: None,
) -> list[list[Explained] | ModelError]:
    """Explain a batch; when it does not fit into the device's memory, its halves one after the other.

    The whole batch costs as many backward passes as the image with the most classes.

    Args:
        network: Model and layers on their device.
        inputs: N arrays (3, H, W) float32, of one size.
        class_ids: Of each image a class id, several, or None for the `top_k` most likely classes; in range.
        top_k: At most as many as the network knows are taken.
        method: How maps are made, a name of `worker.engine.methods.METHODS`.
        precision: A name of `PRECISIONS`.
        halved: Called with the size of each batch that did not fit.

    Returns:
        Of each image one explanation a class, most likely first where none was given; an error in place of an image
        whose logits are not finite.

    Raises:
        JobError: The network cannot be explained at this layer, or not in this precision.
        WorkerError: The device failed.
    """
    autocast = _autocast(precision, network.device)
    try:
        return _explain(network, inputs, class_ids, top_k, method, autocast)
    except OutOfMemory as error:
        if len(inputs) == 1:
            raise NoRoom(f"not even one image fits into the memory of {network.device}") from error
    except ValueError as error:
        raise JobError(f"{network.name} cannot be explained at {network.layer_name}: {error}") from None
    except RuntimeError as error:
        raise DeviceError(f"{network.device} failed: {str(error).splitlines()[0]}") from error
    halved(len(inputs))
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    answers: list[list[Explained] | ModelError] = []
    middle = len(inputs) // 2
    for half in (slice(middle), slice(middle, None)):
        answers += explain_classes(
            network, inputs[half], class_ids[half], top_k=top_k, method=method, precision=precision, halved=halved
        )
    return answers


def _autocast(precision: str, device: torch.device) -> torch.dtype | None:
    if precision not in PRECISIONS:
        raise JobError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise NotHere(f"fp16 needs a CUDA device, and this one is {device.type}; use bf16")
    return PRECISIONS[precision]


def _explain(
    network: Network,
    inputs: Sequence[Floats],
    class_ids: Sequence[Asked],
    top_k: int,
    method: str,
    autocast: torch.dtype | None,
) -> list[list[Explained] | ModelError]:
    views = network.views or [View(network.layer, as_they_are)]
    asked = [_row(ids, min(top_k, network.classes)) for ids in class_ids]
    answer = explain_many(
        network.model,
        views,
        _batch(inputs, network.device),
        _rectangle(asked),
        method=method,
        autocast=autocast,
    )
    return _unpacked(answer, [len(row) for row in asked])


def _row(asked: Asked, top_k: int) -> list[int]:
    """One image's class ids as `explain_many` wants them: -1 in column k is the k-th most likely class."""
    if asked is None:
        return [-1] * top_k
    return [asked] if isinstance(asked, int) else list(asked)


def _rectangle(rows: Sequence[list[int]]) -> Tensor:
    """(N, K) of rows of other lengths; what is filled in is explained in vain, in passes that others need."""
    columns = max(map(len, rows))
    return torch.tensor([row + [-1] * (columns - len(row)) for row in rows])


def _batch(inputs: Sequence[Floats], device: torch.device) -> Tensor:
    """(N, 3, H, W) on the device, channels last in memory: copied once on the host, and to a GPU while it works on."""
    on_cuda = device.type == "cuda"
    batch = torch.empty(
        (len(inputs), *inputs[0].shape), memory_format=torch.channels_last, pin_memory=on_cuda, dtype=torch.float32
    )
    for image, array in zip(batch, inputs, strict=True):
        image.copy_(torch.from_numpy(array))
    return batch.to(device, non_blocking=True) if on_cuda else batch


def _unpacked(answer: Explanations, classes: Sequence[int]) -> list[list[Explained] | ModelError]:
    """Part a batch into its images, of each as many classes as it asked for."""
    logits = answer.logits.cpu().numpy()  # (N, number of classes)
    class_ids = answer.class_ids.tolist()  # N of K
    views = [maps.cpu().numpy() for maps in answer.maps]  # each (N, K, h, w)
    guided = answer.guided.float().permute(0, 1, 3, 4, 2).cpu().numpy()  # (N, K, H, W, 3)
    if not len(classes) == len(logits) == len(guided) == len(class_ids):
        raise AssertionError("a batch came back with another length")
    return [
        [
            Explained(row, class_ids[n][k], tuple(maps[n, k] for maps in views), guided[n, k], answer.guided_relus)
            for k in range(classes[n])
        ]
        if np.isfinite(row).all()
        else ModelError("the network's answer is not finite for this image")
        for n, row in enumerate(logits)
    ]
