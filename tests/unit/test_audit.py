"""`make audit`: what is not asked is not called well, and the code has no weakness that the rules know."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import advisories

ROOT = Path(__file__).parents[2]


def test_nobody_who_answers_is_told_as_such() -> None:
    """pip-audit itself then says that no weaknesses are known."""
    (line,), weak = advisories.report(None, 130)
    assert line == "advisories: not asked: no service answers from here, so nothing is known of 130 pinned packages"
    assert not weak


def test_weaknesses_and_packages_that_were_passed_over_are_named() -> None:
    found: list[dict[str, Any]] = [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "not there"},
    ]
    lines, weak = advisories.report(found, 3)
    assert lines == [
        "a 1: PYSEC-1, mended in 2",
        "advisories: 2 pinned packages asked about, 1 known weaknesses",
        "advisories: not asked: c",
    ]
    assert weak


def test_every_pinned_version_is_asked_about() -> None:
    lines = advisories.pinned((ROOT / "constraints.txt").read_text())
    assert len(lines) > 100
    assert all(line.count("==") == 1 and " " not in line for line in lines)


def test_weak_code_is_found(tmp_path: Path) -> None:
    """What ruff's rules do not know; the same command over our code is part of `make check`."""
    (tmp_path / "weak.py").write_text("import torch\ntorch.load('a')\n")
    command = [sys.executable, "-W", "ignore", "-m", "bandit", "--quiet", "--configfile", str(ROOT / "pyproject.toml")]
    run = subprocess.run([*command, str(tmp_path / "weak.py")], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "B614" in run.stdout


def test_rules_of_security_are_on_and_each_exception_says_why() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} == {"S603"}
    lines = [
        line
        for folder in ("producer", "worker", "deploy", "gradcam_queue")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if "# noqa: S" in line and not line.split("# noqa: ")[1].startswith(("SIM", "SLF"))
    ]
    assert [line for line in lines if " - " not in line.split("# noqa: ")[1]] == []
