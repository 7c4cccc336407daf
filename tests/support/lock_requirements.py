"""`make lock`: what the images install, in the versions of constraints.txt, with the hash of every file of theirs.

`build.txt` makes the wheel, `client.txt` is the client's, `torch.txt` PyTorch with what belongs to its build, and
`worker.txt` all else that a worker needs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements"
#: What a client's image has, and what a worker's has beside.
OF_CLIENT = ("otel",)
OF_WORKER = ("worker", "timm", "hf", "parquet")
_HEAD = "# Written by `make lock`, from pyproject.toml and constraints.txt.\n"
#: They come with PyTorch's build: a CPU build has none of NVIDIA's. nvidia-ml-py is of us all.
_OF_TORCH = re.compile(r"(torch|torchvision|triton|cuda-.*|nvidia-(?!ml-py).*)==")


def compiled(*arguments: str, stdin: str = "") -> str:
    """Return the requirements that uv resolves, each with its hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", *arguments, "-c", str(ROOT / "constraints.txt")]
    options = ["--generate-hashes", "--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "-q"]
    found = subprocess.run([*command, *options], input=stdin, cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout


def paragraphs(text: str) -> list[str]:
    """Split requirements: each begins at the left, and its hashes are indented."""
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.MULTILINE)


def _extras(*names: str) -> list[str]:
    return [part for name in names for part in ("--extra", name)]


def main() -> None:
    """Write all files."""
    worker = paragraphs(compiled("pyproject.toml", *_extras(*OF_CLIENT, *OF_WORKER)))
    files = {
        "build": paragraphs(compiled("-", stdin="setuptools\n")),
        "client": paragraphs(compiled("pyproject.toml", *_extras(*OF_CLIENT))),
        "torch": [lines for lines in worker if _OF_TORCH.match(lines)],
        "worker": [lines for lines in worker if not _OF_TORCH.match(lines)],
    }
    for name, lines in files.items():
        (REQUIREMENTS / f"{name}.txt").write_text(_HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
