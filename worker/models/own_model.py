"""Make a registered network: call its function, and check what it gives before anything relies on it."""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from producer.jobs.model.activations import ACTIVATIONS, Activation
from producer.jobs.model.errors import GradcamError, JobError, NotHere
from producer.jobs.model.redaction import redact_text
from worker.engine.explain import is_out_of_memory
from worker.engine.output import Entry, logits_of
from worker.engine.segmentation import Segmentation
from worker.models.network_spec import NetworkSpec
from worker.models.registered import Registered

#: The channels of pictures: grey, or red, green and blue.
CHANNELS: Final = (1, 3)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Sides of inputs in px, as a job may ask for them.
_LEAST_PX, MOST_PX = 8, 2048
CLASSIFICATION, SEGMENTATION, DETECTION = "classification", "segmentation", "detection"
#: How many pictures a model is tried with.
_TRIED: Final = 2
#: The parameter by which a function says that it can build for any number of classes.
_NUM_CLASSES: Final = "num_classes"
#: Every model that a function has given in this process; loading changes a model.
_GIVEN: Final[weakref.WeakValueDictionary[int, nn.Module]] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class OwnModel:
    """A registered network, made once and checked."""

    model: nn.Module
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    categories: list[str] | None
    #: As the function's `NetworkSpec` has them.
    layer: str
    activation: Activation | None
    #: Where its logits are, or what makes scores of them, as its `task` needs.
    output: Entry
    task: str
    #: How many classes it puts out.
    classes: int


def make(own: Registered, classes: int | None = None) -> OwnModel:
    """Call the function of a registered network.

    Args:
        own: The network.
        classes: The number of classes that it shall have; None for its own.

    Raises:
        JobError: The function fails, or what it gives cannot be explained; says what to do.
        NotHere: This machine lacks the function, or a file that it reads.
    """
    spec = _spec(own, _called(own, own.resolve(), classes))
    try:
        return _made(own, spec, classes)
    except (TypeError, ValueError, AttributeError) as error:
        raise JobError(
            f"the NetworkSpec of {own.name} ({own.function}) cannot be read: {_first_line(error)}; correct its values"
        ) from error


def _made(own: Registered, spec: NetworkSpec, classes: int | None) -> OwnModel:
    model = spec.model
    if id(model) in _GIVEN:
        raise JobError(
            f"the function of {own.name} ({own.function}) gave the same model twice; make a new one each time"
        )
    _GIVEN[id(model)] = model
    model.cpu().float().eval()
    size, channels = _size(own, spec), _channels(own, spec)
    found = _classes(own, spec, size, channels)
    if classes is not None and found != classes:
        raise JobError(
            f"these weights of {own.name} have {classes} classes, and its function builds it for {found}: "
            f"let {own.function} take {_NUM_CLASSES}"
        )
    categories = None if spec.categories is None else [str(name) for name in spec.categories]
    if categories is not None and classes is None and len(categories) != found:
        raise JobError(f"{own.name} names {len(categories)} categories, but puts out {found} classes")
    return OwnModel(
        model=model,
        size=size,
        channels=channels,
        mean=_numbers(own, "mean", spec.mean, channels, _IMAGENET_MEAN if channels > 1 else (0.0,)),
        std=_numbers(own, "std", spec.std, channels, _IMAGENET_STD if channels > 1 else (1.0,)),
        categories=categories,
        layer=spec.layer,
        output=_output(own, spec),
        activation=_activation(own, spec),
        task=spec.task,
        classes=found,
    )


