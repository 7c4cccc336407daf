"""What a job is, for both sides: specs, states, keys, settings, errors. No Redis, no S3."""

from __future__ import annotations
