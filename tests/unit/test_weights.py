from __future__ import annotations

import hashlib
import os
import pickle
import socket
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from producer.jobs.errors import JobError, WorkerError
from worker import weights

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}


def _same(got: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return list(got) == list(expected) and all(torch.equal(got[key], expected[key]) for key in expected)


def _saved(tmp_path: Path, content: Any, name: str = "weights.pth", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read(tmp_path: Path, zipped: bool) -> None:
    path = _saved(tmp_path, OrderedDict(STATE), _use_new_zipfile_serialization=zipped)
    assert _same(weights.read(path))


def test_what_safetensors_saved_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    got = weights.read(tmp_path / "model.safetensors")
    assert _same({key: got[key] for key in STATE})


def test_what_safetensors_files_say_about_themselves_is_no_weight(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors", metadata={"format": "pt", "epoch": "3"})
    assert set(weights.read(tmp_path / "model.safetensors")) == set(STATE)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "really-safetensors.pth")
    assert set(weights.read(tmp_path / "really-safetensors.pth")) == set(STATE)
    assert _same(weights.read(_saved(tmp_path, STATE, "really-torch.safetensors")))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3, "best": 0.9},
        {"model": STATE},
        {"model_state_dict": STATE, "optimizer": {"lr": 1}},
        {"model": {"state_dict": STATE}},
        {f"module.{key}": value for key, value in STATE.items()},
        {"state_dict": {f"model.{key}": value for key, value in STATE.items()}},
        {f"module.model.{key}": value for key, value in STATE.items()},
        {f"_orig_mod.{key}": value for key, value in STATE.items()},
    ],
)
def test_wrappings_of_training_programs_are_taken_off(tmp_path: Path, wrapped: Any) -> None:
    assert _same(weights.read(_saved(tmp_path, wrapped)))


def test_a_prefix_that_only_some_have_stays(tmp_path: Path) -> None:
    state = {"model.a": torch.ones(1), "criterion.b": torch.ones(1)}
    assert _same(weights.read(_saved(tmp_path, state)), state)


def test_old_densenet_names_become_todays(tmp_path: Path) -> None:
    old = {
        "features.denseblock1.denselayer2.norm.1.weight": torch.ones(1),
        "features.denseblock1.denselayer2.conv.2.weight": torch.ones(1),
        "features.norm5.running_mean": torch.ones(1),
    }
    assert list(weights.read(_saved(tmp_path, old))) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv2.weight",
        "features.norm5.running_mean",
    ]


