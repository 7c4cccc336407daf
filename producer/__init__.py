"""Say what to explain, send it, watch it: the light client of gradcam-queue."""

from __future__ import annotations
