"""What the images and the compose files say, to be run as processes of this machine, without rights.

Free ports stand for those of containers, folders for volumes and secrets, and our Python for the images' programs.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dockerfile
import yaml

from deploy.programs import Program, free_ports

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
STAGES: Final = dockerfile.stages(DEPLOY / "Dockerfile")
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
MINIO: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.minio.yaml").read_text(encoding="utf-8"))
#: Whom the images run as.
USER: Final = 10001
#: A variable of compose with its default, which holds no further one.
_VARIABLE: Final = re.compile(r"\$\{(\w+):-([^${}]*)\}")


def python_is_open() -> bool:
    """Whether the images' user gets at our Python: below a folder that is closed, such as /root, he does not."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(sys.executable).resolve().parents)


def without_rights(command: Sequence[str | Path]) -> list[str]:
    """Put before a command what takes root's rights; it runs as the images' user where that one gets at Python.

    Without rights root writes only what is its own and open for writing, so that a folder can be closed to it. A test
    that is about the user asks `python_is_open`, and skips where he does not get there.
    """
    user = [f"--reuid={USER}", f"--regid={USER}"] if python_is_open() else []
    return [
        str(shutil.which("setpriv")),
        "--clear-groups",
        *user,
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        *map(str, command),
    ]


def closed(folder: Path) -> Path:
    """Make a folder with all in it one that is only read."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 | 0o444 | (0o111 if path.is_dir() else 0))
    return folder


def home_in(folder: Path) -> Path:
    """Make a home that whoever runs the program may write to."""
    home = folder / "home-of-tests"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    return home


def filled_in(text: str, values: Mapping[str, str]) -> str:
    """What compose makes of a text: variables, the inner ones first, and `$$`."""
    while (filled := _VARIABLE.sub(lambda found: values.get(found[1]) or found[2], text)) != text:
        text = filled
    return text.replace("$$", "$")


def command_of(service: Mapping[str, Any], here: Mapping[str, str]) -> list[str]:
    """What compose runs of a service, with ports and folders of this machine in the place of a container's."""
    words = [*service.get("entrypoint", []), *service["command"]]
    theirs = re.compile("|".join(map(re.escape, here)))
    return [theirs.sub(lambda found: here[found[0]], filled_in(str(word), {})) for word in words]


@contextmanager
def running(
    name: str, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Program]:
    """A program with a log and a folder of its own, for as long as the `with` lasts."""
    program = Program(name, folder / f"{name}.log")
    folder.joinpath(name).mkdir()
    program.launch(command, environment or {"PATH": os.environ["PATH"], "HOME": str(folder)}, folder / name)
    try:
        yield program
    finally:
        program.stop(5)


def worker_command() -> list[str]:
    """What the image's entry point and compose's service for the CPU run, here with our Python."""
    assert STAGES["worker"].of("ENTRYPOINT") == ['["gradcam-worker"]']
    # Here it has no network of its own.
    here = {"0.0.0.0": "127.0.0.1", "9101": str(free_ports(1)[0])}
    command = [here.get(word, word) for word in COMPOSE["services"]["worker-cpu"]["command"]]
    return [sys.executable, "-m", "worker.cli", *command]


def worker_environment(folder: Path) -> dict[str, str]:
    """What the image sets, at places here; code that nobody may write to, and folders like those it may."""
    code = folder / "code"
    for package in ("deploy", "gradcam_queue", "producer", "worker"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    closed(code)
    home = home_in(folder)
    text = STAGES["worker"].of("ENV")[0]
    settings = {name: value.replace("/run/gradcam", f"{home}/run") for name, value in re.findall(r"(\w+)=(\S+)", text)}
    settings = {name: value.replace("/var/cache/gradcam", f"{home}/cache") for name, value in settings.items()}
    home.joinpath("run").mkdir(mode=0o777)
    home.joinpath("cache").mkdir(mode=0o777)
    for name in ("run", "cache"):
        home.joinpath(name).chmod(0o777)
    return {**settings, "HOME": str(home), "USER": "gradcam", "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
