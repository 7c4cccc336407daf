"""Which release runs: the version, and in a checkout its commit, found without git."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from producer.jobs.model import release

OURS = '[project]\nname = "gradcam-queue"\n'


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    made.mkdir()
    git(made, "init", "--quiet", "--initial-branch", "trunk/new")
    (made / "pyproject.toml").write_text(OURS)
    git(made, "add", ".")
    git(made, "commit", "--quiet", "-m", "first")
    return made


def test_a_checkout_tells_its_commit_however_it_is_kept(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    assert release.commit_of(checkout) == first
    git(checkout, "pack-refs", "--all")
    assert release.commit_of(checkout) == first
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "second")
    second = git(checkout, "rev-parse", "HEAD")
    assert release.commit_of(checkout) == second != first
    git(checkout, "checkout", "--quiet", "--detach", first)
    assert release.commit_of(checkout) == first
    beside = checkout.with_name("beside")
    git(checkout, "worktree", "add", "--quiet", "-b", "other", str(beside), second)
    assert release.commit_of(beside) == second


def test_what_is_no_checkout_of_this_program_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    assert release.commit_of(tmp_path) is None
    (checkout / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    assert release.commit_of(checkout) is None
    (tmp_path / "pyproject.toml").write_text(OURS)
    assert release.commit_of(tmp_path) is None
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert release.commit_of(tmp_path) is None


def test_the_release_begins_with_the_version() -> None:
    assert release.own().split("+")[0] == version("gradcam-queue")


def test_this_checkout_tells_its_own_commit() -> None:
    """The module once moved one folder down, and all workers of a checkout told the bare version."""
    commit = release.commit_of(Path(__file__).parents[2])
    if commit is None:
        pytest.skip("these tests do not lie in a checkout")
    assert release.own().endswith(f"+g{commit[:9]}")
