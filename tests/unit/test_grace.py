"""A stopping process ends in time, whatever it waits for."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

from worker.supervise.grace import CHILD_SHARE, LAUNCHER_SHARE, PARENT_SHARE, Grace


def test_the_share_of_the_time_begins_with_the_drain_file(tmp_path: Path) -> None:
    over, given = Event(), []

    def end(within_s: float) -> None:
        given.append(within_s)
        over.set()

    Grace([tmp_path / "drain"], 2.0, 0.5, end).start()
    assert not over.wait(0.6)
    (tmp_path / "drain").touch()
    touched = time.monotonic()
    assert over.wait(10)
    assert time.monotonic() - touched >= 0.9
    assert 0 < given[0] < 1


def test_children_end_before_their_parents_and_those_before_they_are_killed() -> None:
    assert 0 < CHILD_SHARE < PARENT_SHARE < LAUNCHER_SHARE < 1
