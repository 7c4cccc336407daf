"""Image classifiers in the layout of Hugging Face: `config.json` says which network, `model.safetensors` its weights.

The files may be a stranger's. The class of the model is one of transformers' own, found by `model_type`: no code comes
with the files, nothing is unpickled, and nothing is downloaded. `config.json` only fills fields that its class declares
itself, and its numbers are held against the weights before any memory is taken for them.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from producer.jobs.model.errors import JobError, NotHere
from producer.jobs.model.network_names import HF, TIMM
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted, shown
from producer.jobs.store.bundle import CONFIG, PREPROCESSOR, WEIGHTS
from worker.models import bounds, candidates, checkpoint, weights
from worker.models.architectures import BILINEAR, Architecture, find, resized
from worker.models.bundles import LocalBundle
from worker.models.cache import model_bytes
from worker.models.construction import as_job_error, build, build_with_weights
from worker.models.image_processor import read_preprocessing
from worker.models.layers import Tokens
from worker.models.pickle_cost import TooMuch

#: What a number in `config.json` may be, alone or all in a list together; how deep and long lists are, and texts.
_MAX_NUMBER, _MAX_DEPTH, _MAX_LENGTH, _MAX_TEXT = 2**16, 3, 64, 200
#: The side of a picture in px.
_MAX_SIDE: Final = 2048
#: How many numbers one layer may put out for one picture.
_MAX_OUTPUT: Final = 2**29
#: They build lists of places by loops that no weight ends.
_SLOW: Final = ("levit",)
#: How many numbers a network may have beside those of its weights: indices and masks that it makes itself.
_OWN_NUMBERS: Final = 2**24
#: In transformers: how the name of the layer ends that `last-features` means, and how many tokens stand before those of
#: the patches, registers aside. Their patches' tokens are in rows.
_TRANSFORMERS: Final = {
    "beit": ("layernorm_before", 1),
    "data2vec-vision": ("layernorm_before", 1),
    "deit": ("layernorm_before", 2),
    "dinov2": ("norm1", 1),
    "dinov2_with_registers": ("norm1", 1),
    "ijepa": ("layernorm_before", 0),
    "swin": ("swin.layernorm", 0),
    "swinv2": ("swinv2.layernorm", 0),
    "vit": ("layernorm_before", 1),
    "vit_msn": ("layernorm_before", 1),
}
_LABEL: Final = re.compile(r"LABEL_\d+")

_Labels = Annotated[dict[int, Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=100_000)]
_Names = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=100_000)]
_Positive = Annotated[float, Field(gt=0)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Config(BaseModel):
    """What is read of every `config.json`."""

    model_config = ConfigDict(extra="ignore")

    model_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] | None = None
    architectures: list[str] | None = None
    id2label: _Labels | None = None
    num_labels: Annotated[int, Field(ge=1, le=100_000)] | None = None
    num_channels: int = 3
    #: Of timm.
    architecture: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")] | None = None


class _TimmConfig(BaseModel):
    """What is read of timm's `pretrained_cfg`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    input_size: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=3, max_length=3)] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[_Positive, _Positive, _Positive] | None = None
    interpolation: Annotated[str, Field(max_length=20)] | None = None
    crop_pct: Annotated[float, Field(gt=0.1, le=2)] | None = None
    label_names: _Names | None = None


def load_bundle(local: LocalBundle, size: tuple[int, int] | None) -> tuple[Architecture, nn.Module, str]:
    """Build the network of a bundle and put its weights in.

    Args:
        local: The files.
        size: (height, width) that the job asks for; None where it asks for none.

    Returns:
        What the network is, the model, and what was taken of the weights.

    Raises:
        JobError: The files are broken, contradict each other, or are of no network that can be built here.
        NotHere: A package is missing here.
    """
    content = _parsed(local.bundle.config, CONFIG)
    preprocessor = None if local.bundle.preprocessor is None else _parsed(local.bundle.preprocessor, PREPROCESSOR)
    config = _checked(_Config, content)
    if config.architecture is not None:
        return _of_timm(config.architecture, content, local.weights, size)
    if config.model_type is None:
        raise JobError(f"{CONFIG} says neither model_type nor architecture: it is of no network")
    return _of_transformers(config, content, preprocessor, local.weights, size)


