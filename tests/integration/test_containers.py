"""The images and compose.yaml, without Docker: linted, and what they say is run, line by line."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import budget
import dockerfile
import pytest
from containers import (
    COMPOSE,
    DEPLOY,
    MINIO,
    ROOT,
    STAGES,
    USER,
    closed,
    command_of,
    filled_in,
    home_in,
    python_is_open,
    running,
    without_rights,
)
from stacks import eventually

from deploy import make_secrets
from deploy.programs import free_ports

BIN = Path(sys.executable).parent
#: Where browsers of this machine reach the store.
PUBLIC: str = COMPOSE["x-settings"]["GRADCAM_S3_PUBLIC_ENDPOINT_URL"]

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to another user, and runs as one")
#: Where it does not, programs of the images are run as root without rights: closed folders are closed to it, too.
as_their_user = pytest.mark.skipif(
    os.getuid() != 0 or not python_is_open(),
    reason=f"user {USER} does not get at this Python: a folder above it is closed",
)


def test_the_dockerfile_has_nothing_that_hadolint_knows_better() -> None:
    ended = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_compose_is_valid_by_the_specifications_schema(tmp_path: Path) -> None:
    def checked(path: Path) -> int:
        command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert checked(DEPLOY / "compose.yaml") == 0
    assert checked(DEPLOY / "compose.minio.yaml") == 0
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


@pytest.mark.parametrize("name", ["client", "worker"])
def test_labels_say_which_release_and_which_commit_an_image_is_of(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    arguments = [argument.partition("=") for argument in STAGES[name].of("ARG")]
    given = {argument: default.strip('"') for argument, _, default in arguments}
    assert given["RELEASE"] == version
    (line,) = STAGES[name].of("LABEL")
    labels = {label.rsplit(".", 1)[1]: text for label, text in re.findall(r'([\w.]+)="([^"]*)"', line)}
    assert (labels["version"], labels["revision"]) == ("${RELEASE}", "${REVISION}")
    assert set(labels) == {"title", "description", "licenses", "version", "revision"}
    made = [kind for kind, text in STAGES[name].instructions if kind in {"RUN", "COPY"} or "REVISION" in text]
    assert made.index("ARG") > made.index("RUN"), "another commit makes no layer anew"
    assert "RUN" not in made[made.index("ARG") :]


@pytest.mark.parametrize("name", ["client", "worker"])
def test_no_layer_of_an_image_has_what_only_its_making_reads(name: str) -> None:
    assert not [text for kind, text in dockerfile.chain(STAGES, name) if kind in {"COPY", "ADD"}]


def test_the_worker_finds_the_gpu_driver_where_gke_puts_it(tmp_path: Path) -> None:
    """It mounts libraries and programs there, and enters them nowhere: NVIDIA's runtime has no hand in it."""
    environment: dict[str, str] = {}
    for kind, text in dockerfile.chain(STAGES, "worker"):
        if kind == "ENV":
            pairs = [pair.partition("=")[::2] for pair in text.split()]
            environment |= {name: value.replace("${PATH}", environment.get("PATH", "")) for name, value in pairs}
    for folder in ("bin", "lib64"):
        tmp_path.joinpath(folder).mkdir()
    # Any library will do, under the driver's name.
    library = importlib.util.find_spec("numpy.random.mtrand")
    assert library is not None
    shutil.copy(str(library.origin), tmp_path / "lib64/libcuda.so.1")
    tool = tmp_path / "bin/nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA L4 (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)'\n")
    tool.chmod(0o755)
    theirs = {
        name: environment.get(name, "").replace("/usr/local/nvidia", str(tmp_path))
        for name in ("PATH", "LD_LIBRARY_PATH")
    }
    finds = "from worker.supervise.gpus import installed; print(len(installed()))"
    code = f"{finds}; import ctypes; ctypes.CDLL('libcuda.so.1')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**theirs, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr
    wanted = set(environment["NVIDIA_DRIVER_CAPABILITIES"].split(","))
    assert wanted == {"compute", "utility"}, "CUDA and nvidia-smi: older runtimes give the second alone"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment, "which GPUs, the cluster says; `all` would take those of others"


def test_compose_opens_ports_to_this_machine_alone_and_hardens_every_service() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert set(COMPOSE["secrets"]) == set(make_secrets.contents())


def test_the_store_starts_without_rights_as_a_user_of_ours() -> None:
    """SeaweedFS' own entry point changes owners and users, and ends where it may not."""
    store = COMPOSE["services"]["s3"]
    assert (store["entrypoint"], store["user"]) == (["weed"], f"{USER}:{USER}")
    assert store["depends_on"] == {"s3-volume": {"condition": "service_completed_successfully"}}
    for services in (COMPOSE["services"], {**COMPOSE["services"], **MINIO["services"]}):
        (volume,) = services["s3"]["volumes"]
        assert services["s3-volume"]["volumes"] == [volume], "each store has a volume of its own"
        assert volume.endswith(":/data:nocopy"), "it stays its user's, whatever owner the image's folder has"
    added = {name: service["cap_add"] for name, service in COMPOSE["services"].items() if "cap_add" in service}
    assert added == {"s3-volume": ["CHOWN", "DAC_READ_SEARCH"]}, "it gives owners, and looks into closed folders"


