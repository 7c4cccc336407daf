"""Addresses that users name, and the bytes behind them."""

from __future__ import annotations
