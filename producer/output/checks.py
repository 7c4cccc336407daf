"""Whether a job knows what is asked for: a mistyped name is an error, not an empty answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from producer.jobs.model.errors import ItemError, UsageError
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted

if TYPE_CHECKING:
    from producer.jobs.model.spec import JobSpec
    from producer.output.filters import Condition, ResultFilter

_CLASSES = frozenset({"class", "class_id", "class_name"})
#: What an error of ours that nobody thought of is counted under.
_INTERNAL = "internal"


def check_reason(reason: str, there: Mapping[str, int]) -> None:
    """Make sure that images fail for such a reason.

    Args:
        reason: A word, not a pattern.
        there: reason → count, of the job.

    Raises:
        UsageError: None of this job's failed for it, and none of any job's does.
    """
    if reason in there or reason in failure_reasons():
        return
    of_job = ", ".join(f"{name} ({count})" for name, count in sorted(there.items())) or "none, no image failed"
    near = nearest(reason, {*there, *failure_reasons()})
    raise UsageError(f"no image fails for a reason {quoted(reason)}{near}; of this job: {of_job}")


def failure_reasons() -> set[str]:
    """Return what images of this release's workers fail for."""
    found, left = {_INTERNAL}, [ItemError]
    while left:
        kind = left.pop()
        found.add(kind.reason)
        left += kind.__subclasses__()
    return found - {ItemError.reason}


def check_classes(where: ResultFilter, spec: JobSpec, explained: Mapping[str, int], done: int) -> None:
    """Make sure that the classes that are asked for are some of the job's.

    Args:
        where: What is asked.
        spec: What the job computes.
        explained: `class_key` → count, of the job.
        done: How many images are done.

    Raises:
        UsageError: No image was explained for one of them; names the nearest.
    """
    # Of several classes an image, and where Redis has lost some, the table does not know all.
    if spec.top_k > 1 or spec.explain == "both" or not explained or sum(explained.values()) < done:
        return
    names = {number: name for number, _, name in (key.partition(" ") for key in explained)}
    for condition in where.conditions:
        if condition.field in _CLASSES and not condition.is_pattern and not _is_class(condition, spec, names):
            value = condition.value
            near = nearest(value, [*(name for name in names.values() if name), *names])
            raise UsageError(
                f"{quoted(condition.expression)}: no image of this job was explained for a class {quoted(value)}"
                f"{near or f'; there are {len(explained)} others'}"
            )


def _is_class(condition: Condition, spec: JobSpec, names: Mapping[str, str]) -> bool:
    value, labels = condition.value, spec.labels or ()
    if condition.field != "class_name" and value.isdecimal() and (str(int(value)) in names or int(value) < len(labels)):
        return True
    if condition.field == "class_id":
        return False
    wanted = value.casefold().strip()
    return any(name.casefold().strip() == wanted for name in (*names.values(), *labels))
