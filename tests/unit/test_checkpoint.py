from __future__ import annotations

import argparse
import datetime
import gzip
import io
import json
import os
import pathlib
import pickle
import re
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from producer.jobs.model.errors import JobError
from worker.models import checkpoint

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}


def _same(got: Any, expected: dict[str, Tensor] = STATE) -> bool:
    return set(got) == set(expected) and all(torch.equal(got[key], expected[key]) for key in expected)


def _saved(tmp_path: Path, content: Any, name: str = "weights.pth", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def _refused(path: Path) -> str:
    with pytest.raises(JobError) as caught:
        checkpoint.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


#: torch warns of a protocol that is not its usual one; what it makes of the file is our matter.
late_protocols = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


# --- what is read -----------------------------------------------------------------------------------------------------


@late_protocols
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = _saved(tmp_path, OrderedDict(STATE), _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert _same(checkpoint.read(path))


def test_what_safetensors_saved_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={"format": "pt", "epoch": "3"})
    assert _same(checkpoint.read(tmp_path / "model.safetensors"))


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "really-safetensors.pth")
    assert _same(checkpoint.read(tmp_path / "really-safetensors.pth"))
    assert _same(checkpoint.read(_saved(tmp_path, STATE, "really-torch.safetensors")))


def test_counters_rates_and_texts_beside_the_weights_are_read(tmp_path: Path) -> None:
    beside = {"epoch": 3, "acc": 93.1, "args": {"lr": 0.1, "milestones": [1, 2]}, "name": "run", "best": None}
    assert _same(checkpoint.read(_saved(tmp_path, {"net": STATE, **beside}))["net"])


# --- what is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("format", ["zip", "pickle", "safetensors"])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, format: str, share: float) -> None:
    path, state = tmp_path / "weights", {"a": torch.zeros(1000)}
    if format == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert re.search("is broken or truncated$", _refused(path))


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in _refused(tmp_path / "nowhere.pth")
    assert "cannot be read: Is a directory" in _refused(tmp_path)


# --- what is of another kind ------------------------------------------------------------------------------------------


def _zip(**files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def _tar(name: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def _torch_bytes(content: Any) -> bytes:
    data = io.BytesIO()
    torch.save(content, data)
    return data.getvalue()


def _npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, a=np.ones(3))
    return data.getvalue()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: _zip(**{"run/weights.pth": _torch_bytes(STATE)}),
            r"a zip archive around .*\(run/weights.pth\); unpack it",
        ),
        (lambda: gzip.compress(_torch_bytes(STATE)), "a gzip file; unpack it"),
        (lambda: _tar("weights.pth", _torch_bytes(STATE)), "a tar archive; unpack it"),
        (_npz, r"arrays of NumPy \(.npz\)"),
        (lambda: _zip(**{"config.json": b"{}", "model.weights.h5": b""}), "a network of Keras"),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (lambda: b"\x08\x08\x12\x07pytorch" + bytes(100), "ONNX"),
        (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(100), "TensorFlow Lite"),
    ],
)
def test_files_of_other_kinds_are_called_by_their_kind(tmp_path: Path, make: Callable[[], bytes], words: str) -> None:
    (tmp_path / "weights.pth").write_bytes(make())
    sentence = _refused(tmp_path / "weights.pth")
    assert re.search(f"is of a kind that is not read: {words}", sentence)
    assert "broken" not in sentence


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"\n<html><head>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode(), "it is JSON"),
        (b"PK", "neither of torch.save nor of safetensors"),
        (b"\x89PNG\r\n\x1a\n", "neither of torch.save nor of safetensors"),
    ],
)
def test_what_is_no_weights_file_is_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    assert re.search(f"is not a weights file: .*{words}", _refused(tmp_path / "weights.pth"))


# --- one line that saves the weights alone ----------------------------------------------------------------------------


