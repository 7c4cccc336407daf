"""Where the launchers of a user on this machine keep what their processes say: a folder each, which ends with them.

Whoever tidies up temporary files may take it away, whole or in parts. Its launcher makes it again under its name, so
that no process has to be told, and no work depends on it meanwhile.

<GRADCAM_WORKER_RUN_DIR, or the system's folder for temporary files>/gradcam-worker-<uid>/   only its owner's
<pid>-…/               a launcher's, locked by it for as long as it lives
launcher.json      its processes (`worker/supervise/launcher.py`)
drain              exists as soon as all shall come to an end
<name>.ready …      what a process says of itself (`worker/supervise/health.py`, `worker/chunks/lease.py`)
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
    """A launcher's own folder: there as long as the launcher lives, whoever takes it away meanwhile.

    Args:
        path: Where it is.
        descriptor: Of the open folder, which is locked; the kernel ends the lock with the process.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def keep(self) -> bool:
        """Make the folder again where it is gone.

        Returns:
            Whether it had to be made, and is empty.

        Raises:
            WorkerError: It is gone and cannot be made.
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
        """Let everything in it look used, so that nobody tidies it up; the times of signs of life stay as they are."""
        now_ns = time.time_ns()
        for path in (self.path.parent, self.path, *self.path.rglob("*")):
            with suppress(OSError):  # gone meanwhile
                says = path.parent == self.path and path.is_file()
                os.utime(path, ns=(now_ns, path.stat().st_mtime_ns if says else now_ns))

    def end(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def place(parent: Path | None) -> Path:
    """Where this user's launchers have their folders, whether it is there or not.

    Raises:
        WorkerError: There is no folder for temporary files.
    """
    # Not in XDG_RUNTIME_DIR: it goes when its user logs out, and a launcher may stay.
    try:
        return (parent or Path(tempfile.gettempdir())) / f"gradcam-worker-{os.geteuid()}"
    except FileNotFoundError:
        raise WorkerError("no folder for temporary files can be written to: set GRADCAM_WORKER_RUN_DIR") from None


@contextmanager
def folder(parent: Path | None) -> Iterator[Folder]:
    """Have a folder of one's own as long as the `with` lasts; those that dead launchers left behind go.

    Args:
        parent: Where; the system's folder for temporary files when None.

    Raises:
        WorkerError: It cannot be made, or is not ours alone.
    """
    all_of_them = place(parent)
    try:
        all_of_them.mkdir(mode=0o700, exist_ok=True)
        _refuse_others(all_of_them)
        # One launcher at a time: what another one has made and not yet locked must not look dead.
        with _locked(all_of_them, fcntl.LOCK_EX):
            for left in _folders(all_of_them):
                if not _lives(left):
                    shutil.rmtree(left, ignore_errors=True)
            path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=all_of_them))
            # The lock also keeps some away who clear up old temporary files.
            own = Folder(path, _lock(path, fcntl.LOCK_EX))
    except OSError as error:
        raise _unusable(all_of_them, error) from None
    try:
        yield own
    finally:
        own.end()


def restore(path: Path) -> None:
    """Make a launcher's folder that somebody took away.

    Raises:
        WorkerError: It cannot be made, or would not be ours alone.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_others(path.parent)
        with _locked(path.parent, fcntl.LOCK_EX):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(path.parent, error) from None


def _unusable(all_of_them: Path, error: OSError) -> WorkerError:
    return WorkerError(f"{all_of_them} cannot be used ({error.strerror}): set GRADCAM_WORKER_RUN_DIR")


def living(parent: Path | None) -> list[Path]:
    """The folders of the launchers that live.

    Raises:
        WorkerError: The folder they are in is not ours alone.
    """
    all_of_them = place(parent)
    if not os.path.lexists(all_of_them):
        return []
    _refuse_others(all_of_them)
    return [one for one in _folders(all_of_them) if _lives(one)]


def _folders(all_of_them: Path) -> list[Path]:
    return sorted(path for path in all_of_them.iterdir() if path.is_dir() and not path.is_symlink())


def _refuse_others(all_of_them: Path) -> None:
    """Make sure that nobody else can write here; another user may have been faster with the name."""
    found = all_of_them.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise WorkerError(f"{all_of_them} is not a folder of this user's own: remove it, or set GRADCAM_WORKER_RUN_DIR")
    if stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        all_of_them.chmod(stat.S_IRWXU)


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
