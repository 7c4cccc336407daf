"""Find the class that a job or an image means, by its number or by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from producer.jobs.model.errors import JobError
from producer.jobs.model.suggestions import nearest
from producer.jobs.model.text import quoted

if TYPE_CHECKING:
    from worker.models.networks import Network

#: In place of a class id: the most likely one.
PREDICTED: Final = -1


def checked_class(network: Network, class_id: int | None, class_name: str | None) -> int | None:
    """Return the class id; None where there is neither a number nor a name.

    Raises:
        JobError: The network has no such class. For one image alone the caller makes it the image's error.
    """
    if class_id is None:
        return None if class_name is None else class_id_of(network, class_name)
    if class_id >= network.classes:
        raise JobError(f"class {class_id} is out of range: {network.name} has classes 0 to {network.classes - 1}")
    return class_id


def class_id_of(network: Network, name: str) -> int:
    """Find a class by its name; with another case of letters it must be the only one.

    Raises:
        JobError: the classes have no names, or none or several have this one.
    """
    if network.categories is None:
        raise JobError(f"the classes of these weights of {network.name} have no names; give them, or a class id")
    for spelling in (str, str.casefold):
        ids = [i for i, category in enumerate(network.categories) if spelling(category) == spelling(name)]
        if len(ids) > 1:
            raise JobError(f"{quoted(name)} is the name of classes {' and '.join(map(str, ids))}; give a class id")
        if ids:
            return ids[0]
    raise JobError(f"no class of {network.name} is called {quoted(name)}{nearest(name, network.categories)}")


def class_called(network: Network, name: str) -> int | None:
    """Return the id of a class by its number or its name; errors as of `checked_class`."""
    number = int(name) if name.isdecimal() else None
    return checked_class(network, number, None if number is not None else name)


def label_of(network: Network, label: str | None) -> tuple[int | None, str | None]:
    """Return the class id that a label means, by number or name, or why it means none; two None without a label."""
    if label is None:
        return None, None
    try:
        return class_called(network, label), None
    except JobError as error:
        return None, str(error)
