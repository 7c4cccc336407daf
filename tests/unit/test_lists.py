"""Lists as people and programs write them: white space, headers in any case, cells and bytes that nobody asked for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from producer.input.sources import ReadOptions, Source, open_sources
from producer.jobs.model.errors import UsageError

A, B = "s3://bucket/a.jpg", "https://example.org/b.jpg"
KINDS = ("csv", "tsv", "jsonl", "parquet")


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as what the file's name says, as they are: nothing is quoted."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in (rows[0], *(r.values() for r in rows))))
    return path


def read(path: Path, reading: ReadOptions | None = None) -> list[Source]:
    with open_sources([path], reading or ReadOptions()) as sources:
        found = list(sources)
        assert sources.count == len(found)
        return found


def refused(path: Path, reading: ReadOptions | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        open_sources([path], reading or ReadOptions())
    return str(caught.value)


# --- white space -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_around_cells_and_names_of_columns_does_not_count(tmp_path: Path, kind: str) -> None:
    """Who writes `id, url, label` means `url`, also after pandas made another file of it."""
    rows = [
        {"id": "1 ", " url": f" {A}", " label ": " 5", " split": "train\u00a0"},
        {"id": " 2", " url": f"{B} \u3000", " label ": " tabby cat ", " split": "  "},
    ]
    path = table(tmp_path / f"list.{kind}", rows)
    found = read(path, ReadOptions(class_column="label", id_column="id", keep_columns=("split",)))
    assert found == [
        Source(A, id="1", class_id=5, keep={"split": "train"}),
        Source(B, id="2", class_name="tabby cat", keep={"split": ""}),
    ]


def test_a_quote_may_follow_the_space_after_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f'"name", "url"\n"a, b", "{A}"\n"c",  "{B}" \n'.replace('" \n', '"\n'))
    assert [(source.uri, source.id) for source in read(path, ReadOptions(id_column="name"))] == [(A, "a, b"), (B, "c")]


@pytest.mark.parametrize("kind", [*KINDS, "txt"])
def test_paths_with_white_space_around_them_are_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"x")
    path = tmp_path / f"list.{kind}"
    if kind == "txt":
        path.write_text(" a b.jpg \u00a0\n")
    else:
        table(path, [{"path": " a b.jpg "}])
    assert read(path) == [Source(path=tmp_path / "a b.jpg")]


# --- names of columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "column", ["URL", "Url", "image_url", "IMAGE_URL", "imageUrl", "Image URL", "img-url", "file_name"]
)
def test_the_column_of_addresses_is_found_whatever_its_case(tmp_path: Path, kind: str, column: str) -> None:
    path = table(tmp_path / f"list.{kind}", [{"TEXT": "a cat", column: A}])
    assert read(path, ReadOptions(keep_columns=("text",))) == [Source(A, keep={"text": "a cat"})]


@pytest.mark.parametrize("kind", KINDS)
def test_of_columns_that_differ_in_case_alone_the_one_as_it_was_typed_is_meant(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path / f"list.{kind}", [{"Label": "1", "url": A, "label": "2", "URL": B}])
    assert read(path, ReadOptions(class_column="label")) == [Source(A, class_id=2)]
    assert read(path, ReadOptions(uri_column="URL", class_column="Label")) == [Source(B, class_id=1)]
    assert "has several columns named 'LABEL'; its columns are Label, url" in refused(
        path, ReadOptions(class_column="LABEL")
    )


def test_two_columns_that_may_hold_the_addresses_are_told(tmp_path: Path) -> None:
    assert "several columns named 'URL'" in refused(table(tmp_path / "list.csv", [{"URL": A, "Url": B}]))


def test_a_column_of_json_lines_is_found_in_a_later_line_too(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(f'{{"URL":"{A}"}}\n{{"URL":"{B}","LABEL":3}}\n')
    assert [source.class_id for source in read(tmp_path / "list.jsonl", ReadOptions(class_column="label"))] == [None, 3]


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("list.csv", "url;label", "separated by semicolons: save it as .csv with commas, or as .tsv with tabs"),
        ("list.csv", "url\tlabel", "separated by tabs: name it .tsv"),
        ("list.csv", "sep=;\nurl;label", "separated by semicolons"),
        ("list.tsv", "url,label", "separated by commas: name it .csv"),
        ("list.tsv.gz", "url;label", "separated by semicolons"),
    ],
)
def test_other_separators_than_the_name_says_are_suggested(tmp_path: Path, name: str, header: str, words: str) -> None:
    text = f"{header}\n{A};1\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    for reading in (ReadOptions(), ReadOptions(uri_column="url"), ReadOptions(class_column="label")):
        message = refused(tmp_path / name, reading)
        assert words in message
        assert "--uri-column" not in message
        assert "***" not in message


def test_the_secret_of_an_address_in_the_place_of_a_header_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("https://a.example/x;jsessionid=hunter2\nhost/a.jpg?token=hunter2;b\n")
    assert "hunter2" not in refused(tmp_path / "list.csv", ReadOptions())
    (tmp_path / "list.csv").write_text("host/x;token=hunter2\n")
    assert "hunter2" not in refused(tmp_path / "list.csv", ReadOptions())


# --- cells that nobody asked for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_that_nobody_asked_for_may_be_long_and_one_that_is_carried_along_may_not(
    tmp_path: Path, kind: str
) -> None:
    """Thumbnails stand beside the addresses in many lists."""
    path = table(tmp_path / f"list.{kind}", [{"url": A, "thumb": "x"}, {"url": B, "thumb": "x" * 5_000_000}])
    assert [source.uri for source in read(path)] == [A, B]
    message = refused(path, ReadOptions(keep_columns=("thumb",)))
    number = {"parquet": "row 2", "jsonl": "line 2"}.get(kind, "line 3")
    assert f"{number}: 'thumb' has 5,000,000 characters: the longest cell has 1,048,576" in message
    path = table(tmp_path / f"list.{kind}", [{"url": A, "thumb": "x" * 2**20}])
    assert [len((source.keep or {})["thumb"]) for source in read(path, ReadOptions(keep_columns=("thumb",)))] == [2**20]


def test_a_long_cell_that_holds_line_breaks_is_counted_as_one(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f'url,text\n{A},"' + "line\n" * 100_000 + '"\nftp://x,1\n')
    assert "line 100003: ftp://x is refused" in refused(path)


def test_a_quote_that_is_never_closed_is_told_where_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f'url,text\n{A},1\n{A},"2\n' + f"{A},3\n" * 50_000)
    assert 'line 3: unexpected end of data: a quote (") is opened and never closed' in refused(path)
    path.write_text(f'url,text\n{A},"2\n' + f"{A},3\n" * 1_000_000)
    message = refused(path, ReadOptions(skip_bad=True))
    assert 'line 2: a cell is longer than 16,777,216 characters: is a quote (") opened that is never closed?' in message


def test_what_the_csv_module_allows_others_stays_as_it_was(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    read(table(tmp_path / "list.csv", [{"url": A, "text": "x" * 200_000}]))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.jsonl", b'{"url": "%s", "text": "cut \\ud83d"}\n{"url": "%s", "text": "\\uDC00 \\ud800x"}\n'),
        ("list.jsonl", b'{"url": "%s", "text": "caf\xe9"}\n{"url": "%s", "text": ""}\n'),
        ("list.csv", b'url,text\n%s,caf\xe9\n%s,"\xff\n"\n'),
        ("list.txt", b"# caf\xe9\n%s\n%s\n"),
    ],
)
def test_broken_text_that_nobody_asked_for_does_no_harm(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content.replace(b"%s", A.encode(), 1).replace(b"%s", B.encode(), 1))
    assert [source.uri for source in read(path)] == [A, B]
    if name != "list.txt":
        number = 1 if name == "list.jsonl" else 2
        for reading in (
            ReadOptions(keep_columns=("text",)),
            ReadOptions(id_column="text"),
            ReadOptions(class_column="text"),
        ):
            assert refused(path, reading) == f"{path} line {number}: it is no UTF-8 text"


@pytest.mark.parametrize("nested", ['"\\ud800"', '["\\ud800"]', '{"\\ud800": 1}'])
def test_broken_text_within_a_cell_is_found_too(tmp_path: Path, nested: str) -> None:
    (tmp_path / "list.jsonl").write_text(f'{{"url": "{A}", "text": {nested}}}\n')
    assert "line 1: it is no UTF-8 text" in refused(tmp_path / "list.jsonl", ReadOptions(keep_columns=("text",)))
    assert len(read(tmp_path / "list.jsonl")) == 1


def test_brackets_without_end_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"a": "\\ud800", "b": ' + "[" * 100_000 + "\n")
    assert "line 1: it is no JSON object" in refused(tmp_path / "list.jsonl")
