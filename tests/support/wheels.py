"""A copy of what the wheel is made of, so that nothing an earlier build left can come into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("deploy", "gradcam_queue", "producer", "worker")
_BESIDE: Final = ("pyproject.toml", "README.md", "LICENSE")


def copy_source(folder: Path) -> Path:
    """Copy it into a folder, which is made; returns that."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    for name in _BESIDE:
        shutil.copy(ROOT / name, folder)
    return folder
