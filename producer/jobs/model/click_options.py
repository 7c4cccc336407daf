"""Options of commands, made of the models that define them: `gradcam submit` has all, `gradcam-worker try` some."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from producer.jobs.model.options import Parameter, parameters
from producer.jobs.model.text import split_commas

if TYPE_CHECKING:
    from pydantic import BaseModel


class ChunkSize(click.ParamType["int | None"]):
    """A number from 1 to 512, or auto."""

    name = "auto|N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Read it; None is auto."""
        if value in {None, "auto"}:
            return None
        return int(click.IntRange(1, 512)(value, param, ctx))


def click_options(*models: type[BaseModel], without: Collection[str] = ()) -> list[click.Option]:
    """All that can be typed of some models, but for some names in Python."""
    found = (each for model in models for each in parameters(model).values())
    return [_click_option(each) for each in found if each.name not in without]


def _click_option(parameter: Parameter) -> click.Option:
    option, default = parameter.option, parameter.default
    told = f"  [default: {option.absent}]" if option.absent else ""
    settings: dict[str, Any] = {"help": parameter.help + told, "type": _type(parameter)}
    if parameter.kind == "flag":
        settings |= {"is_flag": True, "type": None}
    elif option.repeatable:
        settings |= {"multiple": True}
    elif option.auto:
        settings |= {"default": "auto", "show_default": True}
    elif option.by_commas:
        settings |= {"default": ",".join(default), "show_default": bool(default), "callback": _split}
    else:
        settings |= {"default": default, "show_default": default is not None}
    return click.Option([parameter.flag, parameter.name], **settings)


def _split(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    return split_commas(text)


def _type(parameter: Parameter) -> click.ParamType[Any]:
    if parameter.option.auto:
        return ChunkSize()
    if parameter.kind == "choice":
        return click.Choice(parameter.choices)
    if parameter.kind == "int":
        return click.IntRange(parameter.minimum, parameter.maximum)
    return click.STRING
