"""The Python client: the verbs of the `gradcam` command, from a program."""

from __future__ import annotations
