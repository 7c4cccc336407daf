"""Earlier releases beside today's code: their wheels, unpacked, run with the same Python and the same packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deploy.stack import Stack, Worker

ROOT: Final = Path(__file__).parents[2]
#: The wheels, as `make release-files` puts them there.
WHEELS: Final = ROOT / "tests" / "releases"


def own_version() -> str:
    """The version of the code in this folder."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


@dataclass(frozen=True)
class Release:
    """A release that can be run."""

    version: str
    #: Where its packages lie.
    folder: Path

    @classmethod
    def unpack(cls, wheel: Path, folder: Path) -> Release:
        """Unpack a wheel into a new folder."""
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
        return cls(wheel.name.split("-")[1], folder)

    def environment(self, stack: Stack, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its processes get: its code before all other."""
        return {**stack.environment(), **(settings or {}), "PYTHONPATH": str(self.folder)}

    def gradcam(self, stack: Stack, *arguments: str, code: int = 0) -> str:
        """Run its `gradcam` against a stack; what it printed: to stderr where that is its sentence, else to stdout."""
        run = subprocess.run(
            [sys.executable, "-m", "producer.cli", *arguments],
            cwd=self.folder,
            env=self.environment(stack),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == code, f"{self.version}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        assert "Traceback" not in run.stderr
        return run.stderr if code in {2, 4} else run.stdout


def of(version: str, folder: Path) -> Release:
    """Unpack an earlier release."""
    (wheel,) = WHEELS.glob(f"gradcam_queue-{version}-*.whl")
    return Release.unpack(wheel, folder / version)


class ReleaseWorker(Worker):
    """The `gradcam-worker` of a release, with a process on the CPU."""

    def __init__(
        self,
        release: Release,
        stack: Stack,
        log: Path,
        settings: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        environment = release.environment(stack, settings)
        super().__init__(log, environment, processes=1, devices="cpu", options=options)
        self._release = release

    def start(self) -> None:
        """Start it in its own folder, which `python -m` looks into first."""
        self.launch((sys.executable, "-m", "worker.cli", *self._arguments), self._environment, self._release.folder)


def kill_all(worker: Worker) -> None:
    """End a launcher and all that it started, as a machine that loses its power."""
    assert worker.process is not None
    launcher = psutil.Process(worker.process.pid)
    everything = [launcher, *launcher.children(recursive=True)]
    for process in everything:
        process.suspend()
    for process in everything:
        process.kill()
    worker.process.wait()
