"""The launcher and what it supervises by: no torch, no Celery."""

from __future__ import annotations
