"""Load a network by its name and weights: a model that can be explained, with all that its pictures need.

Names are those of torchvision's models for classification, segmentation and detection, `efficientnet_lite0`,
`timm/NAME` where timm is installed, and those of networks that are registered here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import JobError, NotHere
from producer.jobs.model.network_names import ALIASES, HF, known
from producer.jobs.model.text import quoted
from worker.engine.explain import View
from worker.engine.output import Entry
from worker.engine.segmentation import Segmentation
from worker.models import detectors
from worker.models import weights as files
from worker.models.architectures import BILINEAR, DEFAULT, Architecture, find, own_network, weights_names, with_classes
from worker.models.batchnorm import make_fast
from worker.models.cache import model_bytes
from worker.models.construction import as_job_error, build, build_with_weights
from worker.models.layers import LAST_CONV, Reads, Survey, select_layers, shortcut_note, survey
from worker.models.own_model import CLASSIFICATION, DETECTION, SEGMENTATION

if TYPE_CHECKING:
    from producer.jobs.model.activations import Activation
    from worker.models.bundles import LocalBundle

RANDOM: Final = "random"
_EXAMPLE_PX: Final = 224


@dataclass(frozen=True)
class Network:
    """A model in eval mode with frozen parameters, and the meaning of its inputs and answers."""

    #: The full name, aliases resolved.
    name: str
    model: nn.Module
    #: The (first) module of `model` whose output becomes maps, and its dotted name. `last-conv` of a transformer, whose
    #: one convolution is its entrance, is `last-features`.
    layer: nn.Module
    layer_name: str
    #: (height, width) of the input in px; mean and standard deviation of each channel in [0, 1].
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: The size in px to which its own preprocessing brings the shorter side before it crops; None where nobody says.
    resize_px: int | None
    classes: int
    #: The name of each class; None where the weights have classes of their own.
    categories: list[str] | None
    device: torch.device
    #: SHA-256 in hexadecimal of the weights file, or of the numbers that a registered network came with; or "random".
    weights_digest: str
    random: bool
    #: Each layer that the job asks for with the way to its maps, and their dotted names.
    views: tuple[View, ...] = ()
    layer_names: tuple[str, ...] = ()
    #: What was taken of the weights file, what would have fitted as well, what was left; or "random".
    weights_read: str = ""
    #: How many channels it reads: 3 (RGB) or 1 (grey).
    channels: int = 3
    #: Where in its output the logits are: a key, an attribute or a place; None for the usual one.
    output: Entry = None
    #: Which part of its output is read, in words; "" where the output is the logits.
    output_read: str = ""
    #: What makes a probability of an output; None for the usual, `worker.models.predictions.usual`.
    activation: Activation | None = None
    #: What it tells: `classification`, `segmentation` or `detection`.
    task: str = CLASSIFICATION
    #: What was done with the model so that it can be explained, and what could have been meant otherwise; sentences.
    remarks: tuple[str, ...] = ()
    #: How pictures are resized, and how its own preprocessing does it; as of `Architecture`.
    resize_filter: str = BILINEAR
    own_filter: str = BILINEAR

    @property
    def workload(self) -> str:
        """Name what the work of a batch depends on: of models of one's own, and in folders, many may have one name."""
        return self.name if self.name in known().names else f"{self.name} {self.weights_digest[:12]}"

    def mask(self, predicted: NDArray[np.integer[Any]], class_id: int) -> NDArray[np.bool_]:
        """Return the pixels over which a class's scores are summed, of the (h, w) classes predicted."""
        mask_class = self.output.mask_class if isinstance(self.output, Segmentation) else None
        return np.asarray(predicted == (class_id if mask_class is None else mask_class))

    @property
    def preprocessing(self) -> str:
        """Say for people what the network reads: height and width, mean and standard deviation, how it is resized."""
        (height, width), numbers = self.size, [" ".join(f"{n:.6g}" for n in each) for each in (self.mean, self.std)]
        grey = ", grey" if self.channels == 1 else ""
        return f"{height} x {width} px{grey}, mean {numbers[0]}, std {numbers[1]}, resized {self.resize_filter}"


#: What is asked for: a name of weights, a file or a folder, or files that lie apart.
Weights: TypeAlias = "str | Path | LocalBundle | None"


def _no_matter(_size_bytes: int) -> None:
    pass


