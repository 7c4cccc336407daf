"""Names that people give their files stay themselves, as far as every store and file system can hold them."""

from __future__ import annotations

import ntpath
import re
import unicodedata
from collections.abc import Callable
from pathlib import PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob
from producer.jobs.model.names import MAX_BYTES, beginning, end, is_job_name, safe

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
#: Characters that are joined to their neighbors, and such as are not safe: any text is mostly others.
TRICKY = st.text(
    st.sampled_from(
        "aé.e\u0301_-/ \u200d\ufe0f\U0001f3fb\U0001f431\U0001f1ef\U0001f1f5\u094d\u0915\u3164\u1100\u1161\u11a8\uac00"
        "\u202e\ud83d\u0378\ue000\u20e31\u0323\u0307ẛ\u034f猫con\U000e0100\U0001f468\u2764"
    ),
    max_size=120,
)
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
ANY = st.one_of(st.text(st.characters(exclude_categories=())), TRICKY)


@pytest.mark.parametrize(
    "name",
    [
        "猫の写真.jpg",
        "🐱.png",
        "고양이.jpg",
        "кот-1.jpg",
        "قطة.jpg",
        "แมว.jpg",
        "बिल्ली.jpg",
        "ශ්\u200dරී.jpg",
        "café.jpg",
        "ガ行.jpg",
        f"{FAMILY}.png",
        "👩🏽\u200d💻.png",
        "🏳\ufe0f\u200d🌈.png",
        "🇯🇵.png",
        "1\ufe0f\u20e3.png",
        "❤\ufe0f.png",
        "葛\U000e0100城.jpg",
    ],
)
def test_names_of_every_script_and_emoji_stay_themselves(name: str) -> None:
    assert safe(name) == name


@pytest.mark.parametrize(
    ("name", "becomes"),
    [
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),  # what macOS gives for café
        ("my cat.jpg", "my_cat.jpg"),
        ("猫　写真.jpg", "猫_写真.jpg"),
        ("猫/写真.jpg", "猫_写真.jpg"),
        ("猫\\写真:1?.jpg", "猫_写真_1_.jpg"),
        ("猫\n写真\x00.jpg", "猫_写真_.jpg"),
        ("猫\u2028写真.jpg", "猫_写真.jpg"),
        ("photo\u202egpj.exe", "photo_gpj.exe"),  # it would read photoexe.jpg
        ("a\u200db", "a_b"),
        ("a\u200bb", "a_b"),
        ("a\u3164b", "a_b"),
        ("\ue000", "_"),
        ("\ud800", "_"),
        ("\U000e0fff", "_"),
        ("\u0301a", "_a"),
        ("🐱\u200d", "🐱_"),
        (".猫", "猫"),
        ("猫.", "猫"),
        ("..", "_"),
        ("", "_"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("com¹.jpg", "_com¹.jpg"),
        ("lpt1.tar.gz", "_lpt1.tar.gz"),
        ("console.jpg", "console.jpg"),
    ],
)
def test_what_no_key_or_file_name_may_hold_becomes_something_else(name: str, becomes: str) -> None:
    assert safe(name) == becomes


@given(ANY)
@example("\u1100" * 80)
@example("a" + "\u0301" * 150)
@example("\U0001f468\u200d" * 50 + "\U0001f468")
@settings(max_examples=1000)
def test_what_is_safe_holds_nothing_else_and_stays_as_it_is(text: str) -> None:
    name = safe(text)
    assert safe(name) == name
    assert name
    assert len(name.encode()) <= MAX_BYTES
    assert unicodedata.normalize("NFC", name) == name
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert not RESERVED.match(name)
    for char in name:
        kind = unicodedata.category(char)
        assert char in "._-\u200d" or kind[0] in "LMN" or kind in {"So", "Sk", "Sm"}
        assert not char.isascii() or re.match(r"[A-Za-z0-9._-]", char)


#: By other means: what Windows refuses, or takes for another name.
WINDOWS = st.text(
    st.one_of(st.sampled_from('<>:"|?*\\/. \t\x00conCOMlptLPTnulNULauxprn$0123456789¹²³~'), st.characters()),
    max_size=20,
)


#: Python's own list; it has another place from 3.13 on.
_is_reserved = getattr(ntpath, "isreserved", None) or (lambda name: PureWindowsPath(name).is_reserved())


