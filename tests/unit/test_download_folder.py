"""In a folder of downloads no link is followed, and only what a download of the job wrote is written over."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from producer.jobs.model.errors import UsageError
from producer.output.download_folder import DownloadFolder, NotOurs, check_folder

NAME = "cat-vgg16-cam.jpg"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder, beside what is nobody's to change."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to a file": (lambda path: path.symlink_to("../secret"), "is a link"),
    "a link to an absolute path": (lambda path: path.symlink_to(path.parent.parent / "secret"), "is a link"),
    "a link to a folder": (lambda path: path.symlink_to("../elsewhere"), "is a link"),
    "a link to nothing": (lambda path: path.symlink_to("../new"), "is a link"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a link"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "a pipe": (os.mkfifo, "is no file"),
    "a socket": (_socket, "is no file"),
    "somebody's file": (lambda path: path.write_bytes(b"mine"), "no download of job cats wrote it"),
    "one more name of a file elsewhere": (lambda path: path.hardlink_to(path.parent.parent / "secret"), "no download"),
}


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        here = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(here.st_mode) else b""
        found[str(path)] = (here.st_ino, stat.S_IFMT(here.st_mode), content)
    return found


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_under_a_pictures_name_is_refused_and_stays(place: Path, planted: str) -> None:
    plant, words = PLANTED[planted]
    plant(place / NAME)
    before = state_of(place.parent)
    with DownloadFolder(place, "cats") as folder:
        with pytest.raises(NotOurs, match=words):
            folder.write(NAME, b"picture")
        assert {path: kept for path, kept in state_of(place.parent).items() if ".gradcam" not in path} == before
        folder.write("dog-vgg16-cam.jpg", b"picture")  # the others go on
    assert (place / "dog-vgg16-cam.jpg").read_bytes() == b"picture"


@pytest.mark.parametrize("planted", ["a link to a file", "a link to nothing", "a folder", "a pipe", "a socket"])
def test_the_record_of_what_was_written_is_no_link_either(place: Path, planted: str) -> None:
    PLANTED[planted][0](place / ".gradcam-cats")
    before = state_of(place.parent)
    with DownloadFolder(place, "cats") as folder, pytest.raises(UsageError, match="no file of ours"):
        folder.write(NAME, b"picture")
    assert state_of(place.parent) == before


def test_what_a_download_of_the_job_wrote_is_written_again(place: Path) -> None:
    for content in (b"first", b"second"):
        with DownloadFolder(place, "cats") as folder:
            folder.write(NAME, content)
            assert (place / NAME).read_bytes() == content
    (place / NAME).write_bytes(b"cut")
    with DownloadFolder(place, "cats") as folder:
        folder.write(NAME, b"third")
        folder.write(NAME, b"fourth")
    assert (place / NAME).read_bytes() == b"fourth"


def test_another_jobs_pictures_are_not_written_over(place: Path) -> None:
    with DownloadFolder(place, "cats") as folder:
        folder.write(NAME, b"of cats")
    with DownloadFolder(place, "dogs") as folder, pytest.raises(NotOurs, match="no download of job dogs"):
        folder.write(NAME, b"of dogs")
    assert (place / NAME).read_bytes() == b"of cats"


def test_a_name_that_has_a_recorded_one_in_it_is_another(place: Path) -> None:
    (place / "x.jpg").write_bytes(b"mine")
    (place / ".gradcam-cats").write_text("xx.jpg\nx.jp\n.jpg\nx.jpg.png\n")
    with DownloadFolder(place, "cats") as folder, pytest.raises(NotOurs):
        folder.write("x.jpg", b"picture")


def test_a_link_that_takes_the_place_of_a_written_picture_is_refused(place: Path) -> None:
    with DownloadFolder(place, "cats") as folder:
        folder.write(NAME, b"picture")
        (place / NAME).unlink()
        (place / NAME).symlink_to("../secret")
        with pytest.raises(NotOurs, match="is a link"):
            folder.write(NAME, b"picture")
        assert folder.file(NAME) is None
    assert (place.parent / "secret").read_bytes() == b"secret"


def test_a_folder_that_is_exchanged_for_a_link_meanwhile_is_written_to_where_it_went(place: Path) -> None:
    with DownloadFolder(place, "cats") as folder:
        place.rename(place.parent / "moved")
        place.symlink_to("elsewhere")
        folder.write(NAME, b"picture")
    assert list((place.parent / "elsewhere").iterdir()) == []
    assert (place.parent / "moved" / NAME).read_bytes() == b"picture"


def test_a_users_own_link_to_a_folder_is_followed_and_another_users_is_not(place: Path) -> None:
    """In a folder that all may write to, somebody may have put a link where the pictures are to go."""
    link = place.parent / "link"
    link.symlink_to("results")
    with DownloadFolder(link, "cats") as folder:
        folder.write(NAME, b"picture")
    assert (place / NAME).read_bytes() == b"picture"
    if os.geteuid() == 0:  # only root can make a link another's
        os.chown(link, 12345, 12345, follow_symlinks=False)
        for inner in (link, link / "inner"):
            with pytest.raises(UsageError, match="a link that another user made"):
                check_folder(inner)
            with pytest.raises(UsageError, match="a link that another user made"):
                DownloadFolder(inner, "cats")
        assert not (place / "inner").exists()


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(place: Path) -> None:
    with DownloadFolder(place, "cats") as folder, pytest.raises(UsageError, match="cannot write"):
        folder.write("x" * 300 + ".jpg", b"picture")
    assert list(place.glob("*")) == []
