from __future__ import annotations

from pathlib import Path

import pytest

from producer.jobs.errors import UsageError
from producer.sources import expand, printable


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_gives_its_images_sorted_and_nothing_else(photos: Path) -> None:
    found = [source.path.relative_to(photos).as_posix() for source in expand([str(photos)]) if source.path]
    assert found == ["a.png", "b.JPG", "deep/c.webp"]


def test_addresses_stay_as_they_are(photos: Path) -> None:
    uris = ["s3://bucket/a.jpg", "https://example.org/a.jpg?size=2", "file:///data/a.jpg"]
    assert [source.uri for source in expand(uris)] == uris


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nonsense", "neither a file nor a folder"),
        ("ftp://host/a.jpg", "s3://"),
        ("s3://bucket/prefix/", "prefix"),
        ("s3://bucket", "key"),
        ("http://user:word@host/a.jpg", "password|credentials|user"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_sent(argument: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        expand([argument])
    assert "word@" not in str(caught.value)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no images under"):
        expand([str(tmp_path)])


def test_a_file_that_is_no_image_is_an_error(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"notes\.txt is not an image"):
        expand([str(photos / "notes.txt")])


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to explain"):
        expand([])


def test_an_empty_name_is_an_error_and_not_the_folder_one_stands_in() -> None:
    """`gradcam submit "$UNSET"` would upload everything there is."""
    with pytest.raises(UsageError, match="empty name"):
        expand([""])


def test_a_path_object_is_as_good_as_its_name_and_a_single_name_is_no_list(photos: Path) -> None:
    assert len(expand([photos])) == 3
    with pytest.raises(UsageError, match="must be a list"):
        expand(str(photos))


def test_a_file_name_that_is_no_utf8_can_be_sent_and_shown(tmp_path: Path) -> None:
    (tmp_path / "bad\udcff.jpg").write_bytes(b"x")
    (source,) = expand([tmp_path])
    assert source.path is not None
    assert printable(source.path.name) == "bad\ufffd.jpg"
    with pytest.raises(UsageError, match="\ufffd"):
        expand([str(tmp_path / "other\udcff.jpg")])
