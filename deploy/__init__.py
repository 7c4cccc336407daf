"""Run the whole service on this machine: the embedded stack and the demo."""

from __future__ import annotations
