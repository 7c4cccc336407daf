"""Folders and patterns become local images: sorted by path, a folder at a time, however many files there are.

Links to folders are followed, except back to a folder that one is in already. One that leads outside of the folder that
was named is refused: whoever put it there may not be the one who submits (`--follow-links`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from producer.input.read_options import ReadOptions
from producer.input.selection import LeftOut, chosen, describe_empty
from producer.input.source import Source, check_readable, is_within
from producer.input.source_group import BATCH, SourceGroup
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import shown

#: Links to folders, one behind the other: folders that are linked to each other have no end of paths.
_MAX_LINKS = 4
_MAGIC = re.compile(r"[*?[]")
#: Where in a pattern one stands, below a folder; none where everything below is taken.
_States: TypeAlias = frozenset[int] | None


def is_pattern(text: str) -> bool:
    """Whether a path that is not there may be meant as a pattern."""
    return bool(_MAGIC.search(text))


class Pattern:
    """A path with `*`, `?` and `[…]` within its parts, and `**` for any number of folders, as shells have them."""

    def __init__(self, text: str) -> None:
        parts = text.split("/")
        plain = next(place for place, part in enumerate(parts) if is_pattern(part))
        #: The folder below which everything lies that is meant.
        self.root = "/".join(parts[:plain]) or ("/" if plain else ".")
        self._parts = [part for part in parts[plain:] if part]
        self._tests = [None if part == "**" else re.compile(translate(part)).match for part in self._parts]
        self.start = self._at({0})

    def step(self, states: _States, name: str) -> _States:
        """Where one stands below an entry of a folder; an empty set where the entry is not meant."""
        if states is None:
            return None
        return self._at({after for state in states for after in self._after(state, name)})

    def _after(self, state: int, name: str) -> Iterator[int]:
        if state == len(self._parts) or (name.startswith(".") and not self._parts[state].startswith(".")):
            return
        test = self._tests[state]
        if test is None:
            yield state
        elif test(name):
            yield state + 1

    def _at(self, states: set[int]) -> _States:
        for state in range(len(self._parts)):
            if state in states and self._tests[state] is None:
                states.add(state + 1)  # `**` may also stand for no folder at all
        return None if len(self._parts) in states else frozenset(states)


@dataclass
class _Level:
    """A folder one is in."""

    below: str
    names: Iterator[str]
    folders: dict[str, _States]
    #: Those one is in, this one last.
    identities: tuple[tuple[int, int], ...]
    links: int


class Folder(SourceGroup):
    """The images below a folder, or those that a pattern means."""

    has_patterns = True

    def __init__(self, path: str, reading: ReadOptions, pattern: Pattern | None = None) -> None:
        self.name = shown(path)
        self._root = path if pattern is None else pattern.root
        self._pattern = pattern
        self._reading = reading
        self._takes = chosen(reading)
        self._seen: LeftOut | None = None
        self._whole = False
        #: What links may lead to; None: anything.
        self._inside = None if reading.follow_links else os.path.realpath(self._root)

    def check(self, at_most: int | None, *, whole: bool) -> None:
        """Look for the images and whether they can be read. Raises UsageError."""
        self.count = 0
        self.left_out = self._seen = LeftOut(self._reading)
        for path in islice(self.paths(), at_most):
            check_readable(path)
            self.count += 1
        self._seen = None
        if not self.count:
            under = "match" if self._pattern else "under"
            raise UsageError(f"no images {under} {self.name}: {describe_empty(self._reading, self.left_out)}")
        self._whole = at_most is None

    def batches(self) -> Iterator[list[Source]]:
        """Read the images. Raises UsageError when there are others than were checked."""
        paths, count = self.paths(), 0
        while batch := [Source(path=Path(path)) for path in islice(paths, BATCH)]:
            count += len(batch)
            yield batch
        if self._whole and count != self.count:
            raise UsageError(f"{self.name} has changed since it was checked: submit it again when it is complete")

    def close(self) -> None:
        """Nothing was kept."""

    def paths(self) -> Iterator[str]:
        """The paths of the images, in order."""
        levels = [self._enter("", None if self._pattern is None else self._pattern.start, None)]
        while levels:
            here = levels[-1]
            for name in here.names:
                below = here.below + name
                if name in here.folders:
                    levels.append(self._enter(below + "/", here.folders[name], here))
                    break
                yield os.path.join(self._root, below)
            else:
                levels.pop()

    def _enter(self, below: str, states: _States, above: _Level | None) -> _Level:
        folder = os.path.join(self._root, below)
        names: list[str] = []
        folders: dict[str, _States] = {}
        try:
            found = os.stat(folder)
            identity = (found.st_dev, found.st_ino)
            links = _links(folder, identity, above)
            if links is not None:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._sort(entry, below, states, names, folders)
        except OSError as error:
            raise UsageError(f"{shown(folder)} cannot be searched: {os.strerror(error.errno or 0)}") from None
        names.sort()
        return _Level(below, iter(names), folders, (*(above.identities if above else ()), identity), links or 0)

    def _sort(
        self, entry: os.DirEntry[str], below: str, states: _States, names: list[str], folders: dict[str, _States]
    ) -> None:
        after = self._pattern.step(states, entry.name) if self._pattern else None
        if _is(entry.is_dir):
            if after is None or after:
                self._check_link(entry)
                folders[entry.name] = after
                names.append(entry.name)
        elif after is None and self._takes(below + entry.name):
            if _is(entry.is_file):
                self._check_link(entry)
                names.append(entry.name)
            elif self._seen is not None:
                self._seen.see_no_file(link=entry.is_symlink())
        elif after is None and self._seen is not None and _is(entry.is_file):
            self._seen.see(below + entry.name)

    def _check_link(self, entry: os.DirEntry[str]) -> None:
        """Refuse a link that leads outside. Raises UsageError."""
        if self._inside is not None and entry.is_symlink() and not is_within(entry.path, self._inside):
            raise UsageError(
                f"{shown(entry.path)} is a link that leads outside of {shown(self._root)}: give --follow-links to take "
                "what such links lead to"
            )


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:
        return False  # A link that leads nowhere, or in a circle.


def _links(folder: str, identity: tuple[int, int], above: _Level | None) -> int | None:
    """Links to folders on the way to this one; none where it leads back to a folder one is in."""
    if above is None:
        return 0
    if not os.path.islink(folder.rstrip("/")):
        return above.links
    if identity in above.identities:
        return None
    if above.links == _MAX_LINKS:
        raise UsageError(f"{shown(folder)} lies behind {_MAX_LINKS + 1} links to folders: name the folder itself")
    return above.links + 1
