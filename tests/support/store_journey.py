"""A job from submission to deletion in a store that has one name inside of a stack and another one outside of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest

from producer.client.client import Client
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

PHOTO: Final = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
_JOB: Final[dict[str, Any]] = {"network": "squeezenet1_1", "outputs": ["cam", "heatmap"], "class_id": 1}


def follow_a_job(folder: Path, log: Callable[[], str]) -> None:
    """Uploaded weights, pictures alone and in shards, downloads, addresses for those outside, and deletion.

    The settings are those of a client of the stack. A worker runs.

    Args:
        folder: For what is uploaded and downloaded.
        log: What the worker said, for whoever has to find out why this fails.
    """
    weights = _weights(folder / "weights.pth")
    client = Client.from_env()
    storage = client.storage
    jobs = {pack: client.submit([PHOTO], weight_path=str(weights), pack=pack, **_JOB) for pack in ("none", "tar")}
    for job in jobs.values():
        status = client.wait(job, timeout_s=60)
        assert (status.state, status.done) == ("succeeded", 1), log()
    assert len(list(storage.keys(f"{storage.prefix}/_system/weights/"))) == 1, "the same weights are uploaded once"
    for pack, job in jobs.items():
        assert len(client.download(job, folder / f"results-{pack}")) == 2
        open_outside(client, job)
        client.delete(job, objects=True)
    left = [key for key in storage.keys(f"{storage.prefix}/") if "/_system/" not in key]
    assert left == []


def open_outside(client: Client, job: str) -> None:
    """Who has nothing but an address reads what the store holds; one that was signed for the inside is refused."""
    settings = read(Connections)
    inside, outside = str(settings.s3_endpoint_url), str(settings.s3_public_endpoint_url)
    assert inside != outside
    of_bucket = f"{outside}/{settings.s3_bucket}/"
    links = list(client.urls(job, expires_s=60, limit=2))
    assert links
    for link in links:
        assert link.url.startswith(of_bucket), "the address is of the path's style"
        key = unquote(urlsplit(link.url.removeprefix(of_bucket)).path)
        with urlopen(link.url, timeout=10) as answer:
            assert answer.read() == client.storage.get(key)

    signed_inside = Storage.from_settings(settings.model_copy(update={"s3_public_endpoint_url": None}))
    url = signed_inside.presigned_url(key, expires_s=60)
    assert url.startswith(inside)
    with pytest.raises(HTTPError) as refused:
        urlopen(url.replace(inside, outside, 1), timeout=10)
    assert refused.value.code == 403
    refused.value.close()


def _weights(path: Path) -> Path:
    import torch
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path
