"""What every way to name many images has in common: a folder, a list, a prefix, or single ones in a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from producer.input.bad_rows import BadRows
    from producer.input.source import Source

#: Sources handed on at once: enough to keep Python out of the loop, few enough to weigh nothing.
BATCH = 1000


class SourceGroup(ABC):
    """Some of the images that were named: a folder, a list, a prefix, or single ones in a row."""

    #: How many there are; none where only reading them all would tell. At least the limit where there is one.
    count: int | None = None
    #: Whether columns can be chosen in it.
    has_columns = False
    #: Whether patterns choose from it.
    has_patterns = False
    #: Files that are no images by their names, by suffix; those that patterns leave out are not among them.
    left_out: Mapping[str, int] = MappingProxyType({})
    #: Rows that cannot be used and were left out; none where nothing has rows.
    bad: BadRows | None = None

    @abstractmethod
    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Look whether the images can be used, before anything is sent.

        Args:
            at_most: Look no further than the first so many.
            whole: Make the count known, and what is read the same each time, also where that takes long.

        Raises:
            UsageError: Says in a sentence which cannot be used, and why.
        """

    @abstractmethod
    def batches(self) -> Iterator[list[Source]]:
        """Read the images, from the first one on each time. Errors as `check`."""

    @abstractmethod
    def close(self) -> None:
        """Give back what was kept on the disk."""
