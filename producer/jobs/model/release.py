"""Which release of this program runs here: its version and, from a checkout, the commit, without needing git."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "gradcam-queue"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHOWN: Final = 9


@cache
def own() -> str:
    """As `0.3.0`, or `0.3.0+g0a1b2c3d4` from a checkout; it is that of the process's start."""
    try:
        released = version(DISTRIBUTION)
    except PackageNotFoundError:
        released = "unknown"
    found = commit_of(Path(__file__).parents[3])
    return f"{released}+g{found[:_SHOWN]}" if found else released


def others(versions: Mapping[str, str]) -> str:
    """Describe which workers are of another release."""
    told = ", ".join(f"{name} ({worker})" for name, worker in sorted(versions.items()))
    return f"workers of another release are running: {told}; this is {own()}"


def commit_of(root: Path) -> str | None:
    """The commit that is checked out in a folder, if that is a checkout of this program, whole or a worktree."""
    try:
        # Somebody may have installed us into a folder of a repository of theirs.
        if f'name = "{DISTRIBUTION}"' not in (root / "pyproject.toml").read_text():
            return None
        folder = root / ".git"
        if folder.is_file():
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head if _COMMIT.fullmatch(head) else None
        shared = folder / "commondir"
        common = folder / shared.read_text().strip() if shared.exists() else folder
        return _read(common, head.removeprefix("ref:").strip())
    except (OSError, ValueError):
        return None


def _read(folder: Path, reference: str) -> str | None:
    loose = folder / reference
    if loose.exists():
        found = loose.read_text().strip()
        return found if _COMMIT.fullmatch(found) else None
    for line in (folder / "packed-refs").read_text().splitlines():
        commit, _, name = line.partition(" ")
        if name == reference and _COMMIT.fullmatch(commit):
            return commit
    return None
