"""What is typed and cannot be used is told as such: exit code 2, a sentence, and nothing was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer.cli import cli, run
from producer.jobs.model.errors import UsageError
from producer.jobs.model.network_names import check_network
from producer.jobs.model.typed_spec import read_labels

HUGE = ("9223372036854775808", "1" + "0" * 23, "9" * 5000, "-1" + "0" * 23)
A = "s3://bucket/a.jpg"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that is refused before any server is asked for: none is set."""
    assert run(lambda: cli(arguments, standalone_mode=False)) == 2
    out, error = capsys.readouterr()
    assert not out
    assert "Traceback" not in error
    assert "settings" not in error
    return error


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADCAM_REDIS_URL", raising=False)


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("submit", A, option)
            for option in ("--limit", "--sample", "--class-id", "--top-k", "--seed", "--chunk-size")
        ),
        ("list", "--limit"),
        ("list", "--offset"),
        ("wait", "job", "--timeout"),
        ("results", "job", "--urls", "--expires"),
    ],
    ids=" ".join,
)
def test_numbers_beyond_64_bits_are_mistakes_of_the_one_who_typed_them(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], number: str
) -> None:
    assert f"Invalid value for '{arguments[-1]}'" in told(capsys, *arguments, number)


def test_a_class_for_all_and_a_column_of_classes_contradict_each_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(f"url,label\n{A},1\n")
    command = ("submit", str(tmp_path / "list.csv"), "--class-column", "label")
    for option, value in (("--class-id", "0"), ("--class-name", "tabby")):
        words = f"--class-column gives each image a class of its own: leave {option} out"
        assert words in told(capsys, *command, option, value)


@pytest.mark.parametrize("verb", [("submit", A), ("results", "job")])
def test_a_file_where_a_folder_for_pictures_is_meant_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("nothing")
    for name, words in {
        "file": f"({tmp_path}/file is a file, not a folder): choose another --output-dir",
        "file/below/it": f"{tmp_path}/file is a file",
        "link": "is a link to nothing",
        "x" * 300: "File name too long",
        "": "--output-dir needs the name of a folder",
    }.items():
        assert words in told(capsys, *verb, "--output-dir", str(tmp_path / name) if name else "")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("resnet5O", "resnet50"),
        ("ResNet50", "resnet50"),
        ("vgg-16", "vgg16"),
        ("timm/resnet5O", "timm/resnet50"),
        ("timm/convnext_tiny_in22ft1k", "timm/convnext_tiny.fb_in22k_ft_in1k"),
        ("timm/vit_small_patch16_224.dno", "timm/vit_small_patch16_224.dino"),
        ("vit_small_patch16_224", "there is timm/vit_small_patch16_224"),
    ],
)
def test_a_network_that_nobody_knows_is_told_with_the_nearest(
    capsys: pytest.CaptureFixture[str], name: str, right: str
) -> None:
    error = told(capsys, "submit", A, "--network", name)
    assert f"Error: no network is called {name!r} in torchvision" in error
    assert right in error
    assert "add --any-network" in error


def test_a_network_newer_than_our_list_can_be_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")
    command = ["submit", A, "--network", "timm/resnet9000", "--dry-run", "--chunk-size", "1"]
    assert run(lambda: cli(command, standalone_mode=False)) == 2
    assert run(lambda: cli([*command, "--any-network"], standalone_mode=False)) == 0


@pytest.mark.parametrize("name", ["resnet", "resnet50", "efficientnet_lite0", "timm/resnet50", "timm/resnet50.a1_in1k"])
def test_networks_are_known_by_all_their_names(name: str) -> None:
    check_network(name)


def test_a_key_without_a_file_of_weights_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for weights in ((), ("--weight-path", "random")):
        error = told(capsys, "submit", A, "--weight-key", "model_ema", *weights)
        assert "--weight-key names weights in a file: give the file by --weight-path" in error


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("\ufeffcat\r\ndog\r\n", ("cat", "dog")),
        ("cat\u2028kitten\ndog\x85x\nfox\x0cy\n", ("cat\u2028kitten", "dog\x85x", "fox\x0cy")),
        (" cat \n\n dog\n\n\n", ("cat", "", "dog")),
        ("cat\rdog\r", ("cat", "dog")),
    ],
)
def test_labels_are_a_name_a_line_whatever_else_their_file_holds(
    tmp_path: Path, content: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "labels.txt").write_bytes(content.encode())
    assert read_labels(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(("content", "words"), [(b"\n \n", "holds no names"), (b"\xff\xfec\0", "no UTF-8 text")])
def test_labels_that_cannot_be_read_are_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_labels(tmp_path / "labels.txt")
