"""What the stages of a job took, so that its owner sees what bounds it.

In the job table a stage's work stands under its name, the time that images waited for it under `<stage>:wait`, and the
time that devices had nothing to do under `explain:idle`. All are sums: over images, over devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

#: In their order. `record` writes the manifest.
STAGES: Final = ("fetch", "decode", "explain", "render", "encode", "upload", "record")
WAIT: Final = ":wait"
IDLE: Final = "explain:idle"


class StageTime(BaseModel):
    """Seconds of one stage, over all images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    work_s: float
    #: How long images waited for a free thread, or for the device. Long before one stage: that stage bounds the job.
    wait_s: float


def stage_times(timings: Mapping[str, float]) -> dict[str, StageTime]:
    """Read the job table's sums, those of stages that have run."""
    return {
        stage: StageTime(work_s=round(timings[stage], 3), wait_s=round(timings.get(stage + WAIT, 0.0), 3))
        for stage in STAGES
        if stage in timings
    }


def device_busy(timings: Mapping[str, float]) -> float | None:
    """The share of the time between first and last batch in which devices had something to do; None before that."""
    work, idle = timings.get("explain", 0.0), timings.get(IDLE, 0.0)
    return round(work / (work + idle), 3) if work else None
