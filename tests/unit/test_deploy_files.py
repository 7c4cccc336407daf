"""`gradcam deploy-files`: what it refuses; `tests/integration/test_wheel.py` has what it writes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from charts import VERSIONS, manifests, pods_of, validate

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


def test_what_is_said_to_type_next_names_files_that_were_written(tmp_path: Path) -> None:
    """And images that the values name, and secrets: who puts in what is his can type the lines as they stand."""
    command = [sys.executable, "-m", "deploy.cli", "deploy-files", "mine"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line, comments=True) for line in said.splitlines() if line.startswith("  ")]
    named = {word for line in lines for word in line if word.startswith("deploy/") or word.endswith((".yaml", ".py"))}
    assert {"deploy/helm/values.yaml", "deploy/helm/gradcam-queue", "deploy/compose.yaml"} <= named
    assert [path for path in named if not (tmp_path / "mine" / path).exists()] == []
    values = yaml.safe_load((tmp_path / "mine/deploy/helm/values.yaml").read_text(encoding="utf-8"))
    rendered = manifests(values, "explainer")
    for one in rendered:
        validate(one, VERSIONS[-1])
    images = {spec["containers"][0]["image"] for _, spec in pods_of(rendered)}
    assert {line[2] for line in lines if line[:2] == ["docker", "push"]} == images
    assert {line[line.index("--tag") + 1] for line in lines if line[:2] == ["docker", "build"]} == images
    secrets = {
        volume["secret"]["secretName"]
        for _, spec in pods_of(rendered)
        for volume in spec["volumes"]
        if "secret" in volume
    }
    assert {line[4] for line in lines if line[:3] == ["kubectl", "create", "secret"]} == secrets
    readme = (DEPLOY.parent / "README.md").read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/.])deploy/[\w./-]+\w", "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)))
    assert [path for path in paths if not (DEPLOY.parent / path).exists()] == []
