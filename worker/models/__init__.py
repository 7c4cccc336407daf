"""Networks, their weights, layers and classes, kept in memory while there is room."""

from __future__ import annotations
