"""Options of `gradcam submit`, made of the models that define them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from producer.commands.console import ChunkSize, split_commas
from producer.jobs.model.options import Parameter, parameters

if TYPE_CHECKING:
    from pydantic import BaseModel


def click_options(*models: type[BaseModel]) -> list[click.Option]:
    """All that can be typed of some models."""
    return [_click_option(each) for model in models for each in parameters(model).values()]


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
