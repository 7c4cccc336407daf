"""Build a network and put the weights of a file into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from producer.jobs.model.errors import GradcamError, JobError
from producer.jobs.model.network_names import LITE0
from worker.engine.explain import is_out_of_memory
from worker.models import bounds, candidates, checkpoint, weights
from worker.models.architectures import Architecture, find, segmentation_names, side_px
from worker.models.cache import model_bytes
from worker.models.detectors import classes_in
from worker.models.own_model import DETECTION, MOST_PX

#: How the names of an auxiliary head's weights begin; such a head never runs in eval mode.
AUXILIARY: Final = {
    "inception_v3": ("AuxLogits.",),
    "googlenet": ("aux1.", "aux2."),
    **dict.fromkeys(segmentation_names(), ("aux_classifier.",)),
}
#: The number of classes of a network whose own weights have none, until a file says its number.
_TRIAL_CLASSES: Final = 1000


def build_with_weights(
    architecture: Architecture, path: Path, size: tuple[int, int] | None, key: str | None = None
) -> tuple[Architecture, nn.Module, str]:
    """Build a network for the weights of a file, and put them in.

    Args:
        architecture: The network for its usual size of inputs, or for `size`.
        path: The file.
        size: (height, width) that the job asks for; None where it asks for none.
        key: The name under which the weights are in the file; None for the plain ones.

    Returns:
        The architecture for the size that the weights are for, the model, and what was taken of the file.

    Raises:
        JobError: The file holds no weights of this network, or they do not fit.
    """
    name, classes = architecture.name, architecture.classes or _TRIAL_CLASSES
    model = build(architecture, classes)
    own, head = model.state_dict(), weights.head_of(model, classes)
    auxiliary = AUXILIARY.get(name, ())
    content = checkpoint.read(path, bounds.most_bytes(model_bytes(model)))
    choice = candidates.choose_state_dict(content, own, classes=classes, head=head, auxiliary=auxiliary, key=key)
    if choice is None:
        raise JobError(f"the weights file {path} holds no state dict")
    state, unexpected = choice.taken.state, choice.taken.unexpected
    if name == LITE0 and not state:
        # The packaged file has the names of another implementation, in the same order.
        state, unexpected = weights.renamed_by_position(choice.largest, list(own)), []
    weights.check_whole({key: state[key] for key in own if key in state}, name, own)
    rows = _rows(state, own, head) if head or architecture.task != DETECTION else classes_in(state, own, classes)
    _check_head(architecture, state, own, head, rows, unexpected)
    side = _side(model, state, own) if size is None else None
    if side is not None:
        architecture = find(name, None, (side, side))
    if side is not None or rows not in (None, classes):
        model = build(architecture, rows or classes)
    with as_job_error(f"the weights do not fit {name}"):
        weights.fit(model, state, name, unexpected)
    return architecture, model, choice.words


def _side(model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int | None:
    """Return the side in px of the pictures that the weights are for, if they are for another size than the model."""
    places = [name for name in candidates.PLACES if name in state and name in own and state[name].ndim > 1]
    others = [
        state[name].shape[1]
        for name in places
        if state[name].shape != own[name].shape and _rest(state[name]) == _rest(own[name])
    ]
    side = side_px(model, others[0]) if others else None
    if side is not None and side > MOST_PX:
        raise JobError(f"the weights are for pictures of {side} px, and {MOST_PX} px at most can be explained")
    return side


def _rest(places: Tensor) -> tuple[int, ...]:
    return tuple(places.shape[:1]) + tuple(places.shape[2:])


def _rows(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> int | None:
    """Return for how many classes a head is; None for one of another shape, for which nothing is built."""
    there = state.get(head)
    if there is None or not there.ndim or (len(there) and there.shape[1:] != own[head].shape[1:]):
        return None
    return len(there)


def _check_head(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    head: str,
    rows: int | None,
    unexpected: Sequence[str],
) -> None:
    """Refuse weights without a classifier, or with one of another name: what it does may differ, too.

    Raises:
        JobError: Only the head is missing, or it has no classes.
    """
    bare = {name for name in own if name not in state and not name.endswith(".num_batches_tracked")}
    advice = "give weights with a head of classes: fine-tuned ones, not those of a backbone alone"
    only_head = head in bare and bare <= {head, head.removesuffix("weight") + "bias"}
    if only_head and unexpected:
        own_layer, layers = head.removesuffix(".weight"), list(dict.fromkeys(n.rpartition(".")[0] for n in unexpected))
        advice = (
            f"where it is the same layer, rename {layers[0]}.* to {own_layer}.* in the file"
            if len(layers) == 1
            else "register the network with this head as one of your own"
        )
        raise JobError(
            f"the weights do not fit {architecture.name}: its head is {own_layer}, and the head in the file is "
            f"{', '.join(layers[:3])}; {advice}"
        )
    if rows == 0 or only_head:
        what = f"{head} has no rows" if rows == 0 else f"{head} is missing"
        raise JobError(f"these weights of {architecture.name} have no classifier ({what}); {advice}")
    if rows is not None and rows == architecture.features:
        raise JobError(
            f"these weights of {architecture.name} have no classifier: its {rows} numbers are features of a picture; "
            f"{advice}"
        )


@contextmanager
def as_job_error(sentence: str) -> Iterator[None]:
    """Turn whatever a network raises about its weights and sizes into the job's error, which begins with `sentence`.

    Raises:
        JobError: The network cannot work with them.
    """
    try:
        yield
    except GradcamError:
        raise
    # What a network of somebody else's may raise, nobody can list; a lack of memory is this machine's fault.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise JobError(f"{sentence}: {first or type(error).__name__}") from error


def build(architecture: Architecture, classes: int) -> nn.Module:
    """Build the model with so many classes and weights of no meaning.

    Raises:
        JobError: Its builder fails.
    """
    # Building draws random numbers, which must not change what the process draws next; nor what is drawn here.
    with as_job_error(f"{architecture.name} cannot be built"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return architecture.build(classes)
