"""A cut of the chaos suite (`make chaos` runs all of it): faults on real workers, and nothing lost, nothing doubled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import pytest
from budget import either
from chaos_faults import FAULTS
from chaos_rig import Rig, Row
from stacks import eventually

CUT = (
    "Redis killed, restarted",
    "S3 breaks off bodies, loses replies",
)
#: What other tests do to one worker.
MORE = ("child killed (kill -9)", "whole machine gone, back later", "SIGTERM (spot notice)", "messages lost")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("chaos"), images=64, seed=11, poison=False) as running:
        running.take_reference()
        yield running


@pytest.mark.parametrize("name", either(CUT, CUT + MORE))
def test_nothing_is_lost_and_nothing_doubled(rig: Rig, name: str) -> None:
    row = Row(name)
    FAULTS[name](rig, row)
    assert (row.problems, row.lost, row.doubled) == ([], 0, 0)
    assert row.times


def test_recovery_takes_a_lease_and_an_interval_even_behind_a_long_queue(rig: Rig) -> None:
    """The chunk of a machine that is gone does not wait its turn behind what was sent since."""
    small = rig.submit(rig.uris()[:8], name="small")
    eventually(lambda: rig.in_hand(small), every_s=0.005)
    (holder,) = rig.database.hvals("gradcam:job:small:holders")
    name = cast(bytes, holder).decode().split(":", 1)[1].split("/")[0]
    big = rig.submit(rig.uris() * 4, name="big")
    (worker,) = [one for one in rig.workers if rig.runs(one, name)]
    worker.kill_all()
    killed = time.monotonic()
    # The lease is 2 s, the interval 0.5 s, and the survivor has a chunk of 8 in hand; the rest is the machine's noise.
    eventually(lambda: rig.direct_client.status(small).republished, within_s=20)
    assert time.monotonic() - killed < 12
    assert rig.direct_client.wait(small, timeout_s=30).done == 8
    assert not rig.direct_client.status(big).ended
    worker.restart()
    rig.client.cancel(big)
