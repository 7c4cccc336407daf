"""What the worker's main process does about death: watchdog and reconciler."""

from __future__ import annotations
