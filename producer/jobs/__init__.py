"""What both sides speak: job specs, the job table in Redis, names, storage, addresses, errors."""

from __future__ import annotations