def with_rights(names: Sequence[str], command: Sequence[str]) -> list[str]:
    """A command that root runs with these rights and no others, as in a container with `cap_add`."""
    rights = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    return ["setpriv", "--clear-groups", f"--bounding-set={rights}", f"--inh-caps={rights}", "--no-new-privs", *command]


@as_root
def test_the_stores_volume_becomes_its_users_whatever_lies_in_it(tmp_path: Path) -> None:
    """A new volume is root's; folders in one that another store filled are closed to all but their owner."""
    volume = tmp_path / "data"
    for folder in ("filer", "filer/closed", ".hidden", "..odd"):
        volume.joinpath(folder).mkdir(parents=True)
        volume.joinpath(folder, "old").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("x")
    volume.joinpath("link").symlink_to(outside)
    for path in volume.rglob("closed*"):
        path.chmod(0o700)
        for each in (path, *path.iterdir()):
            os.chown(each, 1234, 1234)
    service = COMPOSE["services"]["s3-volume"]
    command = command_of(service, {"/data": str(volume)})

    def owners() -> set[tuple[int, int]]:
        return {(path.lstat().st_uid, path.lstat().st_gid) for path in (volume, *volume.rglob("*"))}

    # Broken off, here for want of a right: what starts next does not take the volume for done.
    broken_off = subprocess.run(with_rights(["chown"], command), capture_output=True, check=False)
    assert broken_off.returncode != 0
    assert volume.stat().st_uid != USER
    for _ in range(2):
        subprocess.run(with_rights(service["cap_add"], command), check=True)
        assert owners() == {(USER, USER)}
    assert outside.stat().st_uid != USER, "a link leads nowhere"
    volume.joinpath("filer/new").write_text("x")
    subprocess.run(with_rights(service["cap_add"], command), check=True)
    assert volume.joinpath("filer/new").stat().st_uid != USER, "a volume that is its user's is left as it is"


def test_one_container_has_the_gpus_and_docker_refuses_a_second_one() -> None:
    """Docker gives `count` GPUs from the first on, so two copies would work at the same ones."""
    worker = COMPOSE["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert filled_in(worker["container_name"], {}) == "gradcam-worker"
    assert filled_in(worker["container_name"], {"COMPOSE_PROJECT_NAME": "two"}) == "two-worker"
    assert "container_name" not in COMPOSE["services"]["worker-cpu"]

    def devices(**given: str) -> str:
        words = [filled_in(word, given) for word in worker["command"]]
        return words[words.index("--devices") + 1]

    assert (devices(), devices(WORKER_DEVICES="cuda:2,3")) == ("cuda", "cuda:2,3")


def test_only_the_image_for_cpus_takes_pytorch_from_another_index() -> None:
    """Both in one image, a worker on GPUs would get what was built for the CPU."""
    gpu, cpu = COMPOSE["services"]["worker"], COMPOSE["services"]["worker-cpu"]
    assert "TORCH_INDEX" not in gpu["build"]["args"]
    assert filled_in(cpu["build"]["args"]["TORCH_INDEX"], {}) == ""
    assert filled_in(cpu["build"]["args"]["TORCH_INDEX"], {"TORCH_INDEX": "https://index.test"}) == "https://index.test"
    images = [filled_in(service["image"], {}) for service in (gpu, cpu)]
    assert images == ["gradcam-queue:worker", "gradcam-queue:worker-cpu"]
    assert {filled_in(service["image"], {"WORKER_IMAGE": "mine:1"}) for service in (gpu, cpu)} == {"mine:1"}


def test_every_variable_of_compose_is_in_the_documentation() -> None:
    files = ("compose.yaml", "compose.minio.yaml")
    text = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in files)
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z].*?) \|", page, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert set(re.findall(r"\$\{(\w+)", text)) - {"COMPOSE_PROJECT_NAME"} == told


def test_the_health_of_what_exports_metrics_is_asked_in_its_container(tmp_path: Path) -> None:
    """It needs no Redis for that, which a restart would not bring back."""
    service = COMPOSE["services"]["metrics"]
    nowhere, port = map(str, free_ports(2))
    here = {"0.0.0.0": "127.0.0.1", "9100": port}
    arguments = [here.get(word, word) for word in service["command"]]
    kind, *check = (word.replace("9100", port) for word in service["healthcheck"]["test"])
    assert (kind, check[0]) == ("CMD", "python")

    def healthy() -> bool:
        return subprocess.run([sys.executable, *check[1:]], capture_output=True, check=False).returncode == 0

    assert not healthy()
    settings = {"GRADCAM_REDIS_URL": f"redis://127.0.0.1:{nowhere}/0", "GRADCAM_S3_BUCKET": "pictures"}
    settings |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with running("metrics", [sys.executable, "-m", "producer.cli", *arguments], tmp_path, settings):
        eventually(healthy)


@pytest.mark.parametrize(
    ("name", "variable", "inside"),
    [
        ("redis", "REDIS_PORT", "6379"),
        ("s3", "S3_PORT", "8333"),
        ("prometheus", "PROMETHEUS_PORT", "9090"),
        ("grafana", "GRAFANA_PORT", "3000"),
    ],
)
def test_a_variable_changes_the_port_of_this_machine_and_nothing_between_containers(
    name: str, variable: str, inside: str
) -> None:
    (port,) = COMPOSE["services"][name]["ports"]
    assert filled_in(port, {}) == f"127.0.0.1:{inside}:{inside}"
    assert filled_in(port, {variable: "7000"}) == f"127.0.0.1:7000:{inside}"
    elsewhere = [service for other, service in COMPOSE["services"].items() if other != name]
    assert variable not in str([COMPOSE["services"][name].get("command"), elsewhere, MINIO]).replace(PUBLIC, "")
    assert filled_in(PUBLIC, {"S3_PORT": "7000"}) == "http://127.0.0.1:7000"


def test_no_variable_of_the_environment_is_set_to_nothing_but_settings_of_ours() -> None:
    """`OMP_NUM_THREADS` without a number, for one, makes libgomp complain; ours may be empty."""
    for name, service in COMPOSE["services"].items():
        empty = {one for one, value in service.get("environment", {}).items() if not filled_in(str(value), {})}
        assert empty <= {"GRADCAM_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT"}, name
    assert filled_in(COMPOSE["services"]["worker-cpu"]["cpus"], {"WORKER_CPUS": "2"}) == "2"


def test_no_secret_is_in_the_environment_or_in_an_argument() -> None:
    """`docker inspect` shows both."""
    secrets = {name: f"/run/secrets/{name}" for name in COMPOSE["secrets"]}
    for service in (*COMPOSE["services"].values(), *MINIO["services"].values()):
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


def ran(command: Sequence[str | Path], home: Path) -> str:
    """Run a program without rights; it has to succeed."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "USER": "gradcam"}
    ended = subprocess.run(
        without_rights(command), cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@as_root
def test_the_clients_image_is_made_by_its_lines_and_runs_without_rights(roots: Path) -> None:
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


def index_of_pip() -> str:
    """The package index that pip here asks: its help says which, with what files and the environment say of it."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True, check=True
    )
    (index,) = re.findall(r"--index-url <url> [^(]*\(default:? (\S+?)\)", re.sub(r"\s+", " ", shown.stdout))
    return str(index)