def _resaved(sentence: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do what the sentence says, and read what comes of it."""
    (line,) = re.findall(r"python -c '([^']+)'$", sentence)
    monkeypatch.chdir(path.parent)
    exec(line.replace("FILE", path.name), {})
    return checkpoint.read(path.with_name("weights.pth"))


@pytest.mark.filterwarnings("ignore")  # of torch's own old ways to save
@pytest.mark.parametrize("kind", ["TorchScript (torch.jit.save)", "an exported program (.pt2, torch.export)"])
def test_a_network_with_its_code_is_saved_as_weights_by_the_line_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    net, path = nn.Sequential(nn.Linear(3, 2)).eval(), tmp_path / "network"
    if "Script" in kind:
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3)), path)
    else:
        torch.export.save(torch.export.export(net, (torch.zeros(1, 3),)), path)
    sentence = _refused(path)
    assert f"is of a kind that is not read: {kind}; save its weights alone: " in sentence
    assert _same(_resaved(sentence, path, monkeypatch), net.state_dict())


class _Options:
    """A class of the user's own."""


class _Settings(dict[str, int]):
    """Another: a mapping."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": STATE, "epoch": 1, "args": argparse.Namespace(lr=0.1)}, "model"),
        ({"args": argparse.Namespace(model="resnet18", lr=0.1, to=pathlib.PurePosixPath("a")), "net": STATE}, "net"),
        ({"net": STATE, "acc": np.float64(93.1), "matrix": np.ones((2, 2))}, "net"),
        ({"mine": STATE, "optim": {str(n): torch.ones(1) for n in range(9)}, "p": pathlib.PurePosixPath("a")}, "mine"),
        ({"weights": STATE, "history": defaultdict(list, loss=[0.1, 0.2])}, "weights"),
        ({"ema": STATE, "cfg": types.SimpleNamespace(a=1)}, "ema"),
        ({"model": STATE, "config": _Options(), "when": datetime.datetime.now(tz=datetime.UTC)}, "model"),
    ],
)
def test_weights_beside_options_and_other_classes_are_read(
    tmp_path: Path, content: Any, key: str, zipped: bool
) -> None:
    """The training programs of torchvision and timm save their options, Lightning its hyperparameters."""
    path = _saved(tmp_path, content, "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    assert _same(checkpoint.read(path)[key])
    left = {f"{each.__module__}.{getattr(each, '__qualname__', '')}" for each in torch.serialization.get_safe_globals()}
    assert not left & {"argparse.Namespace", "collections.defaultdict", "types.SimpleNamespace"}


def test_modules_among_hyperparameters_are_no_whole_network(tmp_path: Path) -> None:
    """Lightning saves what its class was made with, a loss for example."""
    content = {"state_dict": STATE, "hyper_parameters": {"loss": nn.CrossEntropyLoss(), "act": nn.ReLU}}
    assert _same(checkpoint.read(_saved(tmp_path, content))["state_dict"])


def test_weights_in_one_mapping_with_options_are_read(tmp_path: Path) -> None:
    read = checkpoint.read(_saved(tmp_path, {**STATE, "args": argparse.Namespace(lr=0.1)}))
    assert _same({key: value for key, value in read.items() if isinstance(value, Tensor)})


def test_no_module_is_imported_for_a_class_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "imported"
    (tmp_path / "trainer_of_mine.py").write_text(f"""
class Options:
    def __reduce__(self):
        return Options, ()
    def __setstate__(self, state):
        open({str(mark)!r}, "w").close()
""")
    monkeypatch.syspath_prepend(tmp_path)
    options = __import__("trainer_of_mine").Options()
    path = _saved(tmp_path, {"model": STATE, "options": options, "kind": type(options)})
    monkeypatch.delitem(sys.modules, "trainer_of_mine")
    assert _same(checkpoint.read(path)["model"])
    assert "trainer_of_mine" not in sys.modules
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [({"model": STATE, "config": _Settings(a=1)}, r"\S+_Settings"), ({"model": _Options(), "n": 1}, r"\S+_Options")],
)
def test_what_cannot_be_told_from_code_is_refused_with_the_line_that_saves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, named: str, zipped: bool
) -> None:
    path = _saved(tmp_path, content, "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    sentence = _refused(path)
    assert re.search(
        rf"is refused: it holds more than tensors \({named}\), which might run code; if you trust it", sentence
    )
    if content["model"] is STATE:
        assert _same(_resaved(sentence, path, monkeypatch))


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_whole_network_is_refused_as_it_is_code_and_the_line_takes_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    path = _saved(tmp_path, {"model": net, "epoch": 1} if wrapped else net, "network.pth")
    sentence = _refused(path)
    assert re.search(r"refused: it holds more than tensors \(torch\.nn\.modules\.\w+\.\w+\)", sentence)
    assert _same(_resaved(sentence, path, monkeypatch), net.state_dict())


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_bare_pickle_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({key: value.numpy() for key, value in STATE.items()}, protocol))
    sentence = _refused(path)
    assert "broken" not in sentence
    assert _same(_resaved(sentence, path, monkeypatch))


@late_protocols
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_later_pickle_is_no_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, protocol: int
) -> None:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    path = _saved(tmp_path, {"net": STATE, "epoch": 1}, "late.pth", **options)
    sentence = _refused(path)
    assert "is of a kind that is not read: torch.save with a pickle_protocol above 3; " in sentence
    assert _same(_resaved(sentence, path, monkeypatch))


class _Bomb:
    """A pickle that would leave a file behind when read with trust."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@late_protocols
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("format", ["zip", "pickles", "bare"])
def test_code_in_a_file_is_refused_and_does_not_run_and_nobody_is_told_to_load_it(
    tmp_path: Path, format: str, protocol: int
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"args": argparse.Namespace(lr=1), "state_dict": STATE, "a": _Bomb(mark)}
    if format == "bare":
        path.write_bytes(pickle.dumps({"a": _Bomb(mark)}, protocol=protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format == "zip", pickle_protocol=protocol)
    sentence = _refused(path)
    assert re.search(r"is refused: it holds more than tensors \((posix|os)\.system\), which might run code", sentence)
    assert "torch.load" not in sentence
    assert not mark.exists()
