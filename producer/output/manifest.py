"""A chunk's manifest: the records of each image, which of them counts, and what cannot be read.

Where the job table is there, its bits say what is: a record counts only if its state is that of the image's bit, the
latest of several. Where only the store is left, the latest epoch counts; within one, done beats failed, as in the
table: a stale holder may still have recorded `done`, and its `failed` does not count.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import ValidationError

from producer.jobs.model.items import MAX_LINES
from producer.jobs.model.keys import ManifestPart
from producer.jobs.model.results import Result
from producer.jobs.model.spec import is_newer
from producer.jobs.model.states import ItemState
from producer.jobs.model.text import counted

_INDEX = re.compile(rb'\{"index":(\d{1,18})[,}]')
_WORDS = {ItemState.DONE: "done", ItemState.FAILED: "failed"}


class Record(NamedTuple):
    """What one part of a manifest says of an image."""

    part: ManifestPart
    result: Result


@dataclass(frozen=True, slots=True)
class Damage:
    """A line of a manifest, or the whole of a part, that cannot be read."""

    #: The part's object.
    key: str
    #: Which line, from 1 on; None of a part with nothing in it.
    line: int | None
    #: Of which image it is, where that can be seen.
    index: int | None
    #: It is whole, and of a newer version of this program.
    newer: bool = False


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a part with their numbers, from 1 on; memory does not grow with how many there are."""
    return ((number, line.rstrip(b"\r\n")) for number, line in enumerate(io.BytesIO(content), 1))


@dataclass
class ChunkRecords:
    """What is known of a chunk's images."""

    number: int
    #: The index of its first image.
    first: int
    #: One ItemState byte an image, as the job table has them; None where only the store is left.
    states: bytes | None = None
    #: index → all records of it, in the order of their parts.
    records: dict[int, list[Record]] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)

    def add(self, key: str, part: ManifestPart, content: bytes, size: int) -> None:
        """Read one part; parts come in the order of `ManifestPart`.

        Args:
            key: The part's object.
            part: Whose it is.
            content: Its lines.
            size: Images a chunk: what calls itself an image of another chunk is damaged.
        """
        if not content.strip():
            self.damage.append(Damage(key, None, None))
        for number, line in lines_of(content):
            if number > MAX_LINES:
                self.damage.append(Damage(key, number, None))
                break
            if not line:
                continue
            try:
                result = Result.model_validate_json(line)
            except ValidationError as error:
                self.damage.append(Damage(key, number, self._index_of(line, size), newer=is_newer(error)))
                continue
            if not self.first <= result.index < self.first + size:
                self.damage.append(Damage(key, number, None))
                continue
            self.records.setdefault(result.index, []).append(Record(part, result))

    def refuse(self, key: str) -> None:
        """Take note of a part that is too long to be read."""
        self.damage.append(Damage(key, None, None))

    def _index_of(self, line: bytes, size: int) -> int | None:
        found = _INDEX.match(line)
        return int(found[1]) if found and self.first <= int(found[1]) < self.first + size else None

    def state(self, index: int) -> ItemState:
        """Where the job table says that an image is."""
        offset = index - self.first
        return ItemState(self.states[offset]) if self.states and offset < len(self.states) else ItemState.PENDING

    def result(self, index: int) -> Result | None:
        """The record of an image that counts; None where there is none."""
        found = self.records.get(index, [])
        if self.states is not None:
            wanted = _WORDS.get(self.state(index))
            return next((result for _, result in reversed(found) if result.state == wanted), None)
        if not found:
            return None
        last = found[-1].part.epoch
        of_last = [result for part, result in found if part.epoch == last]
        return next((result for result in reversed(of_last) if result.state == "done"), of_last[-1])

    def results(self) -> Iterator[Result]:
        """The records that count, in the order of the images."""
        return (result for index in sorted(self.records) if (result := self.result(index)) is not None)

    def unknown(self) -> int:
        """How many images have their end, as the job table says, without a record of it."""
        states = enumerate(self.states or b"", self.first)
        return sum(state in _WORDS and self.result(index) is None for index, state in states)


class Damages:
    """What could not be read of a job's manifest, for a sentence."""

    def __init__(self) -> None:
        self._torn = self._newer = 0
        self._first: Damage | None = None

    def note(self, damage: Iterable[Damage]) -> None:
        """Count what was found."""
        for one in damage:
            self._newer += one.newer
            self._torn += not one.newer
            if self._first is None or (self._first.newer and not one.newer):
                self._first = one

    def __str__(self) -> str:
        if self._first is None:
            return "their manifests are gone from the store"
        said = []
        if self._torn:
            said.append(f"{counted(self._torn, 'line')} of the manifest cannot be read")
        if self._newer:
            said.append(f"{counted(self._newer, 'line')} of a newer version of gradcam-queue: update this one")
        place = self._first.key if self._first.line is None else f"{self._first.key} line {self._first.line}"
        return f"{', '.join(said)} (the first: {place})"