@given(WINDOWS)
@example("COM¹.jpg")
@example("nul .txt")
@example("con.")
@example("aux. . ")
@example("CONIN$")
@example("a.jpg::$DATA")
@example("x" * 190 + "/nul.")
def test_every_name_is_one_that_windows_takes_as_it_is(text: str) -> None:
    for name in (safe(text), keys.picture_name(text, text, "cam", "jpg")):
        assert not _is_reserved(name)
        assert PureWindowsPath(name).parts == (name,)
        assert not re.search(r'[<>:"|?*\\/\x00-\x1f]', name)
        assert name == name.rstrip(". ")
        assert name.partition(".")[0].rstrip().upper() not in {
            "CON",
            "PRN",
            "AUX",
            "NUL",
            "CONIN$",
            "CONOUT$",
            "CLOCK$",
        }
        assert not re.match(r"(?:COM|LPT)[0-9¹²³]\s*(?:\.|\Z)", name, re.IGNORECASE)


FORGED = [
    "../x", "..", ".", "", "a/b", "/etc", "a\\b", "a b", "a\n", "a\x00", "\x1b[2Ja", "\u202ea", "é", "-a", "_system",
    ".probe", "a:chunks", "a*", "x" * 64, "x" * 2**20,
]  # fmt: skip


@pytest.mark.parametrize("job", FORGED, ids=lambda job: repr(job)[:20])
def test_a_name_that_no_job_has_comes_into_no_key(job: str) -> None:
    """Wherever it comes from: Redis holds what whoever has its password wrote."""
    assert not is_job_name(job)
    made: list[Callable[[], object]] = [
        lambda: keys.JobKeys(job),
        lambda: keys.job_prefix("p", job),
        lambda: keys.summary("p", job),
        lambda: keys.uploaded_input("p", job, 0, "a.jpg"),
        lambda: keys.picture("p", job, 0, "a.jpg"),
        lambda: keys.images_prefix("p", job),
        lambda: keys.manifest_prefix("p", job),
        lambda: keys.manifest("p", job, 0, 1, 0, 0),
        lambda: keys.shards_prefix("p", job),
        lambda: keys.shard("p", job, 0, 1, "life"),
    ]
    for make in made:
        with pytest.raises(UnknownJob) as refused:
            make()
        assert len(str(refused.value)) < 500
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("job", ["a", "0", "weights", "20261127-001122-0123456789", "A.b_c-d", "x" * 63])
def test_no_job_has_a_place_with_what_is_no_jobs(job: str) -> None:
    digest = "0" * 64
    for prefix in ("", "p", "p/q"):
        shared = (keys.weights(prefix, digest), keys.probe(prefix), keys.probe(prefix) + "-1f")
        assert not [key for key in shared if key.startswith(keys.job_prefix(prefix, job))]
        assert keys.is_shared(prefix, keys.old_weights(prefix, digest))
        assert not keys.is_shared(prefix, keys.summary(prefix, job))
        assert not keys.is_shared(prefix, keys.picture(prefix, job, 0, digest))


@given(st.text(st.characters(max_codepoint=0x7F), max_size=MAX_BYTES))
@settings(max_examples=1000)
def test_ascii_names_are_what_they_have_always_been(text: str) -> None:
    """Keys of pictures and uploads that are there already; but for dots at the end and names that Windows keeps."""
    before = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".").rstrip(".") or "_"
    assert safe(text) == ("_" if RESERVED.match(before) else "") + before


def test_a_long_name_is_cut_between_characters_and_keeps_its_suffix() -> None:
    assert safe("a" * 300 + ".jpg") == "a" * 196 + ".jpg"
    assert safe("猫" * 100 + ".jpg") == "猫" * 65 + ".jpg"
    assert safe("a" * 180 + FAMILY + ".jpg") == "a" * 180 + ".jpg"  # 18 bytes, for which there is no room
    assert safe("a" + "🇯🇵" * 40) == "a" + "🇯🇵" * 24


@pytest.mark.parametrize("character", ["é", "猫", "🐱", FAMILY, "🇯🇵", "कि", "1\ufe0f\u20e3", "क्ष", "각"])
@pytest.mark.parametrize("room", range(1, 40))
def test_no_character_is_cut_in_its_middle(character: str, room: int) -> None:
    size = len(character.encode())
    if room >= size:
        assert beginning(character * 9, room) == character * min(9, room // size)
    assert end(character * 9, room) == character * min(9, room // size)


@given(ANY, st.integers(1, 60))
def test_a_part_of_a_safe_name_is_safe(text: str, room: int) -> None:
    name = safe(text)
    part = beginning(name, room)
    assert name.startswith(part)
    assert len(part.encode()) <= room
    assert part.rstrip(".") in {"", safe(part)} or safe(part) == "_" + part
