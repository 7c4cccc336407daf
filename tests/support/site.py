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
#: Pages that lie beside README.md.
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"(\]\()(?!https?:|#)([^)\s]+)(?=\))")


def page(text: str, *, of_docs: bool) -> str:
    """Return a page with links for one folder.

    Args:
        text: The page.
        of_docs: Whether it lies in docs/; else beside README.md.
    """

    def target(link: str) -> str:
        link = link.removeprefix("../") if of_docs else link.removeprefix("docs/")
        return link.replace("README.md", "index.md")

    return _LINK.sub(lambda found: found[1] + target(found[2]), text)


def stage(folder: Path) -> None:
    """Write all pages and pictures into one folder."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
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
    # Without `--quiet`: mkdocs would then neither tell what is wrong nor end by it.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    ended = subprocess.run(
        command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.stderr.write(ended.stdout + ended.stderr)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
