"""Write docs/troubleshooting.md: every sentence with which something fails, by what it means for whoever reads it.

python tests/support/error_docs.py > docs/troubleshooting.md
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from producer.jobs.model import errors

ROOT = Path(__file__).parents[2]
#: What each class means and what follows, in the order of the page: one that is read first stands first.
MEANING = {
    "SettingsError": "Settings are missing, wrong or misspelt. Exit code 2. Nothing was sent; a worker does not start.",
    "UsageError": "What was typed cannot be used. Exit code 2. Nothing was sent.",
    "UnknownJob": "There is no such job, or its lifetime is over. Exit code 2.",
    "JobEnded": "The job takes no more images. Exit code 2. Submit them under another name.",
    "SourceChanged": "The name belongs to a submission of something else. Exit code 2. Nothing was sent.",
    "ServiceError": "Redis or the object store cannot be used from here. Exit code 4. Jobs are not harmed: try again.",
    "Unfit": "Redis answers, and waiting helps nothing. Exit code 4. Change its settings, its rights, or the address.",
    "JobError": "Every image of the job would fail alike. The job has failed (exit code 3), and this is its `error`. "
    "Set it right, then `gradcam retry JOB`.",
    "NotHere": "This worker cannot do the job; another one may. It fails when no worker that is alive can do it.",
    "BucketClosed": "The bucket is not there, or closed to this worker. The job fails when it is so for every worker.",
    "OtherVersion": "Another version wrote the job. Workers of this one leave it to others: update them.",
    "UnreadableJob": "What Redis holds of the job is not as this version writes it. Exit code 4. All other jobs go on.",
    "OtherWeights": "The weights are not those that the job was given or begun with. It has failed (exit code 3).",
    "OtherContent": "There is something else than `#sha256=` says. An image fails alone, weights fail the job.",
    "Interrupted": "Nobody's fault: what was under way is not wanted any more, or not now. Others go on with it.",
    "FetchError": "The image could not be fetched, reason `fetch`. It fails alone.",
    "NothingThere": "There is nothing at the address, reason `fetch`. The image fails alone.",
    "EmptyFile": "The file at the address has no bytes, reason `image`. The image fails alone.",
    "FetchTimeout": "The image takes too long to be fetched, reason `timeout`. `gradcam retry JOB --only timeout`.",
    "ImageError": "They are no picture that can be read, reason `image`: [pictures.md](pictures.md). It fails alone.",
    "ModelError": "The network has no usable answer for this image, reason `model`. It fails alone.",
    "StoreError": "The pictures of this image could not be stored, reason `store`. `gradcam retry JOB --only store`.",
    "ItemTimeout": "A stage took longer with this image than it may, reason `timeout`.",
    "CrashedWorker": "The image killed the process that worked at it, reason `crashed_worker`. It fails alone.",
    "WorkerError": "This worker cannot work. Its chunk goes to others, and it says so in its health and log.",
    "NoRoom": "The job does not fit into this worker's memory. It is left to others, or tried again later.",
    "DeviceError": "The worker's device failed. A new process is started.",
}
HEAD = """# Troubleshooting by error text

Search this page for the words that you see; `…` stands for names and numbers of yours. `make docs` writes it from the
code. What to look at first when nothing says anything: [operations.md](operations.md#when-something-is-wrong).
"""


def classes() -> set[str]:
    """All classes of `producer/jobs/model/errors.py` that are raised."""
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    return found - {"GradcamError", "ItemError"}


def sentences() -> dict[str, set[str]]:
    """Every sentence that is written out in the code, by the class that says it."""
    found: dict[str, set[str]] = {name: set() for name in classes()}
    for package in ("producer", "worker", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and _name(node.func) in found:
                    text = "".join(_words(node.args[0]))
                    # Without words of its own it passes on what another one says.
                    if re.search(r"\w{3}", text.replace("…", "")):
                        found[_name(node.func)].add(re.sub(r"\s+", " ", re.sub("…[… ]*…", "…", text)).strip())
    return found


def _name(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _words(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _words(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _words(node.left)
        yield from _words(node.right)
    elif isinstance(node, ast.IfExp):
        # One of two: the first stands for both.
        yield from _words(node.body)
    else:
        yield "…"


def page() -> str:
    """The whole page."""
    found = sentences()
    parts = [HEAD]
    for name, meaning in MEANING.items():
        parts.append(f"\n## {name}\n\n{meaning}\n")
        said = sorted(found[name], key=lambda text: text.lstrip("…"))
        if said:
            parts.append("\n" + "".join(f"- {_shown(text)}\n" for text in said))
    return "".join(parts)


def _shown(text: str) -> str:
    """As code: nothing in it is a mark of Markdown."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


if __name__ == "__main__":
    print(page(), end="")
