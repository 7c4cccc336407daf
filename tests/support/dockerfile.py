"""A Dockerfile, carried out without Docker: its COPY and RUN lines work in a folder in place of an empty root.

What a RUN line mounts is there while it runs, by a link, and gone afterwards.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Folders of the image that our Dockerfile writes; in the lines that run they are folders of the new root.
_PLACES = re.compile(r"(?<![\w./])/(?=(?:opt|src|wheel|requirements|home|run|var/cache)\b)")
_MOUNT = re.compile(r"--mount=type=bind,(\S+)\s+")


@dataclass
class Stage:
    """One FROM with what follows it."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def of(self, kind: str) -> list[str]:
        """Return the arguments of each instruction of a kind."""
        return [text for name, text in self.instructions if name == kind]


def stages(path: Path) -> dict[str, Stage]:
    """Read a Dockerfile into its named stages. An ARG without a default has that of the one above all stages."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    above: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = Stage(base)
        elif name and found:
            given = above.get(rest.strip(), rest.strip()) if name == "ARG" else rest.strip()
            next(reversed(found.values())).instructions.append((name, given))
        elif name == "ARG":
            above[rest.partition("=")[0]] = rest.strip()
    return found


def chain(every: Mapping[str, Stage], name: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage, those of the stages it is built on before."""
    stage = every[name]
    return [*(chain(every, stage.base) if stage.base in every else []), *stage.instructions]


def build(every: Mapping[str, Stage], name: str, source: Path, roots: Path, environment: Mapping[str, str]) -> Path:
    """Carry out a stage, and what it copies from before; returns the folder that stands for its root.

    Args:
        every: The stages.
        name: Which of them.
        source: What `docker build` is given as context.
        roots: Where each stage gets a folder.
        environment: For the lines that run.
    """
    root = roots / name
    if root.exists():
        return root
    root.mkdir(parents=True)
    arguments: dict[str, str] = {}
    for kind, text in chain(every, name):
        if kind == "COPY":
            _copy(every, text, source, root, roots, environment)
        elif kind == "ARG":
            argument, _, default = text.partition("=")
            arguments[argument] = default.strip('"')
        elif kind == "RUN":
            mounts = [dict(part.split("=", 1) for part in mount.split(",")) for mount in _MOUNT.findall(text)]
            from_stages = {
                one["from"]: build(every, one["from"], source, roots, environment) for one in mounts if "from" in one
            }
            command = _PLACES.sub(f"{root}/", _MOUNT.sub("", text))
            with _mounted(root, mounts, {"": source, **from_stages}):
                ended = subprocess.run(
                    ["/bin/sh", "-ec", command],
                    env={**arguments, **environment},
                    cwd=root,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            assert ended.returncode == 0, f"RUN {text}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return root


@contextmanager
def _mounted(root: Path, mounts: list[dict[str, str]], places: Mapping[str, Path]) -> Iterator[None]:
    targets = [root / mount["target"].lstrip("/") for mount in mounts]
    for mount, target in zip(mounts, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(places[mount.get("from", "")] / mount["source"].lstrip("/"))
    yield
    for target in targets:
        target.unlink()
        if target.parent != root:
            target.parent.rmdir()


def _copy(
    every: Mapping[str, Stage], text: str, source: Path, root: Path, roots: Path, environment: Mapping[str, str]
) -> None:
    *options, what, where = text.split()
    place = root / where.lstrip("/")
    if options:
        stage = options[0].removeprefix("--from=")
        shutil.copytree(build(every, stage, source, roots, environment) / what.lstrip("/"), place)
    elif what == ".":
        shutil.copytree(source, place, ignore=_outside_the_context(source))
    else:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / what, place)


def _outside_the_context(source: Path) -> Callable[[Any, list[str]], list[str]]:
    lines = (source / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    taken = [line[1:] for line in lines if line.startswith("!")]

    def ignored(folder: Any, names: list[str]) -> list[str]:
        if Path(folder) == source:
            return [name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in taken)]
        return [name for name in names if name in {"__pycache__", "secrets"}]

    return ignored
