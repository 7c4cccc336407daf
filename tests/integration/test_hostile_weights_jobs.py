"""Hostile weights end their job in a sentence, on one worker that goes on with a healthy job and outlives them all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from budget import either
from hostile_weights import CASES
from stacks import POISON, SMALL, children_of, own_stack
from torchvision.models import shufflenet_v2_x0_5

from producer.client.client import Client
from producer.jobs.model.states import JobState

if TYPE_CHECKING:
    from deploy.stack import Stack

NETWORK, HEAD = "shufflenet_v2_x0_5", "fc.weight"
PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
#: What crashes, hangs or fills the memory of the process that loads it.
FAULTS = either(
    ("poison:hang",), ("poison:segfault", "poison:killed", "poison:hang", "poison:hang-all", "poison:memory")
)
QUICKLY = either(("a head of 2^31 rows without columns", "a key of 2^60 tuples", "a head with one NaN"), tuple(CASES))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker, of one process, that waits not for long for a model to be loaded."""
    settings = {
        "PYTHONPATH": os.pathsep.join([str(POISON), os.environ.get("PYTHONPATH", "")]),
        "GRADCAM_WORKER_LEASE_S": "10",
        "GRADCAM_WORKER_LOAD_TIMEOUT_S": "15",
    }
    with own_stack(tmp_path_factory.mktemp("hostile"), settings) as stack:
        stack.start_worker()
        first = Client.from_env()
        first.wait(first.submit([PHOTO], **SMALL), timeout_s=120)
        yield stack


def told(path: Path, case: str) -> tuple[str, float]:
    """Submit a job with the weights of a file, and a healthy one behind it; its error, and the seconds until then."""
    client = Client.from_env()
    started = time.monotonic()
    bad = client.submit([PHOTO] * 2, network=NETWORK, weight_path=path, chunk_size=1, outputs=["cam"])
    good = client.submit([PHOTO] * 8, chunk_size=2, **SMALL)
    status = client.wait(bad, timeout_s=150)
    seconds = time.monotonic() - started
    assert client.wait(good, timeout_s=60).done == 8
    good_s = time.monotonic() - started
    assert (status.state, status.done, status.failed) == (JobState.FAILED, 0, 0)
    print(f"| {case} | {seconds:.1f} s | {good_s:.1f} s |")  # a run with -s writes the table of docs/hostile-input.md
    return status.error or "", seconds


@pytest.mark.filterwarnings("ignore")  # of torch, about kinds of tensors that it calls a beta
def test_hostile_weights_end_their_job_in_a_sentence_and_no_process(hostile: Stack, tmp_path: Path) -> None:
    assert hostile.worker is not None
    processes = {process.pid for process in children_of(hostile.worker)}
    torch.manual_seed(0)
    state = shufflenet_v2_x0_5(num_classes=5).state_dict()
    for number, case in enumerate(QUICKLY):
        make, words = CASES[case]
        path = tmp_path / f"{number}.pth"
        path.write_bytes(make(state, HEAD))
        sentence, seconds = told(path, case)
        assert re.search(words, sentence), (case, sentence)
        assert seconds < 60
    assert {process.pid for process in children_of(hostile.worker)} == processes


@pytest.mark.parametrize("word", FAULTS)
def test_weights_that_crash_or_hang_what_loads_them_fail_their_job(hostile: Stack, tmp_path: Path, word: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_text(word)
    sentence, _seconds = told(path, word)
    assert "the weights crash the process that loads them" in sentence or (
        word == "poison:memory" and "does not fit into the device's memory" in sentence
    )
