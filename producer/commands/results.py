"""The verbs of `gradcam` that fetch what a job made: results and failures.

Heavy imports stand inside the functions that need them, so that `gradcam --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import click

from producer.commands.console import (
    PLAIN_CODES,
    Duration,
    Examples,
    Renamed,
    TerminalLines,
    client_from_env,
    examples,
    make_talk,
)
from producer.jobs.model.errors import UsageError
from producer.jobs.model.limits import MAX_COUNT
from producer.jobs.model.terminal import out, out_json
from producer.jobs.model.text import counted, shown, split_commas

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.client.talk import Talk
    from producer.output.job_results import PictureUrl

_HOUR_S = 3600.0


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam failures JOB",
        "gradcam failures JOB --json | jq .item.uri",
        "gradcam failures JOB --only fetch --output failed.jsonl",
        "gradcam submit failed.jsonl --uri-column uri --class-column class --id-column id --network resnet50",
        codes=PLAIN_CODES,
    ),
)
@click.argument("job")
@click.option(
    "--only",
    cls=Renamed,
    earlier="--reason",
    metavar="REASON",
    help="Only images that failed for it, such as fetch, timeout or store.",
)
@click.option(
    "--output",
    metavar="FILE",
    help="Write a .jsonl or .csv list that `gradcam submit` reads again; addresses in full, for your eyes alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an image.")
def failures(job: str, only: str | None, output: str | None, as_json: bool) -> None:
    """List the images of a job that failed, and why."""
    if output is not None:
        if as_json:
            raise UsageError("--output writes what the file's name says: leave --json out")
        _export_failures(job, output, only)
        return
    for whole in client_from_env().failures(job, only=only):
        failure = whole.shown()
        if as_json:
            out_json(failure.model_dump_json(exclude_none=True))
        else:
            named = failure.item.id or failure.item.uri
            out(failure.index, failure.reason, named, failure.message)


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam results JOB --output-dir results --only cam,heatmap",
        "gradcam results JOB --jsonl > results.jsonl",
        "gradcam results JOB --csv --where class=tabby --where 'probability<0.5'",
        "gradcam results JOB --parquet results.parquet",
        "gradcam results JOB --failed --csv --output failed.csv",
        "gradcam results JOB --sort probability --limit 100 --only cam   # the least certain",
        "gradcam results JOB --urls --expires 1d --only cam",
        codes=PLAIN_CODES,
    ),
)
@click.argument("job")
@click.option("--output-dir", metavar="DIR", help="Download pictures to this folder; goes on where it stopped.")
@click.option("--jsonl", "--json", "as_jsonl", is_flag=True, help="Print a line of JSON an image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a table.")
@click.option("--parquet", metavar="FILE", help="Write a table to this file (needs pyarrow).")
@click.option("--urls", is_flag=True, help="Print addresses at which anybody can read the pictures for a while.")
@click.option("--expires", type=Duration(), help="For how long: 90s, 15m, 1h, at most 7d.  [default: 1h]")
@click.option("--output", metavar="FILE", help="Write to this file what would be printed.")
@click.option("--only", metavar="KINDS", help="Only these pictures: heatmap, cam, gb, cam_gb, raw; by commas.")
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Only images of which it holds: class=281, class=tabby, id=…, uri=*/cats/*.jpg, state=failed, flat=true, "
    "reason=fetch, keep.COLUMN=…, 'probability<0.5', 'index>=1000', 'class!=tabby' (all "
    "others). Of several, all must hold.",
)
@click.option("--failed", is_flag=True, help="Only images that failed.")
@click.option(
    "--sort", metavar="COLUMN", help="In the order of a column: probability, or -probability for the greatest first."
)
@click.option("--limit", type=click.IntRange(1, MAX_COUNT), help="Only the first so many images.")
def results(
    job: str,
    output_dir: str | None,
    as_jsonl: bool,
    as_csv: bool,
    parquet: str | None,
    urls: bool,
    expires: float | None,
    output: str | None,
    only: str | None,
    where: tuple[str, ...],
    failed: bool,
    sort: str | None,
    limit: int | None,
) -> None:
    """Download a job's pictures, or print what is known of each image.

    Without --jsonl, --csv, --parquet and --urls the pictures are downloaded to the folder `results`.
    """
    format = _format(as_jsonl, as_csv, parquet, urls)
    if output_dir is None and format is None:
        output_dir = "results"
    _check(output_dir, format, expires, output, failed=failed)
    client, talk = client_from_env(), make_talk()
    kinds = split_commas(only or "")
    chosen: dict[str, Any] = {"only": kinds, "where": where, "sort": sort, "limit": limit}
    count = 0
    if format == "urls":
        links = client.urls(job, expires_s=expires or _HOUR_S, **chosen)
        with _output(output, private=True) as file:
            count = _print_urls(links, file, as_json=as_jsonl)
        _tell(talk, output, counted(count, "address", "addresses"))
    elif format is not None:
        target = output if parquet is None else parquet
        if target is None:
            with _output(None) as file:
                count = client.export(job, file, format=format, failed=failed, **chosen)
        else:
            count = client.export(job, target, format=format, failed=failed, **chosen)
            _tell(talk, target, counted(count, "image"))
    if output_dir is not None:
        count = download_to(client, talk, job, output_dir, **chosen)
    if not count and (where or failed):
        talk.print(f"no image of job {job} matches")


def download_to(client: Client, talk: Talk, job: str, output_dir: str, **chosen: Any) -> int:
    """Download pictures, with a bar on a terminal and a line at the end; how many there are.

    Args:
        client: Whose job it is.
        talk: Where that goes.
        job: Its id.
        output_dir: The folder.
        chosen: Which ones, as `Client.fetch` has it.
    """
    count = already = 0
    try:
        with _bar(client, talk, job) as show:
            for fetched in client.fetch(job, output_dir, **chosen):
                count, already = count + 1, already + fetched.already
                show(fetched.index, count, already)
    except KeyboardInterrupt:
        talk.print(f"{counted(count, 'picture')} in {output_dir}: the same command goes on")
        raise
    there = f", {already} of them were there already" if already else ""
    talk.print(f"{counted(count, 'picture')} in {output_dir}{there}")
    return count


def _format(
    as_jsonl: bool, as_csv: bool, parquet: str | None, urls: bool
) -> Literal["jsonl", "csv", "parquet", "urls"] | None:
    if (as_jsonl and not urls) + as_csv + (parquet is not None) + urls > 1:
        raise UsageError("choose one of --jsonl, --csv, --parquet and --urls (--urls may be with --jsonl)")
    if urls:
        return "urls"
    if as_jsonl:
        return "jsonl"
    if as_csv:
        return "csv"
    return None if parquet is None else "parquet"


def _check(
    output_dir: str | None, format: str | None, expires: float | None, output: str | None, *, failed: bool
) -> None:
    """What was typed is looked at before the settings are: it is nearer to the one who typed it."""
    check_output_dir(output_dir)
    if output is not None and format not in {"jsonl", "csv", "urls"}:
        raise UsageError("--output goes with --jsonl, --csv or --urls; pictures go to --output-dir")
    if expires is not None and format != "urls":
        raise UsageError("--expires goes with --urls")
    if failed and (output_dir is not None or format == "urls"):
        raise UsageError("failed images have no pictures: add --jsonl, --csv or --parquet, without --output-dir")


def check_output_dir(output_dir: str | None) -> None:
    """Make sure that pictures can be written there, before anything is sent or read. Raises UsageError."""
    if output_dir is None:
        return
    if not output_dir:
        raise UsageError("--output-dir needs the name of a folder")
    from producer.output.download_folder import check_folder

    check_folder(Path(output_dir))


@contextmanager
def _output(name: str | None, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that is written whole or not at all; stdout without a name."""
    if name is None:
        try:
            yield cast("BinaryIO", TerminalLines(sys.stdout.buffer)) if sys.stdout.isatty() else sys.stdout.buffer
            # Here, where an error becomes a sentence; not while Python exits.
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # The reader (`| head`) has what it wanted, and is no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None
        return
    from producer.output.atomic_file import atomic_file

    with atomic_file(Path(name), private=private) as opened:
        yield opened