# --- transformers -----------------------------------------------------------------------------------------------------


def _of_transformers(
    config: _Config,
    content: dict[str, Any],
    preprocessor: dict[str, Any] | None,
    path: Path,
    size: tuple[int, int] | None,
) -> tuple[Architecture, nn.Module, str]:
    shapes = _shapes(path)
    name = f"{HF}/{config.model_type}"
    own = _own_config(config, content)
    auto = _transformers("models.auto.modeling_auto").AutoModelForImageClassification
    read = read_preprocessing(preprocessor)
    image_size = getattr(own, "image_size", None)
    declared = _pair(image_size) if isinstance(image_size, int | list | tuple) else (224, 224)
    found = Architecture(
        name=name,
        build=lambda _classes: _logits_alone(auto.from_config(own)),
        size=read.size or declared,
        mean=read.mean,
        std=read.std,
        resize_px=read.resize_px,
        classes=own.num_labels,
        categories=_categories(config),
        own_file=lambda _download: path,
        resize_filter=read.resize_filter or BILINEAR,
        own_filter=read.resize_filter or BILINEAR,
    )
    found = resized(found, size)
    _hold_against(found, shapes)
    model = build(found, found.classes)
    state = _renamed(model, checkpoint.read(path, bounds.most_bytes(model_bytes(model))))
    poolers = (f"{model.base_model_prefix}.pooler.",) if getattr(model.base_model, "pooler", None) is None else ()
    choice = candidates.choose_state_dict(state, model.state_dict(), auxiliary=poolers)
    if choice is None:
        raise JobError(f"{WEIGHTS} holds no weights")
    own_state = model.state_dict()
    weights.check_whole({key: each for key, each in choice.taken.state.items() if key in own_state}, name, own_state)
    with as_job_error(f"the weights do not fit {name}"):
        weights.fit(model, choice.taken.state, name, choice.taken.unexpected)
    version = _transformers("").__version__
    words = f"{type(model).__name__} of transformers {version}; {choice.words}"
    return replace(found, tokens=_tokens(str(config.model_type), model, found.size)), model, words


