"""Which pictures of a job are asked for, and which file name each gets on this disk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from producer.jobs.fetch import addresses
from producer.jobs.model import keys, names
from producer.jobs.model.errors import UsageError

if TYPE_CHECKING:
    from producer.jobs.model.results import Result
    from producer.jobs.model.spec import JobSpec
    from producer.output.filters import Test
    from producer.output.objects import Objects

RAW = "raw"
#: Where several classes were explained, an object's kind begins with its class; or with its box.
_OF_A_CLASS = re.compile(r"(?:class|box)\d+-")
_DIGEST_BYTES = 7


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that is asked for."""

    #: The image's.
    index: int
    #: `cam`, …; with several classes `class281-cam`.
    kind: str
    #: Where it is, as the manifest says it.
    address: str
    #: Its name in a folder of the job's pictures.
    name: str


def kinds_of(spec: JobSpec) -> tuple[str, ...]:
    """The kinds of pictures a job makes of each class, in their order."""
    return (*spec.outputs, RAW) if spec.raw else spec.outputs


def chosen_kinds(spec: JobSpec, only: Iterable[str]) -> tuple[str, ...]:
    """Those of a job's kinds that are asked for; all when none is named.

    Raises:
        UsageError: The job makes no such pictures.
    """
    if isinstance(only, str):
        raise UsageError("only must be a list of kinds, not one alone")
    wanted, made = tuple(only), kinds_of(spec)
    unknown = sorted(set(wanted) - set(made))
    if unknown:
        raise UsageError(f"this job has no pictures called {', '.join(unknown)[:200]}: it has {', '.join(made)}")
    return tuple(kind for kind in made if kind in wanted) if wanted else made


def without_class(kind: str) -> str:
    """`cam` of `class281-cam` and of `box1-cam`."""
    return _OF_A_CLASS.sub("", kind, count=1)


def pictures(results: Iterable[Result], objects: Objects, *, kinds: Iterable[str], where: Test) -> Iterator[Picture]:
    """The pictures of those images for which `where` holds.

    Args:
        results: All images of the job with an end, in order: which name a picture gets must not depend on the question.
        objects: The job's; what is not among them is not a picture of this job.
        kinds: Which ones.
        where: Of which images.
    """
    wanted, local = set(kinds), LocalNames()
    for result in results:
        named = {kind: local.of(result, kind, address) for kind, address in result.objects.items()}
        local.next_image()
        if not where(result):
            continue
        for kind, address in result.objects.items():
            if without_class(kind) in wanted and objects.are_ours(address):
                yield Picture(result.index, kind, address, named[kind])


def file_name(result: Result, kind: str, address: str) -> str:
    """The original program's name for a picture; never a path, whatever the manifest says."""
    name, in_shard, member = address.rpartition("/")[2].partition("#")
    if in_shard:
        # There names are `<index>.<kind>.<format>`, as webdataset has them.
        name = keys.picture_name(addresses.stem(result.uri), result.network or "", kind, member.rpartition(".")[2])
    # What is too long keeps its end, which says the kind.
    return names.safe(names.end(name, names.MAX_BYTES))


class LocalNames:
    """File names as the original program gives them; the index goes before those that an earlier image has.

    `cat-vgg16-cam.jpg` and `cat-vgg16-gb.jpg` have all but the kind in common, and get an index or none together. Names
    that differ in case alone count as one: some file systems think so. The same images in the same order get the same
    names. Memory takes about 80 bytes an image.
    """

    def __init__(self) -> None:
        #: Digests of what the names of earlier images have in common.
        self._taken: set[int] = set()
        #: What goes before the names of this image, by what they have in common; and those given.
        self._here: dict[str, str] = {}
        self._given: set[str] = set()

    def of(self, result: Result, kind: str, address: str) -> str:
        """The name of an image's picture."""
        name, index = file_name(result, kind, address), f"{result.index:08d}-"
        common = _common(name)
        if common not in self._here:
            before = ""
            while self._is_taken(before + name):
                before += index
            self._here[common] = before
        given = self._here[common] + name
        # Two of one image's pictures have one name only where somebody else wrote the manifest.
        while _folded(given) in self._given or self._is_taken(given):
            given = index + given
        self._given.add(_folded(given))
        return given

    def next_image(self) -> None:
        """Finish an image: all its pictures have their names."""
        self._taken |= {_digest(_common(name)) for name in self._given}
        self._here.clear()
        self._given.clear()

    def _is_taken(self, name: str) -> bool:
        return _digest(_common(_folded(name))) in self._taken


def _common(name: str) -> str:
    return name.rpartition("-")[0] or name


def _folded(name: str) -> str:
    """The same for all names that some file system takes for one: Windows goes by capitals, macOS folds them."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFD", name.upper()).casefold()


def _digest(text: str) -> int:
    # A false match within ten million images has a chance of 1 in 1,000, and costs a needless index.
    return int.from_bytes(blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest())
