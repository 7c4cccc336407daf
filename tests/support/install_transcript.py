"""Write docs/examples/install.txt: the package installed where nothing else is, and its demo, as a terminal showed it.

python tests/support/install_transcript.py

It builds the wheel of this source, and gives it to pip in place of the one in a package index. All else comes from the
index: some 3 GB, as PyTorch brings CUDA. `tests/integration/test_wheel.py` holds the demo's part against the demo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wheels import copy_source

PAGE: Final = Path(__file__).parents[2] / "docs" / "examples" / "install.txt"
HEAD: Final = """# Written by tests/support/install_transcript.py. The wheel was built from the source, and lay where
# pip looks; all else came from a package index. Of what pip says only the last line is here.
"""
DEMO: Final = "gradcam demo"
_LAST_LINE_ONLY: Final = "pip install 'gradcam-queue[demo]'"
_TYPED: Final = (
    "ls -A",
    "python3 -m venv ../environment && source ../environment/bin/activate",
    _LAST_LINE_ONLY,
    "gradcam --version",
    DEMO,
    "ls results",
    "gradcam deploy-files my-deployment",
    "ls my-deployment/deploy",
)


def demo_lines() -> list[str]:
    """What the transcript shows of the demo."""
    _, _, behind = PAGE.read_text(encoding="utf-8").partition(f"$ {DEMO}\n")
    return behind.split("\n$ ")[0].splitlines()


def _built(folder: Path) -> Path:
    source, out = copy_source(folder / "source"), folder / "wheel"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def _said(typed: str, folder: Path, environment: Mapping[str, str]) -> str:
    activated = f"[ ! -e ../environment ] || source ../environment/bin/activate; {typed}"
    ended = subprocess.run(
        ["bash", "-c", activated],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise SystemExit(f"{typed} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def main() -> None:
    """Type the commands in an empty folder, and keep what they say."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = folder / "empty"
        empty.mkdir()
        # Nothing of ours comes in by the environment, and no file of weights by a cache.
        ours = ("GRADCAM_", "AWS_", "PYTHON", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        links = f"{environment.get('PIP_FIND_LINKS', '')} {_built(folder)}".strip()
        environment |= {"PIP_FIND_LINKS": links, "PIP_NO_CACHE_DIR": "1", "COLUMNS": "120", "HOME": name}
        text = HEAD
        for typed in _TYPED:
            said = _said(typed, empty, environment)
            if typed == _LAST_LINE_ONLY:
                said = "…\n" + textwrap.fill(said.rstrip().splitlines()[-1], 120, break_on_hyphens=False)
            text += f"\n$ {typed}\n" + "".join(f"{line.rstrip()}\n" for line in said.splitlines())
    PAGE.write_text(text.replace(name, "…"), encoding="utf-8")


if __name__ == "__main__":
    main()