def _transformers(module: str) -> Any:
    """Import a module of transformers, which costs seconds; it never reaches for the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at its import
    try:
        # timm may have imported it before.
        import_module("huggingface_hub.constants").__dict__["HF_HUB_OFFLINE"] = True
        package = import_module("transformers")
    except ImportError:
        raise NotHere("transformers is missing here; run: pip install 'gradcam-queue[hf]'") from None
    package.logging.set_verbosity_error()
    return import_module(f"transformers.{module}") if module else package


def _own_config(config: _Config, content: dict[str, Any]) -> Any:
    """Return transformers' config, of those fields alone that its class declares itself.

    The base class has fields that choose code (`auto_map`, attention kernels), types of numbers and forms of output.
    """
    kind = str(config.model_type)
    known = _transformers("models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if kind not in known:
        raise JobError(
            f"{CONFIG} is of the kind {quoted(kind)}, which is no image classifier of transformers"
            f"{nearest(kind, known)}"
        )
    if config.num_channels != len("RGB"):
        raise JobError(
            f"the network reads pictures of {config.num_channels} channels; only those of 3 can be explained"
        )
    with as_job_error(f"{CONFIG} cannot be used"):
        config_class = _transformers("models.auto.configuration_auto").CONFIG_MAPPING[kind]
        model_classes = _transformers("models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[config_class]
        choice = model_classes if isinstance(model_classes, tuple) else (model_classes,)
        model_class = next((each for each in choice if each.__name__ in (config.architectures or ())), choice[0])
        if kind in _SLOW or config_class.sub_configs or model_class.main_input_name != "pixel_values":
            raise JobError(
                f"{CONFIG} is of the kind {quoted(kind)}, which is not built here: take a network for pictures alone"
            )
        declared = {each.name for each in fields(config_class)} - {each.name for each in fields(_base_config())}
        own = {key: value for key, value in content.items() if key in declared and not key.startswith("_")}
        for key, value in own.items():
            _check_bounded(key, value, _MAX_SIDE if key == "image_size" else _MAX_NUMBER)
        labels = config.id2label or {n: f"LABEL_{n}" for n in range(config.num_labels or 2)}
        made = _transformers("").AutoConfig.for_model(kind, **own, id2label=labels)
        made.architectures = [model_class.__name__]
    return made


def _base_config() -> Any:
    return _transformers("configuration_utils").PreTrainedConfig


def _check_bounded(name: str, value: Any, largest: int, depth: int = 0) -> None:
    """Refuse what would let a builder run on and on. Raises JobError."""
    inner: list[Any] = []
    match value:
        case None | bool():
            fine = True
        case int() | float():
            fine = abs(value) <= largest  # which NaN is not
        case str():
            fine = len(value) <= _MAX_TEXT
        case list() | dict():
            inner = list(value.values() if isinstance(value, dict) else value)
            total = sum(abs(each) for each in inner if isinstance(each, int | float))
            fine = depth < _MAX_DEPTH and len(inner) <= _MAX_LENGTH and total <= 2 * largest
        case _:
            fine = False
    if not fine:
        raise JobError(f"{CONFIG} cannot be used: {name} is {shown(value, 40)}, more than any network has")
    for each in inner:
        _check_bounded(name, each, largest, depth + 1)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights, of the file's header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        bounds.check_safetensors(path, None)
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except TooMuch as error:
        raise JobError(f"{WEIGHTS} {error}") from None
    except (SafetensorError, ValueError, OSError):
        raise JobError(f"{WEIGHTS} is no safetensors file, or is broken or truncated") from None


def _hold_against(found: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Build the network without memory, and refuse one that is larger than its weights.

    Raises:
        JobError: It is, or cannot be built.
    """
    there = sum(map(math.prod, shapes.values()))
    largest = max(map(math.prod, shapes.values()), default=0)
    # Some weights are stored once and used twice.
    with torch.device("meta"), _watched(f"{CONFIG} does not fit {WEIGHTS}", 2 * len(shapes) + 64, largest):
        model = build(found, found.classes)
    own = [*model.parameters(), *model.buffers()]
    if (asked := sum(each.numel() for each in own)) > 2 * there + _OWN_NUMBERS:
        raise JobError(f"{CONFIG} does not fit {WEIGHTS}: it is of a network of {asked} numbers, and there are {there}")
    _run_without_memory(found, model)


def _run_without_memory(found: Architecture, model: nn.Module) -> None:
    """Refuse a network whose layers put out too much for one picture; what else may be wrong, the real run tells.

    Raises:
        JobError: A layer does.
    """

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > _MAX_OUTPUT:
            raise JobError(f"{CONFIG} cannot be used: a layer would put out {tuple(output.shape)} for one picture")

    for module in model.modules():
        module.register_forward_hook(watch)  # the model is thrown away
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *found.size, device="meta"))
    except JobError:
        raise
    except Exception:  # noqa: S110 - see above
        pass


@contextmanager
def _watched(sentence: str, count: int, largest: int) -> Iterator[None]:
    """Break off a construction that makes more or larger parameters than so many and so large ones."""
    here, made = threading.get_ident(), 0

    def watch(_module: nn.Module, name: str, parameter: Tensor) -> None:
        nonlocal made
        if threading.get_ident() != here:
            return
        made += 1
        if made > count:
            raise JobError(f"{sentence}: it is of a network with more than {count} weights")
        if parameter.numel() > largest:
            shape = tuple(parameter.shape)
            raise JobError(f"{sentence}: {name} would be {shape}, more than any weight there")

    handle = nn.modules.module.register_module_parameter_registration_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _logits_alone(model: nn.Module) -> nn.Module:
    """Let the model put out its logits in place of an object that holds them; its names stay as they are."""
    model.register_forward_hook(lambda _module, _inputs, output: output.logits)
    return model


def _renamed(model: nn.Module, content: Any) -> dict[str, Tensor]:
    """Give the weights of a file by an older transformers their names of today, by its own rules.

    Raises:
        JobError: Weights would have to be cut, not only renamed.
    """
    rules = _transformers("conversion_mapping").get_model_conversion_mapping(model)
    loading = _transformers("core_model_loading")
    renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
    state = {}
    for key, tensor in content.items():
        name, converted = loading.rename_source_key(key, renamings, converters)
        if converted is not None:
            raise JobError(f"{WEIGHTS} has {key} in a layout of before: load it with transformers and save it again")
        state[name] = tensor
    return state


