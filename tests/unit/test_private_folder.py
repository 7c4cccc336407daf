"""Folders that all users of a machine share: nothing that another user left there is followed or trusted."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from deploy import demo, directory_lock
from deploy.stack import Stack
from producer.jobs.model.errors import UsageError
from worker.models.weights_cache import WeightsFiles
from worker.supervise import run_dirs
from worker.supervise.private_folder import make_private
from worker.supervise.weights_folder import complaint, default_folder

ROOT = Path(__file__).parents[2]
SOMEBODY = 12345
given_away = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def _folder_of_somebody(path: Path) -> None:
    path.mkdir(mode=0o777)
    os.chown(path, SOMEBODY, SOMEBODY)


def _link_of_somebody(path: Path) -> None:
    """To a folder of ours, which would be written to and closed to others."""
    path.symlink_to(path.parent / "ours", target_is_directory=True)
    os.lchown(path, SOMEBODY, SOMEBODY)


@given_away
@pytest.mark.parametrize("plant", [_folder_of_somebody, _link_of_somebody])
def test_what_somebody_planted_is_no_private_folder(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    (tmp_path / "ours").mkdir(mode=0o755)
    plant(tmp_path / "planted")
    with pytest.raises(PermissionError, match="it belongs to somebody else"):
        make_private(tmp_path / "planted")
    assert "it belongs to somebody else" in complaint(tmp_path / "planted")
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o755
    assert list((tmp_path / "ours").iterdir()) == []


def test_a_link_of_ones_own_leads_to_a_folder_that_is_closed_to_others(tmp_path: Path) -> None:
    """Whoever runs the worker may have put the cache on another disk."""
    (tmp_path / "disk").mkdir(mode=0o777)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    make_private(tmp_path / "cache")
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o700


@given_away
@pytest.mark.parametrize("plant", [_folder_of_somebody, _link_of_somebody])
def test_a_stack_takes_no_directory_of_somebody_else(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """Its settings would be theirs, and so would the number of the process that `down` ends."""
    (tmp_path / "ours").mkdir(mode=0o755)
    plant(tmp_path / "planted")
    lock = (tmp_path / "planted").resolve() / "lock"
    lock.write_text(str(os.getpid()))
    with FileLock(lock.with_name("held")), pytest.raises(UsageError, match="name a directory of your own"):
        directory_lock.holder(tmp_path / "planted")
    with pytest.raises(UsageError, match=r"cannot be used \(it belongs to somebody else\)"):
        Stack(tmp_path / "planted", workers=0)


def test_the_lock_of_a_directory_is_no_link(tmp_path: Path) -> None:
    """Acquiring it empties the file."""
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(OSError, match="symbolic links"):
        directory_lock.DirectoryLock(tmp_path).acquire()
    with pytest.raises(UsageError, match="cannot be used"):
        directory_lock.holder(tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_demo_tidies_no_folder_that_a_link_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of killed demos lie where everybody may put a link of such a name."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "thesis").write_text("kept")
    os.utime(home, (0, time.time() - 3600))
    (tmp_path / "gradcam-demo-x").symlink_to(home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with demo._temporary():
        pass
    assert [path.name for path in home.iterdir()] == ["thesis"]
    assert home.stat().st_mode & 0o777 == 0o755


def test_a_killed_demo_that_cannot_be_tidied_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "gradcam-demo-x"
    left.mkdir()
    (left / "lock").symlink_to(tmp_path / "mine")
    os.utime(left, (0, time.time() - 3600))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with demo._temporary() as directory:
        assert directory.is_dir()
    assert left.is_dir()


def test_who_looks_at_a_directory_is_not_taken_for_who_holds_it(tmp_path: Path) -> None:
    """`gradcam down`, and each look of `up`, hold the lock for a moment: a stack that started then was refused."""
    lock = directory_lock.DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()
    looking = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(0.1, os.close, [looking])
    timer.start()
    lock.acquire()
    with pytest.raises(directory_lock.InUse):
        directory_lock.DirectoryLock(tmp_path).acquire()
    lock.release()
    timer.join()


def test_a_fetch_writes_through_no_link_that_was_left_in_the_folder(tmp_path: Path) -> None:
    """The folder was open to others before a worker closed it."""
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o777)
    (tmp_path / "mine").write_text("kept")
    for number in range(256):
        (kept / f"{number:02x}.partial").symlink_to(tmp_path / "mine")
    files = WeightsFiles(kept, 10**9, lambda _uri, file, _s: file.write(b"weights"), timeout_s=5.0)
    with files.file("s3://a/w") as path:
        assert path.read_bytes() == b"weights"
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize("name", ["changes.lock", "00.lock"])
def test_a_lock_of_the_weights_folder_is_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("kept")
    with suppress(OSError), FileLock(tmp_path / name):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


_SAID = """
import os
from worker.supervise.weights_folder import complaint, default_folder
from worker.supervise.run_dirs import folder
os.setgroups([]); os.setgid(12345); os.setuid(12345)
print(default_folder()); print(complaint(default_folder()))
with folder(None) as made:
    print(made.path.parent)
"""


@given_away
@pytest.mark.parametrize("home", [None, "/", "/nonexistent"])
def test_a_user_without_a_home_has_a_folder_of_its_own_or_is_told(tmp_path: Path, home: str | None) -> None:
    """Containers run as a number that no file knows: its home is unset, `/`, or not there."""
    tmp_path.chmod(0o1777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {"HOME": home} if home else {}
    run = subprocess.run(
        [sys.executable, "-c", _SAID], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    folder, said, run_dir = (*run.stdout.split("\n"), "", "", "")[:3]
    assert run_dir == f"{tmp_path}/gradcam-worker-{SOMEBODY}", run.stderr
    if home is None:
        assert folder == f"{tmp_path}/gradcam-weights-{SOMEBODY}"
        assert said == ""
        assert Path(folder).stat().st_mode & 0o777 == 0o700
    else:
        assert folder.startswith(home.rstrip("/") + "/.cache")
        assert "Permission denied" in said
        assert "set GRADCAM_WORKER_WEIGHTS_CACHE_DIR" in said


def test_the_folder_without_a_home_is_not_one_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert default_folder().name == f"gradcam-weights-{os.geteuid()}"
    assert default_folder().parent == run_dirs.user_folder_in(None).parent
