"""The transitions of the job table, one Lua script each."""

from __future__ import annotations