@as_root
@pytest.mark.skipif(budget.PROFILE != "large", reason="it installs PyTorch: `make test-all` does")
def test_pytorch_of_another_index_is_installed_in_the_versions_of_the_lock(tmp_path: Path) -> None:
    """What TORCH_INDEX does: the line that a build for CPUs takes, here with whatever build that index has."""
    line = next(text for text in STAGES["worker"].of("RUN") if "TORCH_INDEX" in text)
    stage = dockerfile.Stage("base", [("ARG", f"TORCH_INDEX={index_of_pip()}"), ("RUN", line)])
    root = dockerfile.build({"base": STAGES["base"], "torch": stage}, "torch", ROOT, tmp_path / "roots", environment())
    lock = (DEPLOY / "requirements/torch.txt").read_text(encoding="utf-8")
    wanted = dict(re.findall(r"^(torch|torchvision)==([0-9.]+)", lock, re.MULTILINE))
    (packages,) = root.glob("opt/gradcam/lib/python*/site-packages")
    there = {name: next(packages.glob(f"{name}-*.dist-info")).name for name in wanted}
    assert {name: folder.split("-")[1].split("+")[0].removesuffix(".dist") for name, folder in there.items()} == wanted


def test_a_build_for_cpus_needs_nothing_of_nvidias_list() -> None:
    """With TORCH_INDEX torch and torchvision come alone: what they need besides stands in the worker's list."""
    lists = {
        name: set(re.findall(r"^([a-z0-9.-]+)==", (DEPLOY / f"requirements/{name}.txt").read_text(), re.MULTILINE))
        for name in ("torch", "worker")
    }
    needed = {
        re.split(r"[\[<>=!~; ]", line)[0].lower().replace("_", "-")
        for name in ("torch", "torchvision")
        for line in importlib.metadata.requires(name) or []
        if "extra ==" not in line
    }
    for_cuda = {name for name in needed if re.match(r"nvidia-|cuda-|triton", name)}
    assert needed - for_cuda - {"torch"} <= lists["worker"]
    assert lists["torch"] >= {"torch", "torchvision"}


@as_their_user
def test_programs_of_the_images_run_as_their_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups())"
    assert ran([sys.executable, "-c", code], home_in(tmp_path)) == f"{USER} {USER} []\n"


@as_root
@pytest.mark.skipif(budget.PROFILE != "large", reason="it installs PyTorch: `make test-all` does")
def test_the_workers_image_is_made_by_its_lines(roots: Path) -> None:
    root = dockerfile.build(STAGES, "worker", ROOT, roots, environment())
    assert "resnet50" in ran([root / "opt/gradcam/bin/gradcam-worker", "networks"], home_in(root))
