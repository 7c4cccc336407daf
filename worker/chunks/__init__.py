"""A chunk from claim to commit."""

from __future__ import annotations