def _categories(config: _Config) -> list[str] | None:
    labels = config.id2label
    if labels is None or all(map(_LABEL.fullmatch, labels.values())):
        return None
    if sorted(labels) != list(range(len(labels))):
        raise JobError(f"{CONFIG} cannot be used: id2label leaves numbers out")
    return [labels[n] for n in range(len(labels))]


def _tokens(kind: str, model: Any, size: tuple[int, int]) -> Tokens | None:
    """Say where the tokens of a transformer lie; None for other networks."""
    if kind not in _TRANSFORMERS:
        return None
    end, prefix = _TRANSFORMERS[kind]
    prefix += getattr(model.config, "num_register_tokens", 0)
    patch = _pair(model.config.patch_size)
    grids = [(size[0] // patch[0], size[1] // patch[1])]
    if kind.startswith("swin"):
        # What does not go into patches, or into windows of two, is filled up.
        grids = [(-(-size[0] // patch[0]), -(-size[1] // patch[1]))]
        for _ in model.config.depths[1:]:
            grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    last = [name for name, _ in model.named_modules() if name == end or name.endswith(f".{end}")]
    return Tokens(tuple(grids), prefix, last[-1] if last else "")


def _pair(side: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else (int(side[0]), int(side[-1]))


# --- timm -------------------------------------------------------------------------------------------------------------


def _of_timm(
    architecture: str, content: dict[str, Any], path: Path, size: tuple[int, int] | None
) -> tuple[Architecture, nn.Module, str]:
    """Build the network of timm that a file names, with what the file says of its pictures and classes."""
    _shapes(path)
    said = content.get("pretrained_cfg", content)
    names = {"label_names": content["label_names"]} if content.get("label_names") else {}
    config = _checked(_TimmConfig, {**(said if isinstance(said, dict) else {}), **names})
    channels, *sides = config.input_size or (3,)
    own_size = (sides[0], sides[1]) if sides else None
    found = find(TIMM + architecture, None, size or own_size)
    arguments = _timm_arguments(content.get("model_args"), channels)
    timm = import_module("timm")
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        arguments["img_size"] = found.size
    found = replace(
        found,
        build=lambda classes: timm.create_model(architecture, pretrained=False, num_classes=classes, **arguments),
    )
    # With a size it stays what it was built for: weights for another one are refused.
    found, model, words = build_with_weights(found, path, found.size)
    found = replace(
        found,
        mean=config.mean or found.mean,
        std=config.std or found.std,
        resize_px=round(min(found.size) / config.crop_pct) if config.crop_pct else found.resize_px,
        resize_filter=f"{config.interpolation}-antialias" if config.interpolation else BILINEAR,
    )
    if config.label_names:
        found = replace(found, classes=len(config.label_names), categories=list(config.label_names))
    return replace(found, own_filter=found.resize_filter), model, f"{architecture} of timm; {words}"


def _timm_arguments(given: Any, channels: int) -> dict[str, Any]:
    """Return the arguments of timm's builder that a file may set.

    Raises:
        JobError: It sets others, or other channels.
    """
    arguments = {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else {}
    for key in ("num_classes", "img_size"):  # the weights and the size of the pictures say them
        arguments.pop(key, None)
    if (channels := arguments.pop("in_chans", channels)) != len("RGB"):
        raise JobError(f"the network reads pictures of {channels} channels; only those of 3 can be explained")
    others = sorted(key for key, value in arguments.items() if key != "global_pool" or not isinstance(value, str))
    if others:
        raise JobError(
            f"{CONFIG} cannot be used: its network is built with {', '.join(others)}, which is not done here"
        )
    return arguments


# --- files ------------------------------------------------------------------------------------------------------------


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise JobError(f"{name} is broken: it is no JSON") from None
    if not isinstance(content, dict):
        raise JobError(f"{name} is broken: it is no JSON object")
    return content


def _checked(model: type[_Model], content: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0])
        raise JobError(f"{CONFIG} cannot be used: {where} is not what it may be") from None
