"""What was typed becomes the fields of a job's spec, for a submission and for a trial alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from producer.jobs.model.errors import UsageError
from producer.jobs.model.options import advice, numbers, parameters
from producer.jobs.model.spec import JobSpec, at_most

_Model = TypeVar("_Model", bound=BaseModel)


def spec_fields(**typed: Any) -> dict[str, Any]:
    """What was typed, as fields of a job's spec; lists and numbers are taken out of their texts.

    Raises:
        UsageError: There is no such option.
    """
    known = parameters(JobSpec)
    if unknown := sorted(typed.keys() - known.keys()):
        raise UsageError(f"there is no option {unknown[0]}: `gradcam submit --help` has all")
    read: dict[str, Callable[[Any], object]] = {
        "outputs": lambda outputs: tuple(dict.fromkeys(outputs)),
        "input_size": lambda size: numbers(size, count=2, between="x"),
        "mean": lambda mean: numbers(mean, count=3, between=","),
        "std": lambda std: numbers(std, count=3, between=","),
    }
    fields: dict[str, Any] = {
        known[name].field: read[name](value) if name in read else value for name, value in typed.items()
    }
    if fields.get("classes") is not None:
        fields["top_k"] = at_most(fields.get("top_k", 1), fields["classes"])
    return fields


def make_spec(**fields: Any) -> JobSpec:
    """Check a job's parameters and make its spec of them.

    Raises:
        UsageError: Names every parameter that cannot be used.
    """
    spec, wrong = checked_model(JobSpec, fields)
    if spec is None:
        raise UsageError("; ".join(wrong))
    return spec


def checked_model(model: type[_Model], fields: Mapping[str, Any]) -> tuple[_Model | None, list[str]]:
    """A model of these fields, or the messages for those that cannot be used."""
    try:
        return model(**fields), []
    except ValidationError as error:
        return None, advice(model, error)


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """Read class names, one a line, in the order of their ids.

    Raises:
        UsageError: The file cannot be read, or holds no names.
    """
    if path is None:
        return None
    try:
        # Only line feeds end a line: names may hold what str.splitlines also takes for an end, such as U+2028.
        lines = path.expanduser().read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text, save it as UTF-8"
        raise UsageError(f"--labels {path} cannot be read: {reason}") from None
    names = tuple(line.strip() for line in lines)
    if not any(names):
        raise UsageError(f"--labels {path} holds no names: write one class name a line")
    return names
