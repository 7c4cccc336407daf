"""Where a user's weights files are kept on this machine, and whether they can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from worker.supervise.private_folder import make_private

#: A disk that has no room for this has none for weights.
_TRIED_BYTES = 4096


def default_folder() -> Path:
    """Where weights files are kept: `$XDG_CACHE_HOME/gradcam-worker/weights`, or under `~/.cache`.

    A user without a home has a folder for temporary files, whose name nobody else has.
    """
    # The second is relative for a user without a home.
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if base.is_absolute():
        return base / "gradcam-worker" / "weights"
    return Path(tempfile.gettempdir()) / f"gradcam-weights-{os.geteuid()}"


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
