"""A network's name and its weights become a model ready to be explained, with all that its pictures need.

Names are those of torchvision's classification models, `efficientnet_lite0`, and `timm/NAME` where timm is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from producer.jobs.errors import JobError, NotHere
from producer.jobs.nearest import nearest
from producer.jobs.networks import ALIASES, LITE0
from producer.jobs.storage import sha256_of
from worker import weights as files
from worker.architectures import Architecture, find, weights_names
from worker.cache import model_bytes
from worker.explain import View
from worker.fold import prepare
from worker.layers import LAST_CONV, Survey, choose, survey

RANDOM: Final = "random"
#: What names of weights of auxiliary heads, which never run in eval mode, begin with.
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
    #: What the network's own preprocessing brings a picture's shorter side to before it crops, in px.
    resize_px: int
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


def _no_matter(_size_bytes: int) -> None:
    pass


def load(
    name: str,
    weights: str | Path | None = None,
    layer: str = LAST_CONV,
    device: str | torch.device = "cpu",
    download: files.Download | None = None,
    labels: Sequence[str] | None = None,
    *,
    prepared: bool = True,
    make_room: Callable[[int], None] = _no_matter,
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
        prepared: whether to make the model fast: BatchNorms folded into convolutions, channels last in memory. Its
            answers are the same to rounding; its state dict is not.
        make_room: told how many bytes the model takes, before any of them are on another device than the CPU, and
            before what makes it fast takes as many again.

    Raises:
        JobError: the name, weights, layer or labels cannot be used, in one sentence that says what can.
        NotHere: an optional package is missing here.
    """
    name = full_name(name)
    # Models outlive the call, and autograd can never use a tensor made in inference mode.
    with torch.inference_mode(False):
        architecture = find(name, weights)
        if weights == RANDOM:
            digest, model = RANDOM, _built(architecture, architecture.classes)
            files.randomise(model)
        else:
            path = _weights_file(architecture, weights, download or files.download)
            model, digest = _weighted(architecture, path), sha256_of(path)
        make_room(model_bytes(model))
        model.eval().requires_grad_(False)
        seen = survey(name, model, architecture.size)
        views = choose(seen, layer)
        if prepared:
            prepare(model, [view.module for view in views.values()], architecture.size, device)
        else:
            model.to(device)
    return Network(
        name=name,
        model=model,
        layer=next(iter(views.values())).module,
        layer_name=next(iter(views)),
        size=architecture.size,
        mean=architecture.mean,
        std=architecture.std,
        resize_px=architecture.resize_px,
        classes=seen.classes,
        categories=_categories(architecture, seen.classes, labels),
        device=torch.device(device),
        weights_digest=digest,
        random=weights == RANDOM,
        views=tuple(views.values()),
        layer_names=tuple(views),
    )


def full_name(name: str) -> str:
    """Resolve a short name."""
    return ALIASES.get(name, name)


def fetch_weights(name: str, weights: str, download: files.Download | None = None) -> None:
    """Bring the weights of a network to this machine, if they are not here; raises what `load` raises for them."""
    architecture = find(full_name(name), weights)
    if weights != RANDOM:
        _weights_file(architecture, weights, download or files.download)


def check_names(name: str, weights: str | None = None) -> None:
    """Make sure that a network is called so, and weights of it, an address, or a file; fetches nothing.

    Raises:
        JobError: there is none; names the nearest.
        NotHere: an optional package is missing here.
    """
    architecture = find(full_name(name), weights)
    if weights is not None and "://" not in weights and weights not in (RANDOM, *weights_names(architecture.name)):
        _weights_file(architecture, weights, files.download)


def labelled(network: Network, labels: Sequence[str]) -> Network:
    """Return the network with other names of its classes; the model is the same one.

    Raises:
        JobError: there are more or fewer names than classes.
    """
    return replace(network, categories=_checked(labels, network.name, network.classes))


def survey_of(name: str) -> Survey:
    """Tell what runs in a network of that name, with weights of no meaning.

    Raises:
        JobError: no network is called so.
        NotHere: an optional package is missing here.
    """
    architecture = find(full_name(name), None)
    with torch.inference_mode(False):
        model = _built(architecture, architecture.classes).eval().requires_grad_(False)
        return survey(architecture.name, model, architecture.size)


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


def _weights_file(architecture: Architecture, weights: str | Path | None, download: files.Download) -> Path:
    own = weights_names(architecture.name)
    if weights is None or weights in own:
        return architecture.own_file(download)
    path = Path(weights).expanduser()
    if not path.is_file():
        known = ", ".join([*own, RANDOM])
        raise NotHere(f"{str(weights)!r} is neither a file nor a name of weights of {architecture.name} ({known})")
    return path


def _weighted(architecture: Architecture, path: Path) -> nn.Module:
    auxiliary = _AUXILIARY.get(architecture.name, ())
    state = {key: tensor for key, tensor in files.read(path).items() if not key.startswith(auxiliary)}
    model = _built(architecture, architecture.classes)
    own_names = list(model.state_dict())
    if architecture.name == LITE0 and set(own_names).isdisjoint(state):
        # The packaged file has the names of another implementation, in the same order.
        state = files.renamed_by_position(state, own_names)
    head = state.get(files.head_of(model, architecture.classes))
    if head is not None and head.ndim and len(head) not in (0, architecture.classes):
        model = _built(architecture, len(head))
    files.fit(model, state, architecture.name)
    return model


def _built(architecture: Architecture, classes: int) -> nn.Module:
    # Building draws random numbers, which must not change what the process draws next; nor what is drawn here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return architecture.build(classes)


def _categories(architecture: Architecture, classes: int, labels: Sequence[str] | None) -> list[str] | None:
    if labels is None:
        return architecture.categories if classes == architecture.classes else None
    return _checked(labels, architecture.name, classes)


def _checked(labels: Sequence[str], name: str, classes: int) -> list[str]:
    if len(labels) != classes:
        raise JobError(f"there are {len(labels)} labels, but {name} has {classes} classes here")
    return list(labels)
