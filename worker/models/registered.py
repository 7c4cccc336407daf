"""The networks that whoever runs this worker has registered: by entry points of packages, or by a setting.

A name leads to a function here and nowhere else: no message and no file can name one. This module imports no torch and
none of those functions' modules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from producer.jobs.model.errors import NotHere
from producer.jobs.model.network_names import OWN_NAME
from producer.jobs.model.network_names import known as known_names
from producer.jobs.model.text import quoted

GROUP: Final = "gradcam_queue.networks"
_SETTING: Final = "GRADCAM_WORKER_NETWORKS"


@dataclass(frozen=True)
class Registered:
    """A network's name and the function that makes it."""

    name: str
    #: As `mylab.models:build_lungs`.
    function: str
    #: Who says so: the setting, or a package with its version.
    origin: str
    #: Why it cannot be used; "" where nothing speaks against it.
    problem: str = ""

    def resolve(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            NotHere: This machine lacks it.
        """
        if self.problem:
            raise NotHere(f"network {quoted(self.name)} cannot be used: {self.problem}")
        module, _, path = self.function.partition(":")
        try:
            found: Any = import_module(module)
            for attribute in path.split("."):
                found = getattr(found, attribute)
        # Whatever the module raises while it is imported: here it cannot be had.
        except (Exception, SystemExit) as error:
            first = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise NotHere(
                f"network {quoted(self.name)} cannot be used: {self.function} ({self.origin}) cannot be "
                f"imported: {first}"
            ) from error
        if not callable(found):
            raise NotHere(f"network {quoted(self.name)} cannot be used: {self.function} ({self.origin}) is no function")
        return found  # type: ignore[no-any-return]


def registered() -> dict[str, Registered]:
    """Return the registered networks by name; what the setting says comes before what packages say.

    A name that cannot be used is among them, with its problem.

    Raises:
        SettingsError: The setting cannot be read.
    """
    found: dict[str, Registered] = {}
    for entry in entry_points(group=GROUP):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
        other, problem = found.get(entry.name), ""
        # The same package may be found twice on the path.
        if other is not None and other.function != entry.value:
            problem = f"{other.origin} and {origin} both register it; say which by {_SETTING}={entry.name}=…"
        elif not re.fullmatch(OWN_NAME, entry.name):
            problem = f"{origin} registers it under a name that is none: use letters, digits, dots, dashes, underscores"
        elif entry.name in known_names().names:
            problem = f"{origin} registers it under the name of a known network; give it another name"
        found[entry.name] = Registered(entry.name, entry.value, origin, problem)
    for line in _of_setting():
        name, _, function = line.partition("=")
        found[name] = Registered(name, function, _SETTING)
    return {name: found[name] for name in sorted(found)}


def _of_setting() -> Sequence[str]:
    if _SETTING not in os.environ:
        return ()
    # Only here: `make gpu-check` loads networks where pydantic is not installed.
    from producer.jobs.model.settings import read
    from worker.settings import WorkerSettings

    return read(WorkerSettings).networks


def usable_names() -> list[str]:
    """Return the names of the registered networks against which nothing speaks; none of their code has run yet.

    Raises:
        SettingsError: The setting cannot be read.
    """
    return [name for name, own in registered().items() if not own.problem]
