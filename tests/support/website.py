"""`make site`: the documentation as a website, in build/site, from README.md and docs/.

A page of the site is the same file that is read in the repository; only links between README.md, the other pages beside
it and docs/ are written as they are in one folder. A link that leads nowhere ends it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Names of settings are not broken in the middle.
_CSS = ".md-typeset td code, .md-typeset th code { word-break: normal; overflow-wrap: normal; }\n"
#: Pages that lie beside README.md.
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
#: A link to something here: to what is in docs/ or a page beside README.md, or to a file that only the repository has.
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")
_ON_SITE = re.compile(r"\.(md|jpg|png|svg)(#|$)|^(docs/)?examples/")


def page(text: str, *, of_docs: bool) -> str:
    """Return a page with links for one folder; what only the repository has is no link there.

    Args:
        text: The page.
        of_docs: Whether it lies in docs/; else beside README.md.
    """

    def linked(found: re.Match[str]) -> str:
        words, link = found[1], found[2]
        if not _ON_SITE.search(link):
            return words
        link = link.removeprefix("../") if of_docs else link.removeprefix("docs/")
        return f"[{words}]({link.replace('README.md', 'index.md')})"

    return _LINK.sub(linked, text)


def stage(folder: Path) -> None:
    """Write all pages and pictures into one folder."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / "site.css").write_text(_CSS, encoding="utf-8")
    for path in folder.rglob("*.md"):
        path.write_text(page(path.read_text(encoding="utf-8"), of_docs=True), encoding="utf-8")
    for name in ("README.md", *BESIDE):
        text = page((ROOT / name).read_text(encoding="utf-8"), of_docs=False)
        (folder / name.replace("README", "index")).write_text(text, encoding="utf-8")


def main() -> int:
    """Build it; not 0 where a link or the navigation is wrong."""
    pages = ROOT / "build" / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    stage(pages)
    # Not `--quiet`, with which warnings are no reason to end.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if built.returncode:
        print(built.stdout + built.stderr, file=sys.stderr)
    return built.returncode


if __name__ == "__main__":
    sys.exit(main())
