"""How texts of strangers look where they are shown, and where data for programs is printed."""

from __future__ import annotations

import json
import time
import timeit
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.client.talk import Talk
from producer.jobs.model import terminal
from producer.jobs.model.errors import GradcamError, JobError
from producer.jobs.model.text import LINE_CHARS, LINES, SENTENCE_CHARS, counted, in_json, lines, quoted, shown

#: What no shown text may hold, but joiners and selectors where scripts and emoji need them.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
NEEDED = "\u200c\u200d"
#: The characters that matter most often than chance would have it.
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=[]),
        st.sampled_from(
            "a1#é日👩🏽❤️\u0301\u0302\u093f\u094d\u200c\u200d\ufe0e\ufe0f\u20e3\u202e\u2066\x1b\x9b\n\u2028\ud800"
        ),
        st.sampled_from("\U000e0041\U000e0100\u3164\u034f\u200b\ufeff\U0001f1e9\U0001f1ea\ue000\U0001fae8…\\'[]"),
    ),
    max_size=80,
)


def hidden(text: str) -> list[str]:
    return [char for char in text if category(char) in HIDDEN and char not in NEEDED]


@given(TEXTS, st.integers(1, 120))
def test_what_is_shown_moves_nothing_is_bounded_and_stays_as_it_is(text: str, limit: int) -> None:
    once = shown(text, limit)
    assert hidden(once) == []
    assert len(once) <= limit
    assert len(once.encode()) <= 4 * limit
    assert shown(once, limit) == once


def test_a_command_is_printed_whole_and_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"gradcam submit IMAGES --weight-path s3://b/{'a' * 5000}.pth --class-name \x1b[2J"
    escaped = command.replace("\x1b", "\\x1b")
    terminal.out("audit-7", command=command)
    Talk(stderr=True).print_command("submit it again", command)
    assert capsys.readouterr() == (f"audit-7\t{escaped}\n", f"submit it again: {escaped}\n")


@given(TEXTS)
def test_several_lines_stay_several_and_none_moves_anything(text: str) -> None:
    said = lines(text)
    assert len(said.split("\n")) == min(len(text.split("\n")), LINES + 1)
    assert hidden(said.replace("\n", "")) == []


