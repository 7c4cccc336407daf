"""Rows of Parquet files, as streams of columns: what is held at once is bounded, whatever a file claims.

Pages are looked at before they are unpacked (`parquet_pages.py`); as many rows are read at once as fit into a bound.
A long text that a dictionary has once is held once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, BinaryIO

from producer.input.columns import Columns
from producer.input.parquet_pages import MAX_PAGE_BYTES, MAX_PAGE_VALUES, Chunk, PageError, groups, longest_text, pages
from producer.input.read_options import ReadOptions
from producer.input.readers import rows_of
from producer.input.rows import Maker, Rows
from producer.input.source_group import BATCH
from producer.input.spooled import RereadableFile
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted, shown

_MOST_ROWS = 4 * BATCH
#: What the rows that are read at once may take, before they are objects of Python.
_BATCH_BYTES = 16 * 2**20


def parquet_rows(
    stored: RereadableFile, maker: Maker, reading: ReadOptions, unseen: set[str]
) -> Generator[Rows, None, None]:
    """Read the rows of a Parquet file, only the columns that are needed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{maker.name} cannot be read: Parquet needs pyarrow (pip install 'gradcam-queue[parquet]')"
        ) from None
    done = 0
    with stored.open() as file, stored.open() as headers:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            columns = Columns.find(table.schema_arrow.names, reading, maker.name)
            _check_type(str(table.schema_arrow.field(columns.uri).type), columns.uri, maker.name)
            unseen.clear()
            sizes = [_rows_at_once(headers, group, columns.all) for group in groups(headers)]
            if long := {name for _, names in sizes for name in names}:
                # Arrow leaves them in their dictionaries, which takes twice as long for short ones.
                table = parquet.ParquetFile(
                    file, metadata=table.metadata, read_dictionary=sorted(long), pre_buffer=False, buffer_size=2**20
                )
            for group, (size, _) in enumerate(sizes):
                for batch in table.iter_batches(size, [group], columns.all, use_threads=False):
                    cells = {name: _cells(batch.column(name)) for name in columns.all}
                    yield _rows(cells, columns, done + 1)
                    done += batch.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, PageError) as error:
            place = f" after row {done}" if done else ""
            raise UsageError(f"{maker.name} is no Parquet file that can be read{place}: {_in_a_line(error)}") from None


def _rows_at_once(headers: BinaryIO, group: Sequence[Chunk], names: Sequence[str]) -> tuple[int, list[str]]:
    """How many rows of a group may be read at once, and which columns have long texts in a dictionary.

    Raises:
        PageError: A page claims too much.
    """
    row_bytes, long = 1.0, []
    for chunk in (chunk for chunk in group if chunk.name in names):
        if chunk.values > max(chunk.rows, MAX_PAGE_VALUES):
            # Lists: one row may have nearly all of them.
            raise PageError(
                f"lists of {chunk.values:,} values: the most that are read together are {MAX_PAGE_VALUES:,}"
            )
        largest = 0.0
        for page in pages(headers, chunk):
            if not page.is_dictionary:
                # A text whose beginning stands before may be as long as its page.
                largest = max(largest, page.unpacked_bytes / (1 if chunk.shares else max(page.values, 1)))
            elif chunk.is_text and longest_text(headers, page, chunk.codec) * _MOST_ROWS > _BATCH_BYTES:
                long.append(chunk.name)
        # Lists have several values a row.
        row_bytes += largest * max(chunk.values / max(chunk.rows, 1), 1)
    return int(max(1, min(_MOST_ROWS, _BATCH_BYTES / row_bytes))), long


def _cells(column: Any) -> list[Any]:
    """The values of a column; those that are long and in a dictionary are there once, however often they are named."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        if column.nbytes > 4 * MAX_PAGE_BYTES:
            raise PageError(f"{len(column):,} rows take {column.nbytes:,} bytes")
        return list(column.to_pylist())
    places = column.indices.unique()
    values = dict(zip(places.to_pylist(), column.dictionary.take(places).to_pylist(), strict=True))
    return [values[place] for place in column.indices.to_pylist()]


def _rows(cells: dict[str, list[Any]], columns: Columns, first: int) -> Rows:
    uris = cells[columns.uri]
    broken: dict[int, str] = {}
    if None in uris:
        broken = {at: f"there is nothing in {quoted(columns.uri)}" for at, cell in enumerate(uris) if cell is None}
        cells[columns.uri] = [cell or "" for cell in uris]
    return rows_of(cells, columns, first.__add__, broken)


def _check_type(kind: str, column: str, name: str) -> None:
    if kind not in {"string", "large_string", "string_view"} and not kind.startswith("dictionary<values=string"):
        raise UsageError(f"{name} holds {kind[:100]} in {quoted(column)}: addresses are text")


def _in_a_line(error: Exception) -> str:
    # Arrow puts bytes of the file into some of its messages.
    return shown(" ".join(str(error).split())[:200])