class _Bomb:
    """A pickle that would leave a file behind when read with trust."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"
    path = _saved(tmp_path, {"a": _Bomb(mark)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(JobError, match=r"is refused: it holds more than tensors \(\w+\.system\), which might run code"):
        weights.read(path)
    assert not mark.exists()


def test_a_bare_pickle_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "ran"), protocol=2))
    with pytest.raises(JobError):
        weights.read(path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused_as_it_is_code(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"refused: it holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        weights.read(_saved(tmp_path, nn.Linear(1, 1)))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("format", ["zip", "pickle", "safetensors"])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, format: str, share: float) -> None:
    path, state = tmp_path / "weights", {"a": torch.zeros(1000)}
    if format == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(JobError, match="is broken or truncated") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PK", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", b"version https://git-lfs"])
def test_what_is_no_weights_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(JobError, match="is not a weights file"):
        weights.read(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.ones(2), {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_one_sentence(tmp_path: Path, content: Any) -> None:
    with pytest.raises(JobError, match="holds no state dict"):
        weights.read(_saved(tmp_path, content))


@pytest.mark.parametrize("content", [torch.zeros(1).expand(10**9, 10**6), torch.zeros(10**9, device="meta")])
def test_a_small_file_cannot_claim_a_huge_tensor(tmp_path: Path, content: Tensor) -> None:
    with pytest.raises(JobError, match="claims more numbers than the file has"):
        weights.read(_saved(tmp_path, {"fc.weight": content}))


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read: No such file"):
        weights.read(tmp_path / "nowhere.pth")
    with pytest.raises(JobError, match="cannot be read: Is a directory"):
        weights.read(tmp_path)


# --- fitting ----------------------------------------------------------------------------------------------------------


def _net() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 1), norm=nn.BatchNorm2d(2), fc=nn.Linear(2, 5)))


def test_what_fits_is_loaded() -> None:
    state = {key: torch.full_like(value, 3) for key, value in _net().state_dict().items()}
    net = _net()
    weights.fit(net, state, "tiny")
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_files_from_before_batches_were_counted_fit() -> None:
    state = {k: v for k, v in _net().state_dict().items() if not k.endswith("num_batches_tracked")}
    weights.fit(_net(), state, "tiny")


def test_what_does_not_fit_names_the_first_of_each_kind() -> None:
    state = _net().state_dict()
    del state["conv.weight"], state["conv.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["fc.weight"] = torch.zeros(7, 2)
    expected = (
        r"^the weights do not fit tiny: conv\.weight is missing \(and 1 more\); extra\.weight is unexpected; "
        r"fc\.weight is \(7, 2\), not \(5, 2\)$"
    )
    with pytest.raises(JobError, match=expected):
        weights.fit(_net(), state, "tiny")


def test_other_names_are_paired_by_position() -> None:
    state = {"_a.weight": torch.ones(1), "_a.bias": torch.zeros(1)}
    assert list(weights.renamed_by_position(state, ["b.weight", "b.bias"])) == ["b.weight", "b.bias"]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["b.weight"], "the file has 2 of them, the network 1"), (["b.bias", "b.weight"], "_a.weight where .* b.bias")],
)
def test_names_that_do_not_pair_up_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(JobError, match=message):
        weights.renamed_by_position({"_a.weight": torch.ones(1), "_a.bias": torch.zeros(1)}, names)


def test_the_head_is_the_last_layer_with_a_row_for_each_class() -> None:
    assert weights.head_of(_net(), 5) == "fc.weight"
    assert weights.head_of(_net(), 2) == "conv.weight"
    assert weights.head_of(_net(), 9) == ""


# --- downloading ------------------------------------------------------------------------------------------------------

DATA = b"weights"
URL = f"https://example.org/models/net-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def test_a_download_is_kept_where_torch_hub_looks(hub: Path) -> None:
    asked = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        path.write_bytes(DATA)

    path = weights.checkpoint("net", URL, download)
    assert path == hub / URL.rpartition("/")[2]
    assert weights.checkpoint("net", URL, download) == path
    assert asked == [URL]
    assert list(hub.iterdir()) == [path]


def test_files_of_a_hub_of_models_are_told_apart(hub: Path) -> None:
    def download(url: str, path: Path) -> None:
        path.write_bytes(url.encode())

    urls = [f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors" for name in ("a", "b")]
    paths = [weights.checkpoint("net", url, download) for url in urls]
    assert [path.read_text() for path in paths] == urls


@pytest.mark.parametrize("error", [OSError("no route to host"), TimeoutError(), RuntimeError("odd"), None])
def test_a_failed_download_names_the_network_and_the_remedy(hub: Path, error: Exception | None) -> None:
    def download(url: str, path: Path) -> None:
        path.write_bytes(b"another file" if error is None else b"half")
        if error is not None:
            raise error

    with pytest.raises(JobError, match=r"^the weights of resnet50 could not be downloaded from .*--weight-path$"):
        weights.checkpoint("resnet50", URL, download)
    assert list(hub.iterdir()) == []


def test_many_who_want_the_same_download_it_once(hub: Path) -> None:
    asked, all_ask = [], threading.Barrier(4)

    def download(url: str, path: Path) -> None:
        asked.append(url)
        time.sleep(0.2)
        path.write_bytes(DATA)

    def want(_: int) -> Path:
        all_ask.wait()
        return weights.checkpoint("net", URL, download)

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(want, range(4)))
    assert (asked, len(paths)) == ([URL], 1)


def test_what_a_killed_process_left_of_a_download_is_removed(hub: Path) -> None:
    name = URL.rpartition("/")[2]
    hub.mkdir()
    for left in (f"{name}.0123.partial", "another.pth.0123.partial"):
        (hub / left).write_bytes(b"half")
    weights.checkpoint("net", URL, lambda _url, path: path.write_bytes(DATA) and None)
    assert sorted(path.name for path in hub.iterdir()) == ["another.pth.0123.partial", name]


def test_a_machine_that_cannot_keep_a_download_is_not_the_jobs_fault(hub: Path) -> None:
    def download(_url: str, _path: Path) -> None:
        raise WorkerError("the disk is full")

    with pytest.raises(WorkerError, match="the disk is full"):
        weights.checkpoint("net", URL, download)
    hub.rmdir()
    hub.write_text("no folder")
    with pytest.raises(WorkerError, match=r"no weights can be written to .*checkpoints"):
        weights.checkpoint("net", URL, download)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(weights, "_TIMEOUT_S", 0.2)
        with pytest.raises(OSError, match="timed out"):
            weights.download(f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth", tmp_path / "net.pth")
    assert socket.getdefaulttimeout() is None


# --- random weights ---------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_every_time_and_disturb_nobody() -> None:
    first, second = _net(), _net()
    second.load_state_dict(first.state_dict())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    weights.randomise(first)
    assert torch.equal(torch.rand(3), expected)
    weights.randomise(second)
    assert _same(first.state_dict(), second.state_dict())


def test_random_weights_open_residual_branches_that_training_starts_shut() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    nn.init.zeros_(model[0].weight)
    weights.randomise(model)
    assert torch.equal(model[0].weight, torch.ones(2))
