"""Which class is meant: by its number, or by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import JobError

if TYPE_CHECKING:
    from worker.models.networks import Network

#: In place of a class id: the most likely one.
PREDICTED: Final = -1


def checked_class(network: Network, class_id: int | None, class_name: str | None) -> int | None:
    """Give the class id that is meant; None where neither number nor name is given.

    Raises:
        JobError: The network has no such class; where it was asked for one image alone, that is the image's error.
    """
    from worker.models.networks import class_id_of

    if class_id is None:
        return None if class_name is None else class_id_of(network, class_name)
    if class_id >= network.classes:
        raise JobError(f"class {class_id} is out of range: {network.name} has classes 0 to {network.classes - 1}")
    return class_id


def label_of(network: Network, label: str | None) -> int | None:
    """Give the class id that a label means, by number or name; None where there is none, or the network has no such."""
    if label is None:
        return None
    number = int(label) if label.isdecimal() else None
    try:
        return checked_class(network, number, None if number is not None else label)
    except JobError:
        return None
