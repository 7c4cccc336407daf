"""Stand-ins for the classes that a pickle names beside its tensors: nothing is imported, called or kept of them.

torch's restricted unpickler makes objects of classes that it is told of by their full names. It is told of these in
their place: whatever arguments and state the file has for them are dropped.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import Any, Final

#: A file that names more classes than any training program does is no checkpoint.
_MOST: Final = 1000
#: Subclasses of dict that such programs keep beside the weights: only their entries count.
_DICTS: Final = frozenset({"collections.defaultdict"})


class _Inert(list[Any]):
    """Takes whatever a pickle does to an object, and keeps at most the entries of a list."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _state: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key


def inert_classes(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return a stand-in for each of the names, `module.name`, which torch finds by that name; none for too many."""
    wanted = list(names)
    return [] if len(wanted) > _MOST else [_stand_in(name) for name in wanted]


def _stand_in(full_name: str) -> Callable[..., Any]:
    module, _, name = full_name.rpartition(".")
    # Pickles of protocol 2 have the names of Python 2, which torch reads as those of today.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    if f"{module}.{name}" in _DICTS:

        def made(*_: Any) -> dict[Any, Any]:
            return {}

        made.__module__, made.__qualname__ = module, name
        return made
    return type("Inert", (_Inert,), {"__module__": module, "__qualname__": name})
