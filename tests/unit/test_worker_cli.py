from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torchvision.models import ResNet18_Weights

from worker.commands import cli, run
from worker.supervise import run_dirs
from worker.supervise.process_list import ListedProcess, publish


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result


def _by_name(text: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads(text)}


def _fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["gradcam-worker", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(run())
    captured = capsys.readouterr()
    assert captured.out == ""
    return ended.value.code, captured.err


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_listed_with_kind_and_shape_and_the_two_are_marked() -> None:
    lines = [line.split() for line in _run("layers", "resnet18").stdout.splitlines()]
    assert lines[0] == ["NAME", "KIND", "OUTPUT", "MAPS"]
    assert ["layer4.1.conv2", "Conv2d", "512x7x7", "512x7x7", "last-conv"] in lines
    assert ["layer4", "Sequential", "512x7x7", "512x7x7", "last-features"] in lines
    assert ["layer4.1.relu", "ReLU", "512x7x7", "-"] in lines  # it runs twice
    assert ["fc", "Linear", "1000", "-"] in lines


def test_layers_are_told_to_programs_as_json() -> None:
    layers = _by_name(_run("layers", "vit_b_32", "--json").stdout)
    tokens = layers["encoder.layers.encoder_layer_11.ln_1"]
    assert (tokens["shape"], tokens["maps"], tokens["times"]) == ([50, 768], [768, 7, 7], 1)
    assert (tokens["last_conv"], tokens["last_features"]) == (True, True)
    assert sum(layer["last_conv"] for layer in layers.values()) == 1
    assert layers["encoder.layers.encoder_layer_11.self_attention"]["shape"] == []


def test_layers_of_a_network_without_recognised_maps_are_listed_all_the_same() -> None:
    layers = _by_name(_run("layers", "timm/levit_128s", "--json").stdout)
    assert not any(layer["last_conv"] or layer["last_features"] for layer in layers.values())


def test_short_names_have_layers_too() -> None:
    assert "Mixed_7c " in _run("layers", "inception").stdout


def test_a_wrong_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = _fails(monkeypatch, capsys, "layers", "resnet5")
    assert code == 2
    assert error.startswith("Error: no network is called 'resnet5'; the nearest are resnet50, ")
    assert error.count("\n") == 1


# --- networks ---------------------------------------------------------------------------------------------------------


def test_networks_are_listed_with_what_they_need() -> None:
    lines = [line.split() for line in _run("networks").stdout.splitlines()]
    assert lines[0] == ["NAME", "INPUT", "CLASSES", "FAMILY", "FROM", "WEIGHTS"]
    weights = ["DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert ["resnet50", "(resnet)", "224x224", "1000", "resnet", "torchvision", *weights] in lines
    assert ["efficientnet_lite0", "224x224", "1000", "efficientnet", "timm", "DEFAULT*"] in lines


def test_weights_at_hand_are_told_from_those_to_download(hub: Path) -> None:
    assert not hub.exists()
    networks = _by_name(_run("networks", "--json").stdout)
    assert not hub.exists()  # looking changes nothing
    assert networks["resnet18"]["at_hand"] == []
    assert networks["efficientnet_lite0"]["at_hand"] == ["DEFAULT"]
    hub.mkdir(parents=True)
    (hub / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]).touch()
    networks = _by_name(_run("networks", "--json").stdout)
    assert networks["resnet18"]["at_hand"] == ["DEFAULT", "IMAGENET1K_V1"]
    assert networks["vgg16"]["aliases"] == ["vgg"]
    assert networks["vit_h_14"]["size"] == [518, 518]


def test_networks_of_timm_are_listed_where_asked_for() -> None:
    networks = _by_name(_run("networks", "--timm", "--json").stdout)
    assert networks["timm/levit_128s"]["family"] == "levit"
    assert len(networks) > 1000


def test_networks_are_listed_without_timm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    networks = _by_name(_run("networks", "--json").stdout)
    assert networks["efficientnet_lite0"] | {"size": None, "at_hand": []} == networks["efficientnet_lite0"]
    assert networks["resnet18"]["size"] == [224, 224]


# --- the launcher and its check ---------------------------------------------------------------------------------------


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://localhost:1/0")
    monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")


@pytest.mark.usefixtures("connections")
@pytest.mark.parametrize(
    ("queues", "what"),
    [
        ("hihg", "'hihg' is none of them"),
        ("high,low,high", "high is there twice"),
        ("recovery,high", "`recovery` is read first by every worker, and need not be named"),
        (",", "none is named"),
    ],
)
def test_queues_that_cannot_be_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], queues: str, what: str
) -> None:
    code, error = _fails(monkeypatch, capsys, "--queues", queues)
    assert code == 2
    assert error == f"Error: --queues must be some of high, default, low, by commas; {what}\n"


@pytest.mark.usefixtures("connections")
def test_queues_in_the_settings_are_checked_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_QUEUES", "hihg")
    code, error = _fails(monkeypatch, capsys)
    assert code == 2
    assert "GRADCAM_WORKER_QUEUES must be some of high, default, low, by commas; 'hihg' is none of them" in error