def _print_urls(links: Iterable[PictureUrl], file: BinaryIO, *, as_json: bool) -> int:
    count = 0
    for link in links:
        # An address that is cut leads nowhere: it is shown whole, however long.
        line = (
            json.dumps(asdict(link)) if as_json else f"{link.index}\t{shown(link.kind)}\t{shown(link.url, sys.maxsize)}"
        )
        file.write(line.encode() + b"\n")
        count += 1
    return count


def _export_failures(job: str, output: str, only: str | None) -> None:
    from producer.output.failures import UPLOADED, how_to_read, uploads_of
    from producer.submission.command_line import blanks, command_of

    client, talk = client_from_env(), make_talk()
    count = client.export_failures(job, output, only=only)
    first, found = next(client.failures(job, only=only), None), client.table.queries.spec(job)
    if not count or first is None or found is None:
        talk.print(f"{counted(count, 'failed image')} in {output}")
        return
    command = command_of(found[0], sources=[output, *how_to_read(found[0], first.item.keep)])
    talk.print_command(f"{counted(count, 'failed image')} in {output}; as a job of their own", command)
    if open_words := blanks(command):
        talk.print(f"there {open_words}")
    if first.item.uri.startswith(uploads_of(found[0], job)):
        talk.print(UPLOADED)


def _tell(talk: Talk, target: str | None, what: str) -> None:
    if target is not None:
        talk.print(f"{what} in {target}")


@contextmanager
def _bar(client: Client, talk: Talk, job: str) -> Iterator[Callable[[int, int, int], None]]:
    """Shows how far a download is; it goes through the images in order."""
    if not talk.is_terminal:
        yield lambda index, count, already: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    total = client.status(job).total
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=talk, transient=True) as progress:
        task = progress.add_task("", total=total, note="")

        def show(index: int, count: int, already: int) -> None:
            elapsed_s = progress.tasks[0].elapsed or 0.0
            rate = f", {(count - already) / elapsed_s:.0f}/s" if elapsed_s and count > already else ""
            there = f", {already} of them were there already" if already else ""
            progress.update(task, completed=index + 1, note=f"{counted(count, 'picture')}{there}{rate}")

        yield show


COMMANDS = (results, failures)
