"""What is known of each image, as lines of JSON, as CSV and as Parquet; always as a stream."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from operator import attrgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from producer.jobs.model.errors import UsageError
from producer.jobs.model.formulas import defused
from producer.jobs.model.text import in_json, quoted
from producer.output.pictures import without_class

if TYPE_CHECKING:
    from producer.jobs.model.results import ExplainedClass, Result
    from producer.jobs.model.spec import JobSpec

Type = Literal["int", "float", "bool", "text"]
Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

_OF_AN_IMAGE = (
    *("index", "uri", "id", "state", "class_id", "class_name", "probability", "layer", "flat"),
    *("label", "predicted", "predicted_probability", "correct", "reason", "message", "score"),
)
_OF_A_CLASS = ("class_id", "class_name", "probability", "flat", "score")
_TYPES: dict[str, Type] = {
    **{"index": "int", "class_id": "int", "probability": "float", "predicted_probability": "float", "score": "float"},
    **{"flat": "bool", "correct": "bool"},
}
KEEP = "keep."
#: A Parquet row group takes about 30 MB of memory; it is made of batches, whose Python objects take ten times theirs.
_ROWS_A_GROUP, _ROWS_A_BATCH = 32_768, 2_048


@dataclass(frozen=True)
class Column:
    """One column of a table of images."""

    name: str
    type: Type
    value: Callable[[Result], object]


def format_of(name: str) -> Format:
    """The format that a file's name stands for. Raises UsageError."""
    for format in FORMATS:
        if name.lower().endswith("." + format):
            return format
    raise UsageError(f"{name} does not say what to write: end it in .jsonl, .csv or .parquet")


def columns(spec: JobSpec, kinds: Iterable[str], keep: Iterable[str], uri: Callable[[str], str]) -> list[Column]:
    """The columns of a job's table.

    Where several classes were explained, or the label's beside the predicted one, the second's columns end in `.2`, and
    so on; the first's are as always.

    Args:
        spec: The job's.
        kinds: Of which pictures to give the addresses.
        keep: Names of columns that were carried along.
        uri: An object's address of its key.
    """
    kinds = tuple(kinds)
    made = [Column(name, _TYPES.get(name, "text"), attrgetter(name)) for name in _OF_AN_IMAGE]
    made += [Column(kind, "text", _address(kind, 0, uri)) for kind in kinds]
    for rank in range(1, 2 if spec.explain == "both" else spec.top_k):
        end = f".{rank + 1}"
        made += [Column(name + end, _TYPES.get(name, "text"), _of_class(name, rank)) for name in _OF_A_CLASS]
        made += [Column(kind + end, "text", _address(kind, rank, uri)) for kind in kinds]
    made += [Column(KEEP + name, "text", _kept(name)) for name in keep]
    return made


def write_jsonl(
    results: Iterable[Result], file: BinaryIO, uri: Callable[[str], str], kinds: Iterable[str] | None = None
) -> int:
    """Write a line of JSON an image, as the manifest has it, with addresses as tables have them; how many.

    Args:
        results: The images.
        file: Where to.
        uri: An object's address of its key.
        kinds: Leave out the addresses of other pictures.
    """
    wanted = None if kinds is None else set(kinds)
    count = 0
    for result in results:
        objects = {
            kind: uri(key) for kind, key in result.objects.items() if wanted is None or without_class(kind) in wanted
        }
        line = in_json(result.model_copy(update={"objects": objects}).line)
        file.write(line.encode() + b"\n")
        count += 1
    return count


def write_csv(results: Iterable[Result], columns: Sequence[Column], file: BinaryIO) -> int:
    """Write a table as CSV: UTF-8, a header, nothing where nothing is known; how many images."""
    values = [_as_word(column.value) if column.type == "bool" else column.value for column in columns]
    rows = ([value(result) for value in values] for result in _only_known(results, columns))
    return write_rows([column.name for column in columns], rows, file)


def write_rows(header: Sequence[str], rows: Iterable[Iterable[object]], file: BinaryIO) -> int:
    """Write rows as CSV, without formulas, whoever called images and columns what; how many."""
    # No TextIOWrapper: one that is broken off closes the file beneath it, which may be stdout.
    # What ends lines is quoted in cells: "\r\n" for the sake of a lone "\r", which readers take for an end as well.
    line = SimpleNamespace(write=lambda text: file.write(text.removesuffix("\r\n").encode() + b"\n"))
    writer = csv.writer(line, lineterminator="\r\n")
    writer.writerow(map(_cell, header))
    count = 0
    for row in rows:
        writer.writerow(map(_cell, row))
        count += 1
    return count


def _cell(value: object) -> object:
    return defused(value) if isinstance(value, str) else value


def write_parquet(results: Iterable[Result], columns: Sequence[Column], file: BinaryIO) -> int:
    """Write a table as Parquet, a group of rows at a time; how many images.

    Raises:
        UsageError: pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    types = {"int": arrow.int64(), "float": arrow.float64(), "bool": arrow.bool_(), "text": arrow.string()}
    schema = arrow.schema([(column.name, types[column.type]) for column in columns])
    rows = _only_known(results, columns)
    count = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while batches := list(_batches(arrow, islice(rows, _ROWS_A_GROUP), columns, schema)):
            table = arrow.Table.from_batches(batches, schema)
            writer.write_table(table, row_group_size=_ROWS_A_GROUP)
            count += table.num_rows
    return count


def check_format(format: Format) -> None:
    """Make sure that a format can be written here. Raises UsageError."""
    if format not in FORMATS:
        raise UsageError(f"{quoted(format)} is no format: choose {', '.join(FORMATS)}")
    if format == "parquet":
        _pyarrow()


def _batches(arrow: Any, rows: Iterator[Result], columns: Sequence[Column], schema: Any) -> Iterator[Any]:
    while some := list(islice(rows, _ROWS_A_BATCH)):
        arrays = [
            arrow.array(map(column.value, some), type=field.type, size=len(some))
            for column, field in zip(columns, schema, strict=True)
        ]
        yield arrow.record_batch(arrays, schema=schema)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError("Parquet needs pyarrow, which is missing here: pip install 'gradcam-queue[parquet]'") from None


def _only_known(results: Iterable[Result], columns: Sequence[Column]) -> Iterator[Result]:
    """Pass on images whose kept columns all have a place."""
    known = {column.name.removeprefix(KEEP) for column in columns if column.name.startswith(KEEP)}
    for result in results:
        if result.keep and not result.keep.keys() <= known:
            raise UsageError(
                f"image {result.index} came with new columns while the table was being written: write it again, or "
                "lines of JSON (--jsonl)"
            )
        yield result


def _as_word(value: Callable[[Result], object]) -> Callable[[Result], object]:
    words: dict[object, str] = {True: "true", False: "false"}
    return lambda result: words.get(value(result))


def _kept(name: str) -> Callable[[Result], object]:
    return lambda result: None if result.keep is None else result.keep.get(name)


def _class_at(result: Result, rank: int) -> ExplainedClass | None:
    return result.classes[rank] if rank < len(result.classes) else None


def _of_class(name: str, rank: int) -> Callable[[Result], object]:
    return lambda result: getattr(_class_at(result, rank), name, None)


def _address(kind: str, rank: int, uri: Callable[[str], str]) -> Callable[[Result], object]:
    def address(result: Result) -> str | None:
        explained = _class_at(result, rank)
        of_class = None if explained is None else result.objects.get(f"class{explained.class_id}-{kind}")
        best = result.objects.get(kind) or result.objects.get(f"box1-{kind}")
        key = of_class or (best if rank == 0 else None)
        return None if key is None else uri(key)

    return address
