"""A worker that loads a model before it reads its first message."""

from __future__ import annotations

from pathlib import Path

import skimage
from stacks import own_stack

from producer.client.client import Client
from producer.jobs.model.states import JobState

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"


def test_a_job_finds_its_model_preloaded(tmp_path: Path) -> None:
    preload = f"efficientnet_lite0,squeezenet1_1={(tmp_path / 'nowhere').as_uri()}"
    with own_stack(tmp_path / "stack", {"GRADCAM_WORKER_PRELOAD": preload}) as stack:
        stack.start_worker()
        client = Client.from_env()
        job = client.submit([CAT], network="efficientnet_lite0", class_name="tabby", outputs=["cam"])
        status = client.wait(job, timeout_s=120)
        stack.stop_worker()
        (log,) = (tmp_path / "stack").rglob("worker*.log")
        lines = log.read_text().splitlines()
    assert status.state is JobState.SUCCEEDED, status
    actions = [line.partition("action=")[2].split(" ")[0] for line in lines if "action=" in line]
    assert actions.count("model_loaded") == 1
    assert actions.index("model_loaded") < actions.index("not_preloaded") < actions.index("ready")