@pytest.mark.usefixtures("connections")
def test_a_device_that_is_missing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, error = _fails(monkeypatch, capsys, "--devices", "cuda")
    assert code == 4
    assert error.startswith("Error: there is no GPU")
    assert error.count("\n") == 1


def test_no_launcher_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_RUN_DIR", str(tmp_path))
    result = CliRunner().invoke(cli, ["check"])
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == (
        "",
        "no launcher of this user runs on this machine: start `gradcam-worker`\n",
    )
    result = CliRunner().invoke(cli, ["check", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])


def test_a_check_shows_the_workers_of_this_stack_and_all_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stacks on one machine: a probe of one must not fail for the other's workers."""
    monkeypatch.setenv("GRADCAM_WORKER_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://:sesame@localhost:7001/0")
    with run_dirs.folder(tmp_path) as ours, run_dirs.folder(tmp_path) as theirs:
        publish(ours.path, [ListedProcess("ours-cpu", "cpu", 1, time.time(), stack="localhost:7001/0")])
        publish(
            theirs.path, [ListedProcess("theirs-cpu", "cpu", None, time.time(), "it is given up", "localhost:7002/0")]
        )
        run = CliRunner().invoke(cli, ["check"])
        assert (run.exit_code, run.stdout) == (0, "ours-cpu is starting\n")
        assert [one["stack"] for one in json.loads(_run("check", "--json").stdout)] == ["localhost:7001/0"]
        run = CliRunner().invoke(cli, ["check", "--all"])
        assert (run.exit_code, run.stdout) == (1, "")
        assert run.stderr == "1 of 2 processes cannot work: theirs-cpu is dead: it is given up\n"
        monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://:sesame@localhost:7003/0")
        run = CliRunner().invoke(cli, ["check"])
        assert run.exit_code == 1
        assert run.stderr == (
            "no launcher of this user works for localhost:7003/0: start `gradcam-worker`; those of this machine, which "
            "--all shows, work for localhost:7001/0, localhost:7002/0\n"
        )
        monkeypatch.delenv("GRADCAM_REDIS_URL")
        assert "1 of 2 processes" in CliRunner().invoke(cli, ["check"]).stderr
        # As in containers: the address is in a file.
        url = tmp_path / "redis_url"
        url.write_text("redis://:sesame@localhost:7001/0\n")
        monkeypatch.setenv("GRADCAM_REDIS_URL_FILE", str(url))
        assert CliRunner().invoke(cli, ["check"]).stdout == "ours-cpu is starting\n"
        url.unlink()
        assert "1 of 2 processes" in CliRunner().invoke(cli, ["check"]).stderr


def test_a_check_in_a_folder_of_somebody_else_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_RUN_DIR", str(tmp_path))
    run_dirs.user_folder_in(tmp_path).symlink_to(tmp_path)
    code, error = _fails(monkeypatch, capsys, "check")
    assert code == 1
    assert "is not a folder of this user's own" in error


def test_help_says_what_the_defaults_are() -> None:
    text = " ".join(_run("--help").stdout.split())
    assert "[default: 2 on a GPU, 1 on the CPU, whose cores they share]" in text
    assert "[default: high,default,low]" in text
    assert "gradcam-worker --queues high" in text


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["layers"], ["layers", "a", "b"], ["networks", "extra"], ["layer", "resnet18"]])
def test_what_was_typed_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, error = _fails(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Error: " in error


@pytest.mark.parametrize("arguments", [["layers", "resnet18"], ["networks"]])
def test_the_light_client_is_told_what_to_install(arguments: list[str]) -> None:
    program = (
        "import importlib.util as u, sys; real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name.startswith('torch') else real(name, *rest)\n"
        f"sys.argv = ['gradcam-worker', *{arguments!r}]; from worker.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == (
        "Error: torch, torchvision not installed: this is the light client; `pip install 'gradcam-queue[worker]'`\n"
    )


def test_a_number_of_threads_that_is_set_to_nothing_is_none() -> None:
    """libgomp complains of it on stderr, from outside of Python."""
    command = [sys.executable, "-m", "worker.cli", "layers", "squeezenet1_1"]
    environment = {**os.environ, "OMP_NUM_THREADS": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("command", ["layers", "networks", "check"])
def test_help_has_examples_a_line_each(command: str) -> None:
    lines = _run(command, "--help").stdout.splitlines()
    assert sum(line.startswith(f"    gradcam-worker {command}") for line in lines) >= 2
    assert "  layers    List the layers of a network." in _run("--help").stdout.splitlines()


# --- preloading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5", "--preload resnet5: no network is called 'resnet5'.*resnet50"),
        ("resnet50=IMAGENET", "--preload resnet50=IMAGENET: 'IMAGENET' is neither a file nor a name.*IMAGENET1K_V2"),
        ("resnet50,resnet5", "--preload resnet5: no network"),
        ("res net", "GRADCAM_WORKER_PRELOAD is wrong"),
    ],
)
def test_a_mistyped_model_is_told_before_a_process_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://localhost:1/0")
    monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")
    # It is set for worker processes, and shall be gone after this test.
    monkeypatch.setenv("GRADCAM_WORKER_PRELOAD", "")
    code, error = _fails(monkeypatch, capsys, "--preload", name)
    assert code == 2
    assert re.search(words, error)