def load(
    name: str,
    weights: Weights = None,
    layer: str = LAST_CONV,
    device: str | torch.device = "cpu",
    download: files.Download | None = None,
    labels: Sequence[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    weight_key: str | None = None,
    prepared: bool = True,
    dtype: torch.dtype | None = None,
    make_room: Callable[[int], None] = _no_matter,
) -> Network:
    """Load a network, its weights and the layer to look at.

    Args:
        name: as above; `vgg`, `resnet`, `densenet` and `inception` are short for the commonest of their kind; or `hf`,
            of which the files in the folder `weights` say what it is.
        weights: None or "DEFAULT", of a registered network those that it comes with; a torchvision weights name; the
            path of a file; or "random", the same on each call.
            The head of a file's weights gives the number of classes, and preprocessing is that of the default weights.
            `worker.models.candidates` says which weights of a file are taken.
        layer: "last-conv", the last convolution with a map that runs in a forward pass (in a transformer, as the next);
            "last-features", the last map with all its channels before global pooling; a module's dotted name; or
            several of them with commas between. "last-conv" of a registered network is the layer that it names itself.
        device: where the model is put.
        download: `(url, path)` fetches weights that are not yet among torch.hub's checkpoints; raises what it likes.
        labels: the name of each class, in place of those that come with the weights.
        size: (height, width) in px of what it reads, in place of that of the weights.
        weight_key: the name under which the weights are in a file that holds several, such as an average.
        prepared: whether to make the model faster: BatchNorms folded into convolutions, memory channels last. Its
            answers are the same to rounding; its state dict is not.
        dtype: in what the model's numbers are kept and computed, such as `torch.bfloat16`; None leaves them in float32.
        make_room: called with the bytes that the model takes, while it is on the CPU and nothing has doubled it yet.

    Raises:
        JobError: the name, weights, layer or labels cannot be used, in one sentence that says what can.
        NotHere: an optional package is missing here.
    """
    name = full_name(name)
    # Models outlive the call, and autograd can never use a tensor made in inference mode.
    with torch.inference_mode(False):
        architecture, model, read, digest = _built(name, weights, size, download or files.download, weight_key)
        make_room(model_bytes(model))
        files.check_finite(model, name)
        model.eval().requires_grad_(False)
        seen = _surveyed(architecture, model)
        classes = detectors.classes_of(model) if architecture.task == DETECTION else seen.classes
        views = select_layers(seen, layer)
        if architecture.task == DETECTION:
            # Nothing is folded: which boxes there are jumps with the last bits, so that answers could not be compared.
            model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif prepared:
            size_px = _example_size(architecture)
            make_fast(model, [view.module for view in views.values()], size_px, device, seen.reads, dtype)
        else:
            model.to(device=device, dtype=dtype)
    return Network(
        name=architecture.name,
        model=model,
        layer=next(iter(views.values())).module,
        layer_name=next(iter(views)),
        size=architecture.size,
        mean=architecture.mean,
        std=architecture.std,
        resize_px=architecture.resize_px,
        classes=classes,
        categories=_categories(architecture, classes, labels),
        device=torch.device(device),
        weights_digest=digest,
        random=weights == RANDOM,
        views=tuple(views.values()),
        layer_names=tuple(views),
        weights_read=read,
        channels=architecture.channels,
        output=architecture.output,
        output_read=seen.output_read,
        activation=architecture.activation,
        task=architecture.task,
        remarks=tuple(_remarks(architecture, seen, layer)),
        resize_filter=architecture.resize_filter,
        own_filter=architecture.own_filter,
    )


def _example_size(architecture: Architecture) -> tuple[int, int]:
    """Return the size of the picture by which a faster model is compared with the one it was made of.

    torchvision's segmentation reads any size; in float64 at its own 520 px it would take several GB.
    """
    height, width = architecture.size
    if architecture.task != SEGMENTATION or architecture.own is not None:
        return height, width
    return min(height, _EXAMPLE_PX), min(width, _EXAMPLE_PX)


def _remarks(architecture: Architecture, seen: Survey, layer: str) -> Iterator[str]:
    if seen.output_read and architecture.own is not None and architecture.output is None:
        yield f"Explained is {seen.output_read}; NetworkSpec(output=…) takes another part of the output."
    if layer == LAST_CONV and (note := shortcut_note(seen)):
        yield note


def _built(
    name: str, weights: Weights, size: tuple[int, int] | None, download: files.Download, weight_key: str | None
) -> tuple[Architecture, nn.Module, str, str]:
    """Build a network with its weights; what it is, the model, what was taken of the file, and its digest."""
    if name == HF:
        from worker.models.hugging_face import (
            load_bundle,  # only here: it needs pydantic, which `make gpu-check` does not
        )

        local = _local_bundle(weights)
        return *load_bundle(local, size), local.bundle.sha256
    if not (weights is None or isinstance(weights, str | Path)):
        raise JobError(f"the weights are a model of Hugging Face: give --network {HF}, not {name}")
    architecture = find(name, weights, size)
    _check_classifier(architecture, weights)
    if weights == RANDOM:
        model = build(architecture, architecture.classes)
        files.randomize(model)
        return architecture, model, RANDOM, RANDOM
    if architecture.own is not None and weights in (None, DEFAULT):
        model = build(architecture, architecture.classes)
        return architecture, model, f"those it came with, of {architecture.own.function}", files.digest_of(model)
    path = _weights_file(architecture, weights, download)
    return *build_with_weights(architecture, path, size, weight_key), sha256_of(path)


def _local_bundle(weights: Weights) -> LocalBundle:
    from worker.models.bundles import LocalBundle, of_folder

    if isinstance(weights, LocalBundle):
        return weights
    folder = None if weights in (None, RANDOM, DEFAULT) else Path(str(weights)).expanduser()
    if folder is None or not folder.is_dir():
        raise JobError(f"the weights of {HF} are a folder of config.json and model.safetensors, not {quoted(weights)}")
    return of_folder(folder)


def full_name(name: str) -> str:
    """Resolve a short name."""
    return ALIASES.get(name, name)


def fetch_weights(name: str, weights: str, download: files.Download | None = None) -> None:
    """Bring the weights of a network to this machine if they are not here; raises what `load` raises for them."""
    if own_network(name) is not None and weights == DEFAULT:
        return
    architecture = find(full_name(name), weights)
    if weights != RANDOM:
        _weights_file(architecture, weights, download or files.download)


def check_names(name: str, weights: str | None = None) -> None:
    """Check the names of a network and its weights, which may be an address or a file; fetches nothing.

    Raises:
        JobError: there is no such name; the error names the nearest.
        NotHere: an optional package is missing here.
    """
    if name == HF:
        _check_bundle(weights)
        return
    architecture = find(full_name(name), weights)
    _check_classifier(architecture, weights)
    if weights is not None and "://" not in weights and weights not in (RANDOM, *weights_names(architecture.name)):
        _weights_file(architecture, weights, files.download)


def _check_bundle(weights: str | None) -> None:
    if weights is None or "://" not in weights:
        _local_bundle(weights)


def survey_of(name: str) -> Survey:
    """Return what runs in a network of that name, with weights of no meaning.

    Raises:
        JobError: no network is called so.
        NotHere: an optional package is missing here.
    """
    architecture = find(full_name(name), None)
    with torch.inference_mode(False):
        model = build(architecture, architecture.classes or architecture.features).eval().requires_grad_(False)
        return _surveyed(architecture, model)


def _weights_file(architecture: Architecture, weights: str | Path | None, download: files.Download) -> Path:
    own = weights_names(architecture.name)
    if weights is None or weights in own:
        return architecture.own_file(download)
    path = Path(weights).expanduser()
    if not path.is_file():
        known = ", ".join([*own, RANDOM])
        raise NotHere(f"{quoted(weights)} is neither a file nor a name of weights of {architecture.name} ({known})")
    return path


def _check_classifier(architecture: Architecture, weights: str | Path | None) -> None:
    """Refuse a network whose own weights have no classes; those of a file may have some.

    Raises:
        JobError: it has none.
    """
    if architecture.classes or weights not in (None, RANDOM, *weights_names(architecture.name)):
        return
    known = with_classes(architecture.name)[:3]
    others = f" such as {', '.join(known)}," if known else ""
    raise JobError(
        f"{architecture.name} has no classifier: it puts out features of a picture, not classes that could be "
        f"explained; take a network with classes,{others} or give weights with a head of classes by --weight-path"
    )


def _surveyed(architecture: Architecture, model: nn.Module) -> Survey:
    height, width = architecture.size
    with as_job_error(f"{architecture.name} cannot read pictures of {height} x {width} px"):
        return survey(
            architecture.name,
            model,
            architecture.size,
            Reads(
                architecture.channels, architecture.output, architecture.layer, architecture.tokens, architecture.within
            ),
        )


def _categories(architecture: Architecture, classes: int, labels: Sequence[str] | None) -> list[str] | None:
    if labels is None:
        return architecture.categories if classes == architecture.classes else None
    return checked_labels(labels, architecture.name, classes)


def checked_labels(labels: Sequence[str], name: str, classes: int) -> list[str]:
    """Return the names of all classes. Raises JobError: there are more or fewer."""
    if len(labels) != classes:
        raise JobError(f"there are {len(labels)} labels, but {name} has {classes} classes here")
    return list(labels)
