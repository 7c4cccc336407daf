"""What a submission leaves out, in a line or two: rows that cannot be used, files that are no images."""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from producer.input.selection import describe_left_out, describe_no_files
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import counted
from producer.output.resubmission_list import beside, check_name, write_again
from producer.submission.command_line import blanks, submit_command

if TYPE_CHECKING:
    from producer.client.talk import Talk
    from producer.input.bad_rows import BadRow
    from producer.input.sources import ReadOptions, Sources

COLUMNS = ("uri", "id", "class", "label", "list", "line", "message", "row")
_SHOWN = 3
_FILE = "bad-rows.jsonl"


def check_file(name: str | None, reading: ReadOptions) -> None:
    """Look at the name of the file for bad rows before anything is read. Raises UsageError."""
    if name is None:
        return
    if not reading.skip_bad:
        raise UsageError("--bad-rows goes with --skip-bad")
    check_name(Path(name))


def list_bad(talk: Talk, sources: Sources, name: str | None, typed: Mapping[str, Any], *, dry_run: bool) -> None:
    """Print how many rows are left out and the first one, and write all of them to a file.

    Args:
        talk: Where to say it.
        sources: What was read, before anything is sent.
        name: The file; `bad-rows.jsonl` when absent, or the next such name that is free.
        typed: What `Client.submit` takes, by its names.
        dry_run: Whether nothing is to be changed: no file is written but one that was named.

    Raises:
        UsageError: The file cannot be written, or holds something else.
    """
    bad = sources.bad_count
    if not bad:
        return
    talk.print(f"left out: {counted(bad, 'row')} that cannot be used")
    for row in islice(sources.bad_rows(), _SHOWN):
        talk.print(f"  {row.sentence}")
    if bad > _SHOWN:
        talk.print(f"  … and {bad - _SHOWN:,} more")
    if dry_run and name is None:
        return
    path = _written(sources, name)
    # They are a job of their own: under the name of this one they would be taken for other images of it.
    command = submit_command([str(path), *_how_to_read(sources.reading)], {**typed, "name": None})
    talk.print_command(f"all of them are in {path}; once corrected", command)
    if open_words := blanks(command):
        talk.print(f"there {open_words}")


def _how_to_read(reading: ReadOptions) -> list[str]:
    """Return the options by which `gradcam submit` reads such a list."""
    columns = {"class": reading.class_column, "id": reading.id_column, "label": reading.label_column}
    options = [word for name, column in columns.items() if column for word in (f"--{name}-column", name)]
    options += ["--label-from", reading.label_from] if reading.label_from else []
    options += ["--allow-local"] if reading.allow_local else []
    kept = beside(COLUMNS, dict.fromkeys(reading.keep_columns, ""))
    return [*options, "--keep-columns", ",".join(kept)] if kept else options


def tell_left_out(talk: Talk, sources: Sources) -> None:
    """Print in one line which files of folders and prefixes are no images."""
    if words := describe_left_out(sources.left_out):
        talk.print(f"left out, no images by their names: {words}")
    if words := describe_no_files(sources.left_out):
        talk.print(f"left out, no files behind names of images: {words}")


def _written(sources: Sources, name: str | None) -> Path:
    """Write the rows to a file of that name; one that was corrected already is never written over."""
    wanted = Path(_FILE if name is None else name)
    names = (wanted.with_stem(f"{wanted.stem}-{number}") for number in count(2))
    for path in chain([wanted], names):
        if not path.is_file():
            write_again(lambda: _rows(sources), path, COLUMNS)
            return path
        if _holds(path, sources):
            return path
        if name is not None:
            raise UsageError(f"{path} is there already and holds something else: choose another --bad-rows")
    raise AssertionError("numbers do not end")


def _holds(path: Path, sources: Sources) -> bool:
    """Whether a file holds these rows already, as when a submission is continued."""
    with tempfile.TemporaryDirectory(prefix="gradcam-") as folder:
        same = Path(folder, path.name)
        write_again(lambda: _rows(sources), same, COLUMNS)
        return filecmp.cmp(same, path, shallow=False)


def _rows(sources: Sources) -> Iterator[dict[str, object]]:
    return map(_row, sources.bad_rows())


def _row(bad: BadRow) -> dict[str, object]:
    values = (bad.uri, bad.id, bad.of_class, bad.label, bad.list, bad.number, bad.why, bad.raw)
    return {**dict(zip(COLUMNS, values, strict=True)), **beside(COLUMNS, bad.keep)}
