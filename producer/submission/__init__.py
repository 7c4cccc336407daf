"""A submission: typed options become a job, sources become chunks, and each chunk gets its message."""

from __future__ import annotations
