"""The names of all networks, known without torch, so that a mistyped one is refused before anything is uploaded.

They lie in `network_names.txt`, as the tested versions of torchvision and timm have them;
`tests/support/network_names.py` writes it. Newer versions know more: `--any-network` leaves the question to the
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from importlib.resources import files
from typing import Final, NamedTuple

from producer.jobs.model.errors import UsageError
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted

#: Short names for the commonest of their kind.
ALIASES: Final = {"vgg": "vgg16", "resnet": "resnet50", "densenet": "densenet121", "inception": "inception_v3"}
#: The one network whose real weights come in a Python package, for where nothing can be downloaded.
LITE0: Final = "efficientnet_lite0"
TIMM: Final = "timm/"
#: What a network of one's own may be called.
OWN_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
#: A model in the layout of Hugging Face: its files say which network it is.
HF: Final = "hf"
#: What stands behind the names of networks that tell the class of each pixel.
SEGMENTATION: Final = "=segmentation"


class Names(NamedTuple):
    """What can be named."""

    #: As `timm 1.0.31`.
    versions: tuple[str, ...]
    #: Every name, aliases and timm's with each of their tags among them.
    names: frozenset[str]
    #: Those of networks that tell the class of each pixel.
    segmentation: frozenset[str]


@lru_cache(maxsize=1)
def known() -> Names:
    """Read the list."""
    versions, *lines = (files("producer.jobs.model") / "network_names.txt").read_text(encoding="utf-8").splitlines()
    names, segmentation = {*ALIASES, LITE0}, set()
    for line in lines:
        name, *tags = line.split()
        if tags == [SEGMENTATION]:
            segmentation.add(name)
            tags = []
        names.update((name, *(f"{name}.{tag}" for tag in tags)))
    return Names(tuple(versions.removeprefix("# ").split(", ")), frozenset(names), frozenset(segmentation))


def may_segment(name: str) -> bool:
    """Whether a network may tell the class of each pixel: it does, or nobody here knows it."""
    return name in known().segmentation or name not in known().names


def check_network(name: str, registered: Callable[[], Collection[str]] = frozenset) -> None:
    """Make sure that a network is called so.

    Args:
        name: The name.
        registered: Asks which networks are registered with workers that are alive; called for a name that is not known.

    Raises:
        UsageError: There is none; names the nearest.
    """
    versions, names, _ = known()
    if name in names or name == HF:
        return
    there = registered()
    if name in there:
        return
    # Who writes ResNet50 means resnet50; who forgets timm/ is told.
    lower = name.lower()
    own = [other for other in names if other.startswith(TIMM) == lower.startswith(TIMM)]
    like = f"; there is {TIMM}{lower}" if TIMM + lower in names else nearest(lower, sorted({*own, *there}))
    raise UsageError(
        f"no network is called {quoted(name)} in {' and '.join(versions)}, and no worker that could be asked "
        f"has registered one{like}. Where workers that know it come later, add --any-network"
    )
