"""The list of names that the client has is that of the torchvision and timm that are tested."""

from __future__ import annotations

from pathlib import Path

import network_names

from producer.jobs.model import network_names as network_names_module
from producer.jobs.model.network_names import known
from worker.models import architectures


def test_the_clients_list_is_what_is_installed() -> None:
    """After an update: python tests/support/network_names.py > producer/jobs/model/network_names.txt."""
    ours = (Path(network_names_module.__file__).parent / "network_names.txt").read_text(encoding="utf-8")
    assert ours.splitlines() == network_names.lines()


def test_every_name_that_a_worker_lists_is_known_to_the_client() -> None:
    names = known().names
    assert set(architectures.names()) <= names
    assert {name for name in names if "/" not in name} == set(architectures.names())
