"""Which addresses an image or a weights file may have."""

from __future__ import annotations
