"""Read the logits out of what a model gives: a tensor, or one with others in a tuple, a mapping or an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor

#: How an output names its logits where nobody says otherwise.
LOGITS: Final = "logits"
#: Number of axes of a batch of logits (N, K).
_NK: Final = 2
#: How many entries of an output are named in an error.
_NAMED: Final = 5


def logits_of(output: Any, batch: int, entry: str | int | None = None) -> Tensor:
    """Return the logits in a model's output; no number is changed.

    Args:
        output: A tensor; a tuple or list, whose first tensor is taken; a mapping or an object, whose `logits` is taken.
        batch: N, the number of images that went in.
        entry: The key, attribute or place that is taken instead.

    Returns:
        (N, K), on the model's device.

    Raises:
        ValueError: There are no such logits; says what there is, and what to do.
    """
    logits = _picked(output, entry)
    if isinstance(logits, Tensor) and logits.ndim == _NK and len(logits) == batch and logits.shape[1] > 0:
        return logits
    where = f" as {chosen_entry(output, entry)}" if logits is not output else ""
    raise ValueError(
        f"the model gives {_shown(logits)}{where} for {batch} images, not one tensor of (N, K) logits"
        f"{_advice(output, entry)}"
    )


def chosen_entry(output: Any, entry: str | int | None = None) -> str:
    """Say which part of an output is taken, such as `'logits' of a dict of 2`; "" where the output is the logits."""
    if isinstance(output, Tensor):
        return ""
    count = f" of {len(output)}" if isinstance(output, Sequence | Mapping) else ""
    kind = f"a {type(output).__name__}{count}"
    if entry is not None:
        return f"{entry!r} of {kind}"
    if isinstance(output, Mapping) or hasattr(output, LOGITS):
        return f"{LOGITS!r} of {kind}"
    return f"the first tensor of {kind}"


def _picked(output: Any, entry: str | int | None) -> Any:
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
    if entry is not None and _picked(output, entry) is output:
        return f"; it has no entry {entry!r}{_entries(output)}"
    if isinstance(output, Mapping) and entry is None:
        return f"; name its logits by NetworkSpec(output=…){_entries(output)}"
    return ""


def _entries(output: Any) -> str:
    if isinstance(output, Mapping):
        names = ", ".join(str(name)[:40] for name in list(output)[:_NAMED])
        return f": there {'is' if len(output) == 1 else 'are'} {names or 'none'}"
    return f": it has {len(output)}" if isinstance(output, Sequence) else ""


def _shown(output: object) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
