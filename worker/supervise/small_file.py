"""Small files of text that another process reads while they are written."""

from __future__ import annotations

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old text or the new one, never a part of it. Raises OSError."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(text)
    partial.replace(path)
