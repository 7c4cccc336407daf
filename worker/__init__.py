"""A chunk of items becomes pictures: the GPU-pinned Celery worker."""

from __future__ import annotations
