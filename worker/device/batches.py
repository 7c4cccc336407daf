"""The device that this process owns: batches of pictures go in, explanations and pictures come out.

Nothing here waits for a GPU: work is put into its streams, and whoever wants the answers waits for them.
"""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from producer.jobs.model.errors import DeviceError, JobError, ModelError, NoRoom, NotHere, WorkerError
from producer.jobs.model.text import quoted
from worker.device.draw import draw_batch
from worker.device.inputs import normalized
from worker.device.transfer import Copies, Transfers
from worker.engine.detection import COUNT, Detection
from worker.engine.explain import OutOfMemory, View, as_they_are, explain_many, half_precision, is_out_of_memory
from worker.engine.methods import GRADCAM
from worker.engine.precision import float32_products, has_tf32
from worker.models.memory import available_bytes
from worker.models.own_model import DETECTION
from worker.pictures.min_max import not_finite

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from worker.models.networks import Network

Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]
#: The classes asked of one image: one, several, or None for the most likely.
Asked = int | Sequence[int] | None

FP32: Final = "fp32"
TF32: Final = "tf32"
#: In what the forward pass runs where it may, by the precision's name in a job; None is float32 throughout.
PRECISIONS: Final[dict[str, torch.dtype | None]] = {
    FP32: None,
    TF32: None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
#: How errors of GPUs and of their libraries are worded.
_OF_DEVICE: Final = re.compile(r"CUDA|cuDNN|CUBLAS|CUSOLVER|CUFFT|HIP|NCCL|device-side")
#: glibc's numbers of two options of its allocator (malloc.h), and the largest values they take.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 2**31 - 1, 2**30


@dataclass(frozen=True)
class DrawnOne:
    """The pictures of one class of one image, drawn on the device, in host memory."""

    #: Output → (H, W, 3) uint8 RGB.
    pictures: dict[str, Picture]
    #: Whether each map was the same number everywhere.
    flat: bool


@dataclass(frozen=True)
class Explained:
    """What one class has to do with one image of an explained batch, in host memory."""

    #: (K,) before softmax, of all classes.
    logits: Floats
    class_id: int
    #: One (h, w) a layer looked at, not normalized.
    maps: tuple[Floats, ...]
    #: (H, W, C), signed; None where only pictures were asked for.
    guided: Floats | None
    guided_relus: int
    #: What the device drew; None where it draws nothing.
    drawn: DrawnOne | None = None
    #: What the reader of the network's output tells of this image, as in `worker.engine.output.Scores`.
    beside: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def map(self) -> Floats:
        """(h, w), the map of the only or first layer, not normalized."""
        return self.maps[0]


Answers = list[list[Explained] | ModelError]


class Computation:
    """A batch that is under way on the device, in one part, or in several where it did not fit at once."""

    def __init__(self, parts: Sequence[_Part], *, overlaps: bool) -> None:
        self._parts = parts
        #: Whether the device works at it while the caller does something else.
        self.overlaps = overlaps

    def answers(self) -> Answers:
        """Wait for its end.

        Returns:
            Of each image one explanation a class, most likely first where none was asked for, or one a box, of which
            there may be none; an error in place of an
            image whose logits or pictures are not finite.

        Raises:
            DeviceError: The device failed meanwhile.
        """
        try:
            return [answer for part in self._parts for answer in part.answers()]
        except RuntimeError as error:
            raise _device_error("the device", error) from error


def open_device(kind: str) -> torch.device:
    """Give the one device that the launcher left visible, and set this process up for it.

    Raises:
        WorkerError: A GPU was asked for and there is none to be used.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise WorkerError("no CUDA device can be used: check the driver with `nvidia-smi`, or use --devices cpu")
    # Pictures and, on a CPU, tensors come and go.
    _keep_freed_memory()
    if kind == "cuda":
        # Batches have one shape, so that the search for the fastest convolutions pays.
        torch.backends.cudnn.benchmark = True
    return torch.device(kind)


def _keep_freed_memory() -> None:
    """Let the C library keep what large arrays leave: getting it anew from the kernel takes a tenth of the time."""
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
    how += f" {spec.max_boxes} boxes" if network.task == DETECTION else ""
    how += " and its label" if spec.explain == "both" else ""
    how += " whole model" if half_precision(network.model) else ""
    return f"{network.workload} at {','.join(network.layer_names)} {height}x{width} {how} on {where}"


def memory_allows_twice() -> bool:
    """Whether a batch twice as large as the largest so far will fit, as far as can be told."""
    if torch.cuda.is_available():
        free_bytes, _ = torch.cuda.mem_get_info()
        # The room of a batch is ours again. One that is just being launched makes the answer a careful one.
        return 2 * _taken.largest_bytes < free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak_bytes < available_bytes()


class _Taken:
    """The most memory of a GPU that a batch took beyond what lay there before it."""

    def __init__(self) -> None:
        self.largest_bytes = 0

    @contextmanager
    def by_batch(self, device: torch.device) -> Iterator[None]:
        """Measure a batch from its launch to the end of it: freed memory is free for the next launch at once."""
        if device.type != "cuda":
            yield
            return
        resting = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield
        self.largest_bytes = max(self.largest_bytes, torch.cuda.max_memory_allocated(device) - resting)


_taken: Final = _Taken()


def explain_classes(
    network: Network,
    pictures: Sequence[Picture],
    class_ids: Sequence[Asked],
    *,
    top_k: int = 1,
    method: str = GRADCAM,
    precision: str = FP32,
    down: bool = False,
    draw: Collection[str] = (),
    numbers: bool = True,
    halved: Callable[[int], object] = lambda _: None,
) -> Computation:
    """Explain a batch; when it does not fit into the device's memory, its halves one after the other.

    The whole batch costs as many backward passes as the image with the most classes. A GPU has only been told when this
    returns; what is asked of it next, it does next.

    Args:
        network: Model and layers on their device.
        pictures: N (H, W, C) uint8, of the network's size and channels.
        class_ids: Of each image a class id, several, or None for the `top_k` most likely classes; in range.
        top_k: At most as many as the network knows are taken.
        method: How maps are made, a name of `worker.engine.methods.METHODS`.
        precision: A name of `PRECISIONS`.
        down: Whether to explain what speaks against a class.
        draw: The outputs to draw on the device, of an input of 1 or 3 channels.
        numbers: Whether guided gradients come back.
        halved: Called with the size of each batch that did not fit.

    Raises:
        JobError: The network cannot be explained at this layer, or not in this precision.
        WorkerError: The device failed.
    """
    autocast = _autocast(precision, network)
    try:
        with float32_products(tf32=precision == TF32), _taken.by_batch(network.device):
            return _explain(network, pictures, class_ids, top_k, method, autocast, draw, down=down, numbers=numbers)
    except (OutOfMemory, ValueError, RuntimeError, MemoryError) as error:
        # Also what goes there and back, and is drawn, may not fit.
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            if _is_of_device(error):
                raise _device_error(str(network.device), error) from error
            raise JobError(
                f"{network.name} cannot be explained at {network.layer_name}: {_first_line(error)}"
            ) from error
        if len(pictures) == 1:
            raise NoRoom(f"not even one image fits into the memory of {network.device}") from error
    # Outside of the block: the error's traceback would keep alive what did not fit.
    halved(len(pictures))
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(pictures) // 2
    halves = [
        explain_classes(
            network,
            pictures[half],
            class_ids[half],
            top_k=top_k,
            method=method,
            precision=precision,
            down=down,
            draw=draw,
            numbers=numbers,
            halved=halved,
        )
        for half in (slice(middle), slice(middle, None))
    ]
    return Computation([part for each in halves for part in each._parts], overlaps=halves[0].overlaps)


def _device_error(device: str, error: Exception) -> DeviceError:
    return DeviceError(f"{device} failed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_of_device(error: Exception) -> bool:
    """Whether an error of torch is the device's. What else torch raises, shapes that do not fit, is the model's."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) or bool(_OF_DEVICE.search(str(error)))


def _autocast(precision: str, network: Network) -> torch.dtype | None:
    device = network.device
    if precision not in PRECISIONS:
        raise JobError(f"unknown precision {quoted(precision)}; known are {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise NotHere(f"fp16 needs a CUDA device, and this one is {device.type}; use bf16")
    if precision == TF32 and not has_tf32(device):
        what = "the CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        raise NotHere(f"tf32 needs an NVIDIA GPU of Ampere or later, and this is {what}; use fp32")
    # A model that is in half precision itself needs no help.
    return None if half_precision(network.model) else PRECISIONS[precision]


def _explain(
    network: Network,
    pictures: Sequence[Picture],
    class_ids: Sequence[Asked],
    top_k: int,
    method: str,
    autocast: torch.dtype | None,
    draw: Collection[str],
    *,
    down: bool,
    numbers: bool,
) -> Computation:
    boxes = network.output if isinstance(network.output, Detection) else None
    views = network.views or [View(network.layer, as_they_are)]
    asked = [_row(ids, min(top_k, network.classes)) for ids in class_ids]
    transfers = _transfers(network.device)
    batch = transfers.to_device(pictures)  # (N, H, W, C) uint8
    answer = explain_many(
        network.model,
        views,
        normalized(batch, network.mean, network.std),
        _rectangle(asked) if boxes is None else None,
        top_k=boxes.max_boxes if boxes else top_k,
        method=method,
        autocast=autocast,
        output=network.output,
        down=down,
    )
    there = {"logits": answer.logits, "class_ids": answer.class_ids}
    there |= {_layer(number): maps for number, maps in enumerate(answer.maps)}  # each (N, K, h, w)
    there |= {_beside(name): each for name, each in answer.beside.items()}  # each (N, …)
    if numbers:
        there["guided"] = answer.guided.float().permute(0, 1, 3, 4, 2)  # (N, K, H, W, C)
    if draw:
        drawn = draw_batch(batch, answer.maps, answer.guided, draw)
        there |= {"flat": drawn.flat, "finite": drawn.finite, **drawn.pictures}
    classes = [len(row) for row in asked]
    copies = transfers.to_host(there)
    part = _Part(copies, classes, len(answer.maps), draw, answer.guided_relus, tuple(answer.beside))
    return Computation([part], overlaps=transfers.overlap)


def _layer(number: int) -> str:
    return f"map {number}"


def _beside(name: str) -> str:
    return f"beside {name}"


@lru_cache(maxsize=4)
def _transfers(device: torch.device) -> Transfers:
    return Transfers(device)


@dataclass(frozen=True)
class _Part:
    """What was computed at once, on its way to the host."""

    copies: Copies
    #: Of each image how many classes it asked for.
    classes: Sequence[int]
    layers: int
    #: The outputs that the device drew.
    drawn: Collection[str]
    guided_relus: int
    #: What else is told of each image.
    beside: Sequence[str] = ()

    def answers(self) -> Answers:
        """Part it into its images, of each as many classes as it asked for."""
        here: dict[str, NDArray[Any]] = self.copies.wait()
        # Of a network that detects, how many boxes an image has is known only now.
        counts = here[_beside(COUNT)].tolist() if COUNT in self.beside else self.classes
        if not len(self.classes) == len(here["logits"]) == len(here["class_ids"]):
            raise AssertionError("a batch came back with another length")
        known = np.isfinite(here["logits"]).all(axis=1)  # (N,)
        return [
            self._of_image(here, image, classes)
            if known[image]
            else ModelError("the network's answer is not finite for this image")
            for image, classes in enumerate(counts)
        ]

    def _of_image(self, here: dict[str, NDArray[Any]], image: int, classes: int) -> list[Explained] | ModelError:
        if self.drawn and not here["finite"][image, :classes].all():
            return not_finite()
        return [self._of_class(here, (image, column)) for column in range(classes)]

    def _of_class(self, here: dict[str, NDArray[Any]], at: tuple[int, int]) -> Explained:
        return Explained(
            here["logits"][at[0]],
            int(here["class_ids"][at]),
            tuple(here[_layer(number)][at] for number in range(self.layers)),
            here["guided"][at] if "guided" in here else None,
            self.guided_relus,
            DrawnOne({name: here[name][at] for name in self.drawn}, bool(here["flat"][at])) if self.drawn else None,
            {name: here[_beside(name)][at[0]] for name in self.beside},
        )


def _row(asked: Asked, top_k: int) -> list[int]:
    """One image's class ids as `explain_many` wants them: -1 in column k is the k-th most likely class."""
    if asked is None:
        return [-1] * top_k
    return [asked] if isinstance(asked, int) else list(asked)


def _rectangle(rows: Sequence[list[int]]) -> Tensor:
    """(N, K) of rows of other lengths; what is filled in is explained in vain, in passes that others need."""
    columns = max(map(len, rows))
    return torch.tensor([row + [-1] * (columns - len(row)) for row in rows])
