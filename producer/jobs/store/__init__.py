"""The object store: our bucket, and what is written there of a job."""

from __future__ import annotations
