"""The files that deploy, for who has the package and no clone: what `gradcam deploy-files` writes.

They lie in the package as they lie in the repository, so that each command of docs/deploy.md works in either.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted

_HERE: Final = Path(__file__).parent
#: Of this folder; whole folders among them.
PARTS: Final = (
    "Dockerfile",
    "Dockerfile.dockerignore",
    "compose.yaml",
    "compose.minio.yaml",
    "make_secrets.py",
    "requirements",
    "monitoring",
    "helm",
)


def write(folder: Path) -> Path:
    """Write them into `deploy` in a folder that is new or empty; returns that.

    Args:
        folder: Where; `docker build` takes it as its context.

    Raises:
        UsageError: There is something in the folder, it is none, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{quoted(folder)} is not empty: name a new folder, or empty this one")
        into = folder / "deploy"
        into.mkdir()
        for part in PARTS:
            if (_HERE / part).is_dir():
                shutil.copytree(_HERE / part, into / part, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(_HERE / part, into / part)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{quoted(folder)} is no folder, or lies in none: name another one") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else "not all could be copied"
        raise UsageError(
            f"{quoted(folder)} cannot be written to ({why}): remove what is there of it, and name another folder"
        ) from None
    return into
