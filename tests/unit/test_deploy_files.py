"""`gradcam deploy-files`: what it refuses; `tests/integration/test_wheel.py` has what it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import files
from producer.jobs.model.errors import UsageError

DEPLOY = Path(files.__file__).parent


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    with pytest.raises(UsageError, match="is not empty: name a new folder"):
        files.write(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["deploy"]


@pytest.mark.parametrize(
    ("place", "why"),
    [("a-file", "is no folder"), ("a-file/below", "is no folder"), ("/proc/no/place", "cannot be written to")],
)
def test_a_place_that_cannot_be_written_to_is_told_in_a_sentence(place: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    command = [sys.executable, "-m", "deploy.cli", "deploy-files", place]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert why in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_secrets_of_a_clone_are_no_part_of_it_and_all_else_that_is_no_code_is() -> None:
    """What somebody adds beside compose.yaml must be added to the list, too."""
    there = {path.name for path in DEPLOY.iterdir() if path.suffix != ".py"}
    assert there - {"__pycache__", "secrets", "py.typed"} == set(files.PARTS) - {"make_secrets.py"}
