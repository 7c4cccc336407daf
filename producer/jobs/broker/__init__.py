"""Celery and its transport on Redis: messages that point to chunks."""

from __future__ import annotations
