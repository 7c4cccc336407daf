"""Pictures: decoded, fitted, drawn, encoded. NumPy and OpenCV, nothing else."""

from __future__ import annotations
