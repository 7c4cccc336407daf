"""The mathematics: torch and the papers, nothing else."""

from __future__ import annotations
