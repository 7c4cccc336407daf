"""Read the logits out of what a model gives: a tensor, or one with others in a tuple, a mapping or an object.

What gives no logits of whole pictures has a reader of its own, such as `worker.engine.segmentation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from torch import Tensor

#: How an output names its logits where nobody says otherwise.
LOGITS: Final = "logits"
#: Number of axes of a batch of logits (N, K).
_NK: Final = 2
#: That of scores of pixels.
_NKHW: Final = 4
#: How many entries of an output are named in an error.
_NAMED: Final = 5


@dataclass(frozen=True)
class Scores:
    """What is explained of a model's output for N images, and what is told of it beside."""

    #: (N, K), a column for each thing that can be explained, such as a class.
    logits: Tensor
    #: (N, K), detached: the largest is the most likely column; None: the logits say it.
    ranking: Tensor | None = None
    #: What comes back with the explanations by its name: (N, …) each, detached.
    beside: dict[str, Tensor] = field(default_factory=dict)
    #: Whether another batch may have another K: where no columns are named, no more than there are get explained.
    varies: bool = False


class Reader(Protocol):
    """Makes scores of an output that has no logits of whole pictures."""

    def __call__(self, output: Any, batch: int) -> Scores:
        """Read the output for a batch of so many images; raises ValueError as `logits_of` does."""

    def words(self, output: Any) -> str:
        """Say what of the output is read, as `chosen_entry` does."""


#: Where in an output the logits are: a key or attribute, a place, or what reads it; None is the usual place.
Entry: TypeAlias = str | int | Reader | None


def scores_of(output: Any, batch: int, entry: Entry = None) -> Scores:
    """Return what is explained of a model's output; arguments and errors as of `logits_of`."""
    if entry is None or isinstance(entry, str | int):
        return Scores(logits_of(output, batch, entry))
    return entry(output, batch)


def logits_of(output: Any, batch: int, entry: Entry = None) -> Tensor:
    """Return the logits in a model's output; no number is changed.

    Args:
        output: A tensor; a tuple or list, whose first tensor is taken; a mapping or an object, whose `logits` is taken.
        batch: N, the number of images that went in.
        entry: The key, attribute or place that is taken instead, or what reads the output.

    Returns:
        (N, K), on the model's device.

    Raises:
        ValueError: There are no such logits; says what there is, and what to do.
    """
    if entry is not None and not isinstance(entry, str | int):
        return entry(output, batch).logits
    logits = picked(output, entry)
    if isinstance(logits, Tensor) and logits.ndim == _NK and len(logits) == batch and logits.shape[1] > 0:
        return logits
    where = f" as {chosen_entry(output, entry)}" if logits is not output else ""
    raise ValueError(
        f"the model gives {shown(logits)}{where} for {batch} images, not one tensor of (N, K) logits"
        f"{_advice(output, entry)}"
    )


def chosen_entry(output: Any, entry: Entry = None) -> str:
    """Say which part of an output is taken, such as `'logits' of a dict of 2`; "" where the output is the logits."""
    if entry is not None and not isinstance(entry, str | int):
        return entry.words(output)
    if isinstance(output, Tensor):
        return ""
    count = f" of {len(output)}" if isinstance(output, Sequence | Mapping) else ""
    kind = f"a {type(output).__name__}{count}"
    if entry is not None:
        return f"{entry!r} of {kind}"
    if isinstance(output, Mapping) or hasattr(output, LOGITS):
        return f"{LOGITS!r} of {kind}"
    return f"the first tensor of {kind}"


def picked(output: Any, entry: str | int | None) -> Any:
    """Return the part of an output that is taken; the output itself where it has no such part."""
    if isinstance(output, Tensor) and entry is None:
        return output
    name = LOGITS if entry is None else entry
    if isinstance(output, Mapping) and name in output:
        return output[name]
    if isinstance(name, int):
        is_there = isinstance(output, Sequence) and -len(output) <= name < len(output)
        return output[name] if is_there else output
    if not isinstance(output, Tensor) and hasattr(output, name):
        return getattr(output, name)
    if entry is None and isinstance(output, Sequence):
        return next((each for each in output if isinstance(each, Tensor)), output)
    return output


def _advice(output: Any, entry: str | int | None) -> str:
    if entry is not None and picked(output, entry) is output:
        return f"; it has no entry {entry!r}{_entries(output)}"
    if isinstance(picked(output, entry), Tensor) and picked(output, entry).ndim == _NKHW:
        return '; where these are scores of pixels, say so by NetworkSpec(task="segmentation")'
    if isinstance(output, Mapping) and entry is None:
        return f"; name its logits by NetworkSpec(output=…){_entries(output)}"
    return ""


def _entries(output: Any) -> str:
    if isinstance(output, Mapping):
        names = ", ".join(str(name)[:40] for name in list(output)[:_NAMED])
        return f": there {'is' if len(output) == 1 else 'are'} {names or 'none'}"
    return f": it has {len(output)}" if isinstance(output, Sequence) else ""


def shown(output: object) -> str:
    """Say what an output is: its shape, or its type."""
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