@given(
    st.text(
        st.characters(categories=["Lu", "Ll", "Lo", "Nd", "Po", "Sm"], exclude_characters="\u115f\u1160\u3164\uffa0")
    )
)
def test_letters_digits_and_signs_of_any_script_are_shown_as_they_are(text: str) -> None:
    assert shown(text, max(1, len(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket/a b.jpg (80%)", r"C:\photos\new", "café", "cafe\u0301", "Việt Nam", "Vie\u0323\u0302t"),
        *("日本語", "العربية", "שָׁלוֹם", "हिन्दी", "ภาษาไทย", "бесплатно", "\u0645\u06cc\u200c\u062e", "ന\u0d4d\u200d"),
        *("全角\u3000空白", "👍🏽", "👩\u200d👩\u200d👧", "❤\ufe0f", "1\ufe0f\u20e3", "🇩🇪", "🏳\ufe0f\u200d🌈"),
        *("10.00\u202fPM", "[bold]x[/]"),
    ],
)  # fmt: skip
def test_other_scripts_and_emoji_stay_readable(text: str) -> None:
    assert shown(text) == text
    assert json.loads(in_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("a\x1b[31mred\x1b[0m\x07", r"a\x1b[31mred\x1b[0m\x07"),
        ("one\ntwo\r\tthree\x00", r"one\ntwo\r\tthree\x00"),
        ("\x9b2J\x85\x7f", r"\x9b2J\x85\x7f"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\u202egpj.exe\u2066\u200f\u061c", r"\u202egpj.exe\u2066\u200f\u061c"),
        ("a\u200bb\u2060c\ufeffd\xade", r"a\u200bb\u2060c\ufeffd\xade"),
        ("a\u200db \u200c", r"a\u200db \u200c"),
        ("bad\udcff.jpg\ud83d", r"bad\udcff.jpg\ud83d"),
        ("\U000e0048\U000e0049", r"\U000e0048\U000e0049"),
        ("a\ufe0f1\ufe0f葛\U000e0100", r"a\ufe0f1\ufe0f葛\U000e0100"),
        ("\u3164\u115f\uffa0\u034f", r"\u3164\u115f\uffa0\u034f"),
        ("\ue000\U00100000\ufffe", r"\ue000\U00100000\ufffe"),
        ("e" + 8 * "\u0301", "e" + 6 * "\u0301" + r"\u0301\u0301"),
        ("\u0301a '\u0301'", r"\u0301a '\u0301'"),
    ],
)
def test_what_would_move_reorder_or_hide_is_written_out(text: str, looks: str) -> None:
    assert shown(text) == looks


@pytest.mark.parametrize("kind", ["x", "é", "\n", "\u0301", "\u202e", "👩\u200d", "\ud800"])
def test_a_long_text_is_cut_in_the_middle_and_says_how_long_it_was(kind: str) -> None:
    """The beginning says what it is, and the end of a sentence what to do."""
    text = "begins" + kind * 2**20 + "ends"
    started = time.process_time()
    said = shown(text)
    assert time.process_time() - started < 0.1
    assert said.startswith("begins")
    assert said.endswith("ends")
    assert f"…({len(text):,} characters)…" in said
    assert len(said) <= 200


def test_a_short_text_of_ascii_costs_less_than_a_microsecond() -> None:
    """Each error, each line of a log and each cell of a table goes through it."""
    text = "there is no job 'cats' (or its lifetime is over)"
    best_s = min(timeit.repeat(lambda: shown(text), number=10_000, repeat=20)) / 10_000
    assert best_s < 1e-6


@given(TEXTS)
def test_json_for_a_terminal_is_the_same_data(text: str) -> None:
    printed = in_json(json.dumps({"text": text}, ensure_ascii=False, indent=1))
    assert json.loads(printed) == json.loads(json.dumps({"text": text}))
    assert hidden(printed.replace("\n", "")) == []
    assert not set(printed) & set(NEEDED)


def test_a_megabyte_of_json_is_printed_at_once() -> None:
    line = json.dumps({"text": "\x1b\u202e" + "é" * 2**20}, ensure_ascii=False)
    started = time.process_time()
    assert json.loads(in_json(line)) == json.loads(line)
    assert time.process_time() - started < 0.5


def test_quotation_marks_are_others_where_the_text_has_them() -> None:
    assert quoted("a") == "'a'"
    assert quoted("it's") == '"it\'s"'
    assert quoted("x" * 300, 20) == f"'{'x' * 13}…{'x' * 6}'"


def test_no_error_of_ours_can_forget_it() -> None:
    error = JobError("the weights of \x1b[2J\u202e", "and\nmore " + 2**20 * "x")
    assert hidden(str(error)) == []
    assert len(str(error)) < 2.2 * SENTENCE_CHARS
    assert hidden(repr(error)) == []
    assert str(GradcamError()) == ""
    assert str(GradcamError(ValueError("\x07"))) == r"\x07"


def test_of_many_lines_the_first_and_the_last_are_shown() -> None:
    said = lines("\n".join(f"line {number} " + "\x1b" * 3000 for number in range(10_000)))
    assert said.startswith("line 0 ")
    assert "line 9999 " in said
    assert len(said) < (LINES + 1) * (LINE_CHARS + 1)


def test_a_number_stands_with_its_noun() -> None:
    assert [counted(n, "failed image") for n in (0, 1, 2, 1000)] == [
        "0 failed images", "1 failed image", "2 failed images", "1,000 failed images",
    ]  # fmt: skip
    assert [counted(n, "worker reads", "workers read") for n in (1, 2)] == ["1 worker reads", "2 workers read"]
