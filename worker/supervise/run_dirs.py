"""The folders in which launchers keep what their processes say: one for each launcher, and it ends with its launcher.

<GRADCAM_WORKER_RUN_DIR, or the system's folder for temporary files>/
  gradcam-worker-<uid>/   of this user, for nobody else
    <pid>-…/              of one launcher, which locks it while it lives
      launcher.json       its processes (`process_list.py`)
      drain               exists when the processes must end
      <name>.ready …      what a process says of itself (`health.py`, `busy_file.py`)

A tidier of temporary files may remove a folder, or a part of it. Its launcher makes it again under the same name: no
process has to be told, and meanwhile no work depends on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from producer.jobs.model.errors import WorkerError


class Folder:
    """A launcher's own folder, restored while the launcher lives.

    Args:
        path: Where it is.
        descriptor: Of the open and locked folder; the kernel ends the lock with the process.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def keep(self) -> bool:
        """Make the folder again where it is gone.

        Returns:
            Whether it was gone; then it is empty.

        Raises:
            WorkerError: It cannot be made.
        """
        held = os.fstat(self._descriptor)
        with suppress(OSError):
            there = self.path.lstat()
            if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return False
        restore(self.path)
        try:
            descriptor = _lock(self.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _unusable(self.path.parent, error) from None
        os.close(self._descriptor)
        self._descriptor = descriptor
        return True

    def touch(self) -> None:
        """Make everything in it look used, for tidiers; the times of signs of life stay as they are."""
        now_ns = time.time_ns()
        for path in (self.path.parent, self.path, *self.path.rglob("*")):
            with suppress(OSError):  # gone meanwhile
                is_sign = path.parent == self.path and path.is_file()
                os.utime(path, ns=(now_ns, path.stat().st_mtime_ns if is_sign else now_ns))

    def end(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def user_folder_in(parent: Path | None) -> Path:
    """Return the folder of this user's launchers, which need not exist.

    Raises:
        WorkerError: There is no folder for temporary files.
    """
    # Not in XDG_RUNTIME_DIR: that goes when its user logs out, and a launcher may stay.
    try:
        return (parent or Path(tempfile.gettempdir())) / f"gradcam-worker-{os.geteuid()}"
    except FileNotFoundError:
        raise WorkerError("no folder for temporary files can be written to: set GRADCAM_WORKER_RUN_DIR") from None


@contextmanager
def folder(parent: Path | None) -> Iterator[Folder]:
    """Make a launcher's folder for as long as the `with` lasts, and remove those of dead launchers.

    Args:
        parent: Where to make it; None for the system's folder for temporary files.

    Raises:
        WorkerError: It cannot be made, or somebody else can write to it.
    """
    user_folder = user_folder_in(parent)
    try:
        user_folder.mkdir(mode=0o700, exist_ok=True)
        _refuse_others(user_folder)
        # One launcher at a time: a folder that another one has made and not yet locked must not look dead.
        with _locked(user_folder, fcntl.LOCK_EX):
            for left in _folders(user_folder):
                if not _lives(left):
                    shutil.rmtree(left, ignore_errors=True)
            path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=user_folder))
            # Some tidiers of temporary files respect the lock, too.
            own = Folder(path, _lock(path, fcntl.LOCK_EX))
    except OSError as error:
        raise _unusable(user_folder, error) from None
    try:
        yield own
    finally:
        own.end()


def restore(path: Path) -> None:
    """Make a launcher's folder again.

    Raises:
        WorkerError: It cannot be made, or somebody else could write to it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_others(path.parent)
        with _locked(path.parent, fcntl.LOCK_EX):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(path.parent, error) from None


def _unusable(user_folder: Path, error: OSError) -> WorkerError:
    return WorkerError(f"{user_folder} cannot be used ({error.strerror}): set GRADCAM_WORKER_RUN_DIR")


def living(parent: Path | None) -> list[Path]:
    """Return the folders of the launchers that live.

    Raises:
        WorkerError: Somebody else can write to the folder that they are in.
    """
    user_folder = user_folder_in(parent)
    if not os.path.lexists(user_folder):
        return []
    _refuse_others(user_folder)
    return [one for one in _folders(user_folder) if _lives(one)]


def _folders(user_folder: Path) -> list[Path]:
    return sorted(path for path in user_folder.iterdir() if path.is_dir() and not path.is_symlink())


def _refuse_others(user_folder: Path) -> None:
    """Refuse a folder that somebody else can write to: another user may have made one of that name first."""
    found = user_folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise WorkerError(f"{user_folder} is not a folder of this user's own: remove it, or set GRADCAM_WORKER_RUN_DIR")
    if stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        user_folder.chmod(stat.S_IRWXU)


def _lives(one: Path) -> bool:
    try:
        with _locked(one, fcntl.LOCK_SH | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Lock a folder; raises BlockingIOError where another process has it and `how` does not wait."""
    descriptor = _lock(path, how)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
