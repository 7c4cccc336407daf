"""`make release-files`: the wheel of this version into tests/releases/, and what it writes into tests/golden/.

python tests/support/make_release.py              # this version: build its wheel, run it
python tests/support/make_release.py FILE.whl     # an earlier one
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import golden
import numpy as np
import psutil
import redis
from releases import ROOT, WHEELS, Release, ReleaseWorker
from stacks import eventually, frozen, own_stack

from deploy.stack import Stack
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

#: Every parameter of a job that a release knew: those of the one before, and these. A new parameter goes into the row
#: of its release.
KNOWN: dict[str, list[str]] = {
    "0.1.0": [
        *(
            "--network",
            "efficientnet_lite0",
            "--weight-path",
            "random",
            "--layer-name",
            "last-features",
            "--top-k",
            "2",
        ),
        *("--method", "layercam", "--precision", "bf16", "--fit", "crop", "--output-size", "original", "--raw"),
        *("--outputs", "cam,gb", "--format", "png", "--pack", "tar", "--chunk-size", "2", "--queue", "high"),
    ],
    "0.2.0": ["--input-size", "320", "--mean", "0.5", "--std", "0.25"],
    "0.3.0": [
        *("--activation", "sigmoid", "--direction", "down", "--classes", "above:0.25", "--max-boxes", "3"),
        *("--min-score", "0.25", "--resize-filter", "bicubic-antialias"),
    ],
    "0.4.0": [],
}
SMALL = ("--network", "squeezenet1_1", "--weight-path", "random", "--outputs", "cam")


def parameters_of(version: str) -> list[str]:
    """The options of `gradcam submit` that a release knew, with values that are no defaults."""
    rows = list(KNOWN)
    assert version in rows, f"give KNOWN a row for {version}: its new parameters, with values that are no defaults"
    return [word for row in rows[: rows.index(version) + 1] for word in KNOWN[row]]


def make(release: Release, stack: Stack, folder: Path) -> None:
    """Run a release's client and worker, and keep what they wrote."""
    storage = Storage.from_settings(read(Connections))
    assert storage.place == golden.PLACE
    random = np.random.default_rng(0)
    for number in range(24):
        picture = cv2.imencode(".jpg", random.integers(0, 255, (40, 40, 3), np.uint8))[1].tobytes()
        storage.put(f"in/{number}.jpg", picture)
    uris = [f"s3://{storage.bucket}/in/{number}.jpg" for number in range(24)]
    listed = folder / "list.csv"
    rows = "".join(f"{uri},cat {n}\n" for n, uri in enumerate([uris[0], uris[1], f"{uris[2]}.gone"]))
    listed.write_text(f"uri,id\n{rows}")

    def gradcam(*arguments: str) -> str:
        return release.gradcam(stack, *arguments)

    with closing(redis.Redis.from_url(stack.redis.url)) as client:
        gradcam("submit", *uris[:3], "--name", "plain")
        gradcam("submit", *uris[:3], "--name", "many", *parameters_of(release.version))
        keep(release, "queued", golden.dump_redis(client))
        client.flushdb()
        worker = ReleaseWorker(release, stack, folder / "worker.log", {"GRADCAM_WORKER_LEASE_S": "60"})
        worker.start()
        try:
            gradcam("submit", str(listed), "--id-column", "id", "--name", "worked", "--chunk-size", "2", *SMALL)
            eventually(ended(client, "worked"), within_s=120)
            gradcam("submit", *uris, "--name", "half", "--chunk-size", "1", *SMALL)
            eventually(lambda: number_of(client, "half", "done"), every_s=0.005)
            with ExitStack() as stopped:  # until it is paused
                assert worker.process is not None
                for process in psutil.Process(worker.process.pid).children(recursive=True):
                    stopped.enter_context(frozen(process))
                gradcam("pause", "half")
            eventually(lambda: not client.exists("gradcam:job:half:leases"))
            assert 0 < number_of(client, "half", "done") < len(uris)
            time.sleep(1)  # its worker tells what it did
            keep(release, "worked", golden.dump_redis(client))
        finally:
            worker.stop()
    keep(release, "objects", golden.dump_objects(storage))


def number_of(client: redis.Redis, job: str, field: str) -> int:
    """A number of a job's hash."""
    return int(client.hget(f"gradcam:job:{job}", field) or 0)


def ended(client: redis.Redis, job: str) -> Callable[[], object]:
    """Whether a job has ended."""
    return lambda: client.hexists(f"gradcam:job:{job}", "finished_at")


def keep(release: Release, name: str, held: dict[str, Any]) -> None:
    """Write one of a release's files."""
    folder = golden.FOLDER / release.version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Make what is missing of a release."""
    if len(sys.argv) > 1:
        wheel = Path(sys.argv[1])
    else:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(WHEELS), str(ROOT)]
        said = subprocess.run(build, check=True, capture_output=True, text=True).stdout
        wheel = WHEELS / said.split()[-1]
    with tempfile.TemporaryDirectory() as name:
        release = Release.unpack(wheel, Path(name) / "release")
        with own_stack(Path(name) / "stack") as stack:
            make(release, stack, Path(name))
    sys.stdout.write(f"tests/golden/{release.version} is what release {release.version} writes\n")


if __name__ == "__main__":
    main()
