"""Secrets of addresses, and the log of a worker that writes text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secret_addresses import SECRET, addresses
from stacks import SMALL

if TYPE_CHECKING:
    from deploy.stack import Stack
    from producer.client.client import Client


def test_the_log_as_text_holds_no_secret_either(worker: Stack, client: Client) -> None:
    """The stack's worker may reach no private host: it says so of the weights, and fails the images."""
    uris = list(addresses("http://127.0.0.1:9"))
    job = client.submit(uris, **SMALL)
    of_weights = client.submit(uris, **{**SMALL, "weight_path": f"http://127.0.0.1:9/w.pth?token={SECRET}"})
    client.wait(job, timeout_s=120)
    error = client.wait(of_weights, timeout_s=120).error or ""
    assert worker.worker is not None
    log = worker.worker.log.read_text()
    assert job in log
    assert "http://127.0.0.1:9/w.pth?***" in error
    assert "http://127.0.0.1:9/w.pth?***" in log
    assert SECRET not in log + error
