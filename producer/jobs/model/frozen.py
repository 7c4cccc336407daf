"""What all messages have in common: they do not change, and say nothing that this version does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A message that cannot be changed; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
