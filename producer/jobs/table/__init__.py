"""The job table: the truth about every job, in Redis, changed by Lua scripts alone."""

from __future__ import annotations
