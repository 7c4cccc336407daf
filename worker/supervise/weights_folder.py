"""Where a user's weights files are kept on this machine, and whether they can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

#: A disk that has no room for this has none for weights.
_TRIED_BYTES = 4096


def default_folder() -> Path:
    """Where weights files are kept: `$XDG_CACHE_HOME/gradcam-worker/weights`, or under `~/.cache`."""
    # The second is relative for a user without a home.
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return (base if base.is_absolute() else Path(tempfile.gettempdir())) / "gradcam-worker" / "weights"


def make_private(folder: Path) -> None:
    """Make the folder if need be, readable for its owner alone. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(None, "it belongs to somebody else")
    folder.chmod(0o700)


def complaint(folder: Path) -> str:
    """Say in a sentence that files cannot be kept there, why, and what to do; empty where they can."""
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_TRIED_BYTES))
    except OSError as error:
        return (
            f"Weights files cannot be kept in {folder} ({error.strerror or error}), so each process fetches its own: "
            "set GRADCAM_WORKER_WEIGHTS_CACHE_DIR to a folder that this user can write"
        )
    return ""
