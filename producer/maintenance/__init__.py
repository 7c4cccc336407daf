"""Verbs that check and mend: audit, repair, retry, doctor."""

from __future__ import annotations
