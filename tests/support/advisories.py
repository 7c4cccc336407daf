"""Ask whether weaknesses of the pinned packages are known: `make audit`.

`pip-audit` asks the package index about each version. A mirror of an index may not answer such questions; `pip-audit`
then passes a package over, and says that nothing is known. So one package is asked about first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What a package is passed over with: it is not there, or nobody answers.
NOT_ASKED = "not asked"


def pinned(text: str) -> list[str]:
    """The lines of a file of constraints that pin a version."""
    return [line.strip() for line in text.splitlines() if "==" in line and not line.startswith("#")]


def asked(lines: list[str], arguments: tuple[str, ...] = ()) -> list[dict[str, Any]] | None:
    """Ask about packages; none where nobody answers.

    Returns:
        A mapping for each: `name`, and `vulns` (with `id` and `fix_versions`) or `skip_reason`.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--timeout", "10", "--format", "json", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return None if all("skip_reason" in one for one in found) else found


def _releases(weakness: dict[str, Any]) -> str:
    return ", ".join(weakness["fix_versions"]) or "no release"


def report(found: list[dict[str, Any]] | None, count: int) -> tuple[list[str], bool]:
    """What was found, in lines, and whether anything is to be done."""
    if found is None:
        return [
            f"advisories: {NOT_ASKED}: no service answers from here, so nothing is known of {count} pinned packages"
        ], False
    lines = [
        f"{one['name']} {one['version']}: {weakness['id']}, mended in {_releases(weakness)}"
        for one in found
        for weakness in one.get("vulns", [])
    ]
    passed_over = [one["name"] for one in found if "skip_reason" in one]
    told = [f"advisories: {count - len(passed_over)} pinned packages asked about, {len(lines)} known weaknesses"]
    if passed_over:
        told.append(f"advisories: {NOT_ASKED}: {', '.join(passed_over)}")
    return lines + told, bool(lines)


def main() -> int:
    """Ask, and print what was found; 1 where a weakness is known, or nobody answers and somebody must."""
    parser = argparse.ArgumentParser(description="Ask whether weaknesses of the pinned packages are known.")
    parser.add_argument("--required", action="store_true", help="fail where nobody answers")
    given = parser.parse_args()
    lines = pinned((ROOT / "constraints.txt").read_text())
    found = asked(lines[-1:]) and asked(lines)
    told, weak = report(found, len(lines))
    print(*told, sep="\n", file=sys.stderr)
    return int(weak or (given.required and found is None))


if __name__ == "__main__":
    sys.exit(main())
