"""Write the names of torchvision's and timm's networks, as they are installed here, for the client, which has neither.

python tests/support/network_names.py > producer/jobs/model/network_names.txt
"""

from __future__ import annotations

import timm
import torchvision
from torchvision.models import list_models

from producer.jobs.model.network_names import SEGMENTATION, TIMM
from worker.models import detectors


def lines() -> list[str]:
    """The versions, then a line a network: its name, and the tags of the weights that timm has for it."""
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for tagged in timm.list_models(include_tags=True):
        name, _, tag = tagged.partition(".")
        if tag:
            tags[name].append(tag)
    return [
        f"# torchvision {torchvision.__version__.partition('+')[0]}, timm {timm.__version__}",
        *sorted(list_models(module=torchvision.models)),
        *(f"{name} {SEGMENTATION}" for name in sorted(list_models(module=torchvision.models.segmentation))),
        *sorted(detectors.names()),
        *(" ".join((TIMM + name, *sorted(tags[name]))) for name in sorted(tags)),
    ]


if __name__ == "__main__":
    print("\n".join(lines()))
