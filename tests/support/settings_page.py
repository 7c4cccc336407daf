"""The tables of settings in `docs/operations.md`, made of the models that read them: `make docs` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import marked_pages

from producer.jobs.model.settings import Connections, Setting
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

PAGE: Final = Path(__file__).parents[2] / "docs" / "operations.md"
_PARTS: Final[dict[str, type[BaseSettings]]] = {"connections": Connections, "worker": WorkerSettings}
#: From here on a number is easier to read in its unit.
_LARGE: Final = 2**20


def renewed() -> str:
    """The page as it should be: what is around the tables is written by hand."""
    return marked_pages.renewed(PAGE, {name: _table(model) for name, model in _PARTS.items()})


def _table(model: type[BaseSettings]) -> str:
    fields = list(model.model_fields.items())
    fields.sort(key=lambda each: _setting(each[1]).of_launcher)  # those that nobody sets come last
    prefix = str(model.model_config["env_prefix"])
    return marked_pages.table(
        ("variable", "meaning", "default"), [_row(f"{prefix}{name}".upper(), field) for name, field in fields]
    )


def _row(name: str, field: FieldInfo) -> tuple[str, str, str]:
    if not field.description:
        raise ValueError(f"{name} has no description: write one where it is defined")
    launcher = ". The launcher sets it, for each process" if _setting(field).of_launcher else ""
    return f"`{name}`", field.description + launcher, _default(name, field)


def _setting(field: FieldInfo) -> Setting:
    return next((each for each in field.metadata if isinstance(each, Setting)), Setting())


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if absent := _setting(field).absent:
        return absent
    default: Any = field.get_default()
    if default is None or default == ():
        raise ValueError(f"{name} does not say what holds where nothing is given: `Setting(absent=…)`")
    if isinstance(default, bool):
        return f"`{default}`".lower()
    if isinstance(default, int | float):
        return f"{default:.15g}{_in_units(name, default)}"
    return f"`{','.join(default)}`" if isinstance(default, tuple) else f"`{default}`"


def _in_units(name: str, number: float) -> str:
    if number < _LARGE:
        return ""
    size, unit = (number / 2**30, "Gi") if number >= 2**30 else (number / 2**20, "Mi")
    return f" ({size:g} {unit}{'B' if name.endswith('_BYTES') else ''})"


if __name__ == "__main__":
    PAGE.write_text(renewed(), encoding="utf-8")