def _called(own: Registered, function: Callable[..., Any], classes: int | None) -> Any:
    options = {_NUM_CLASSES: classes} if classes is not None and _takes_classes(function) else {}
    try:
        # Building draws random numbers, which must not change what the process draws next.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            # Standard output is for what commands answer.
            with redirect_stdout(sys.stderr):
                return function(**options)
    except GradcamError:
        raise
    # What somebody else's function may raise, nobody can list; a lack of memory is this machine's fault.
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise
        kind = NotHere if isinstance(error, OSError | ImportError) else JobError
        raise kind(f"{own.name} cannot be built by its function {own.function}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What somebody else's code says, as it may be shown: a function that downloads may name its secrets."""
    line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return redact_text(" ".join(line.split()))


def _takes_classes(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it is written in C
        return False
    return any(each.name == _NUM_CLASSES or each.kind is each.VAR_KEYWORD for each in parameters)


def _spec(own: Registered, given: Any) -> NetworkSpec:
    spec = NetworkSpec(given) if isinstance(given, nn.Module) else given
    if not isinstance(spec, NetworkSpec) or not isinstance(spec.model, nn.Module):
        kind = type(spec.model if isinstance(spec, NetworkSpec) else given).__name__
        raise JobError(f"the function of {own.name} ({own.function}) gives a {kind}, not an nn.Module or a NetworkSpec")
    return spec


def _size(own: Registered, spec: NetworkSpec) -> tuple[int, int]:
    sides = (spec.size, spec.size) if isinstance(spec.size, int) else tuple(spec.size)
    if len(sides) != 2 or not all(isinstance(side, int) and _LEAST_PX <= side <= MOST_PX for side in sides):  # noqa: PLR2004 - height and width
        raise JobError(
            f"the size of {own.name} must be (height, width) of {_LEAST_PX} to {MOST_PX} px, not {spec.size!r}"
        )
    return sides[0], sides[1]


def _channels(own: Registered, spec: NetworkSpec) -> int:
    """Return how many channels it reads: as it says, or as its first convolution does."""
    first = next((module for module in spec.model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = spec.channels or (first.in_channels if first else max(CHANNELS))
    if channels not in CHANNELS:
        how = "" if spec.channels else "; where it takes one of these, say so by NetworkSpec(channels=…)"
        raise JobError(f"{own.name} reads {channels} channels; pictures have 1 (grey) or 3 (red, green and blue){how}")
    return channels


def _activation(own: Registered, spec: NetworkSpec) -> Activation | None:
    found = next((each for each in ACTIVATIONS if each == spec.activation), None)
    if spec.activation != found:
        known = ", ".join(ACTIVATIONS)
        raise JobError(f"the activation of {own.name} must be {known} or None, not {spec.activation!r}")
    return found


def _numbers(
    own: Registered, what: str, given: float | Sequence[float] | None, channels: int, usual: tuple[float, ...]
) -> tuple[float, ...]:
    if given is None:
        return usual
    numbers = (float(given),) * channels if isinstance(given, int | float) else tuple(map(float, given))
    if len(numbers) != channels or not all(map(math.isfinite, numbers)) or (what == "std" and min(numbers) <= 0):
        must = "a number above 0" if what == "std" else "a number"
        raise JobError(f"the {what} of {own.name} must be {must} for each of its {channels} channels, not {given!r}")
    return numbers


def _output(own: Registered, spec: NetworkSpec) -> Entry:
    if spec.task == SEGMENTATION:
        return Segmentation(spec.output, spec.background)
    if spec.task != CLASSIFICATION:
        raise JobError(f"the task of {own.name} must be {CLASSIFICATION} or {SEGMENTATION}, not {spec.task!r}")
    return spec.output


def _classes(own: Registered, spec: NetworkSpec, size: tuple[int, int], channels: int) -> int:
    """Return how many logits it puts out, tried with two empty pictures: what is right for one may not be for more."""
    try:
        with torch.enable_grad():
            output = spec.model(torch.zeros(_TRIED, channels, *size).requires_grad_())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise JobError(
            f"{own.name} cannot read a picture of {channels} x {size[0]} x {size[1]} (channels, height, width): "
            f"{_first_line(error)}; correct size and channels of its NetworkSpec"
        ) from error
    try:
        logits = logits_of(output, _TRIED, _output(own, spec))
    except ValueError as error:
        raise JobError(f"{own.name} cannot be explained: {error}") from None
    if not logits.requires_grad:
        raise JobError(
            f"{own.name} cannot be explained: its output has no gradient; leave detach(), no_grad() and argmax() out"
        )
    return logits.shape[1]
