"""Images that kill or hang the process which works at them: they fail alone, and their neighbors succeed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from budget import either
from stacks import POISON, SMALL, own_stack

from producer.client.client import Client
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack


@pytest.fixture(scope="module")
def poisonous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker whose OpenCV has the faults of `tests/support/poison`."""
    settings = {
        "PYTHONPATH": os.pathsep.join([str(POISON), os.environ.get("PYTHONPATH", "")]),
        "GRADCAM_WORKER_ITEM_TIMEOUT_S": "4",
    }
    with own_stack(tmp_path_factory.mktemp("poison"), settings) as stack:
        stack.start_worker()
        yield stack


def write(folder: Path, name: str, word: bytes = b"") -> None:
    shade = sum(name.encode()) % 256
    _, encoded = cv2.imencode(".jpg", np.full((40, 40, 3), shade, np.uint8))
    (folder / f"{name}.jpg").write_bytes(encoded.tobytes() + word)


def test_images_that_crash_the_decoder_fail_and_their_neighbors_succeed(poisonous: Stack, tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path, f"{number}-good")
    bad = either((2,), (2, 7))
    for number in bad:
        write(tmp_path, f"{number}-zbad", b"poison:segfault")
    client = Client.from_env()
    job = client.submit([tmp_path], chunk_size=10 + len(bad), **SMALL)
    # Whose messages are read as well: what a death is blamed for must not depend on them.
    other = client.submit([tmp_path / "0-good.jpg"] * 20, chunk_size=2, **SMALL)
    status = client.wait(job, timeout_s=150)
    assert client.wait(other, timeout_s=60).done == 20
    assert (status.state, status.done, status.failed) == (JobState.COMPLETED_WITH_ERRORS, 10, len(bad))
    failures = {Path(failure.item.id or "").stem: failure for failure in client.failures(job)}
    assert {name: failure.reason for name, failure in failures.items()} == {
        f"{number}-zbad": "crashed_worker" for number in bad
    }
    # One death of the batch, two of each alone; a busy machine may lose a lease on top.
    assert max(failure.attempts for failure in failures.values()) <= 8
    assert list(client.audit(job)) == []


def test_an_image_that_hangs_a_thread_times_out_without_a_death(poisonous: Stack, tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, f"{number}-good")
    write(tmp_path, "2-zbad", b"poison:hang")
    client = Client.from_env()
    job = client.submit([tmp_path], **SMALL)
    status = client.wait(job, timeout_s=60)
    assert (status.done, status.failures) == (5, {"timeout": 1})
    (failure,) = client.failures(job)
    assert failure.attempts == 1
    assert "decode takes longer than 4 s" in failure.message


def test_an_image_that_hangs_the_whole_process_times_out(poisonous: Stack, tmp_path: Path) -> None:
    """No thread of the process runs any more: its parent kills it."""
    for number in range(5):
        write(tmp_path, f"{number}-good")
    write(tmp_path, "2-zbad", b"poison:hang-all")
    client = Client.from_env()
    job = client.submit([tmp_path], **SMALL)
    status = client.wait(job, timeout_s=120)
    assert (status.done, status.failures) == (5, {"timeout": 1})
