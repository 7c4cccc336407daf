"""Run the whole service on this machine: the embedded stack and the demo."""

from __future__ import annotations

from pathlib import Path

#: Where a stack is of which nobody says where.
DEFAULT_DIRECTORY = Path(".gradcam")
