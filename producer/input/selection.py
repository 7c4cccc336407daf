"""Which files of a folder or prefix are wanted, and counts of the others."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import translate
from typing import TYPE_CHECKING

from producer.input.source import SUFFIXES
from producer.jobs.model.text import counted, shown

if TYPE_CHECKING:
    from producer.input.read_options import ReadOptions

_NO_SUFFIX, _OTHERS = "without a suffix", "others"
#: What has an image's name and is no file, such as what a checkout without its data has: of one, and of several.
_NO_FILES = {
    "link that leads nowhere": "links that lead nowhere",
    "pipe, socket or device": "pipes, sockets or devices",
}
_LINK, _SPECIAL = _NO_FILES
#: Suffixes that are counted and shown apart, and what is shown of each: file names may end in anything.
_SUFFIXES_COUNTED, _SUFFIXES_SHOWN, _SUFFIX_CHARS = 1000, 8, 20
_IMAGE = re.compile(rf"[^/](?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})\Z", re.IGNORECASE)


def chosen(reading: ReadOptions) -> Callable[[str], object]:
    """Make a test that is true of the paths below a folder or prefix which are wanted."""
    included, excluded = _any_of(reading.include), _any_of(reading.exclude)
    wanted = included.match if included else _IMAGE.search
    if excluded is None:
        return wanted
    unwanted = excluded.match
    return lambda below: wanted(below) and not unwanted(below)


class LeftOut(Counter[str]):
    """Counts, by suffix, the files of a folder or prefix that are no images by their names."""

    def __init__(self, reading: ReadOptions) -> None:
        super().__init__()
        # Who says by patterns what is wanted knows what is not.
        self._none = bool(reading.include)
        self._excluded = _any_of(reading.exclude)

    def see(self, below: str) -> None:
        """Count a file that was not taken, if its suffix is the reason."""
        if self._none or (self._excluded and self._excluded.match(below)):
            return
        suffix = shown(os.path.splitext(below)[1].lower()) or _NO_SUFFIX
        self[suffix if suffix in self or len(self) < _SUFFIXES_COUNTED else _OTHERS] += 1

    def see_no_file(self, *, link: bool) -> None:
        """Count what is wanted by its name and is no file: a link, or something else."""
        self[_LINK if link else _SPECIAL] += 1


def describe_no_files(counts: Mapping[str, int]) -> str:
    """What was wanted by its name and is no file, in a line; nothing where there was nothing."""
    return ", ".join(counted(counts[one], one, several) for one, several in _NO_FILES.items() if counts.get(one))


def describe_left_out(counts: Mapping[str, int]) -> str:
    """What was left out for its name, in a line; nothing where nothing was."""
    named = [(suffix, count) for suffix, count in counts.items() if suffix not in _NO_FILES]
    most = sorted(named, key=lambda each: (each[0] == _OTHERS, -each[1], each[0]))
    words = [f"{count:,} {suffix[:_SUFFIX_CHARS]}" for suffix, count in most[:_SUFFIXES_SHOWN]]
    if rest := sum(count for _, count in most[_SUFFIXES_SHOWN:]):
        words.append(f"{rest:,} {_OTHERS}")
    return ", ".join(words)


def describe_empty(reading: ReadOptions, left_out: Mapping[str, int]) -> str:
    """What was looked for where nothing was found."""
    if not reading.include and not reading.exclude:
        words = ", ".join(filter(None, (describe_left_out(left_out), describe_no_files(left_out))))
        return f"looked for {', '.join(sorted(SUFFIXES))}" + (f"; left out: {words}" if words else "")
    patterns = [f"--include {text}" for text in reading.include] + [f"--exclude {text}" for text in reading.exclude]
    return f"looked for those of {' '.join(patterns)}"


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(translate, patterns))) if patterns else None
