"""What can be typed for a job: read from the fields of the models, so that each option is defined once.

A field that a user can set carries its default, its limits or choices, a sentence of help, and an `Option`. The command
line, the Python client, its checks and the table in `docs/options.md` all come from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class Option:
    """How a field looks where it is typed."""

    #: Its name in Python, where the field has another one; the flag follows from it.
    name: str = ""
    #: What a value has to be, for the message that refuses one; a list of choices says it itself.
    must_be: str = ""
    #: What holds where nothing is given, if the default does not say so.
    absent: str = ""
    #: Whether the field is filled from what is typed, instead of being typed itself.
    computed: bool = False
    #: `auto` is a value, too, and the default.
    auto: bool = False
    #: The flag may be given more than once.
    repeatable: bool = False
    #: Several values are one text, with commas between them.
    by_commas: bool = False


@dataclass(frozen=True)
class Parameter:
    """One thing that can be typed."""

    #: In Python.
    name: str
    #: The field of the model.
    field: str
    option: Option
    #: What it takes: `flag`, `choice`, `int` or `text`.
    kind: Literal["flag", "choice", "int", "text"]
    choices: tuple[str, ...]
    minimum: int | None
    maximum: int | None
    default: Any
    #: What it does, in a sentence.
    help: str

    @property
    def flag(self) -> str:
        """As the command line has it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def sentence(self) -> str:
        """The help, with the choices, and with what holds where nothing is given."""
        choices = f" One of {', '.join(self.choices)}." if self.choices else ""
        return self.help + choices + (f" Default: {self.option.absent}." if self.option.absent else "")


@cache
def parameters(model: type[BaseModel], *, computed: bool = False) -> dict[str, Parameter]:
    """What can be typed of a model, by the name in Python; with `computed` what is filled from that, by its field."""
    found = {}
    for field, info in model.model_fields.items():
        option = next((each for each in info.metadata if isinstance(each, Option)), None)
        if option is None or option.computed is not computed:
            continue
        kind, choices, limits = _read_type(info.annotation, info.metadata)
        name = option.name or field
        found[field if computed else name] = Parameter(
            name=name,
            field=field,
            option=option,
            kind=kind,
            choices=choices,
            minimum=min(limits) if limits else None,
            maximum=max(limits) if limits else None,
            default=info.get_default(),
            help=info.description or "",
        )
    return found


def advice(model: type[BaseModel], error: ValidationError) -> list[str]:
    """The messages for fields of a model whose values cannot be used, a sentence each."""
    known = {each.field: each for computed in (False, True) for each in parameters(model, computed=computed).values()}
    told: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0])
        told.setdefault(field, _advice(known.get(field), problem["type"]) or f"{field} cannot be used")
    return list(told.values())


def _advice(parameter: Parameter | None, problem: str) -> str:
    if parameter is None:
        return ""
    must_be = parameter.option.must_be or (_one_of(parameter.choices) if parameter.choices else "")
    if not must_be and problem == "greater_than_equal":
        must_be = f"{parameter.minimum:,} or more"
    elif not must_be and problem == "less_than_equal":
        must_be = f"{parameter.maximum:,} or less"
    return f"{parameter.flag} must be {must_be}" if must_be else f"{parameter.flag} cannot be used"


def _one_of(choices: tuple[str, ...]) -> str:
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def _read_type(annotation: Any, metadata: Iterable[Any]) -> tuple[Any, tuple[str, ...], list[int]]:
    """The kind, the choices and the limits of a field."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _read_type(annotation, [*metadata, *_flat(more)])
    if get_origin(annotation) in {Union, UnionType}:
        (annotation, *_) = (each for each in get_args(annotation) if each is not NoneType)
        return _read_type(annotation, metadata)
    if get_origin(annotation) is Literal:
        return "choice", get_args(annotation), []
    if annotation is bool:
        return "flag", (), []
    if annotation is int:
        bounds = [getattr(each, name, None) for each in _flat(metadata) for name in ("ge", "le")]
        return "int", (), [bound for bound in bounds if bound is not None]
    return "text", (), []


def _flat(metadata: Iterable[Any]) -> list[Any]:
    # A `Field(ge=…)` inside of a union is not taken apart by pydantic.
    return [part for each in metadata for part in getattr(each, "metadata", [each])]


def numbers(typed: str | float | Iterable[float] | None, *, count: int, between: str) -> tuple[str | float, ...] | None:
    """Part what was typed into numbers, which are not checked yet; one stands for all.

    Args:
        typed: Text with numbers in it, a number, or several.
        count: How many are wanted.
        between: What stands between them in a text.
    """
    if typed is None:
        return None
    if isinstance(typed, str):
        parts: tuple[str | float, ...] = tuple(part.strip() for part in typed.lower().split(between))
    else:
        parts = tuple(typed) if isinstance(typed, Iterable) else (typed,)
    return parts * count if len(parts) == 1 else parts
