"""The device: batches of arrays go in, explanations come out."""

from __future__ import annotations
