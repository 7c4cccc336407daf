from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from producer.jobs.model.errors import JobError, NotHere, WorkerError
from worker.models import weights

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}


def _same(got: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return list(got) == list(expected) and all(torch.equal(got[key], expected[key]) for key in expected)


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


def test_weights_that_were_quantised_are_refused() -> None:
    state = _net().state_dict()
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    with pytest.raises(
        JobError, match=r"^the weights do not fit tiny: fc\.weight is of type int8, not floating point$"
    ):
        weights.fit(_net(), state, "tiny")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_weights_of_other_precisions_and_averaged_counters_fit(dtype: torch.dtype) -> None:
    net = _net()
    state = {key: torch.full_like(value, 3, dtype=torch.float32).to(dtype) for key, value in net.state_dict().items()}
    weights.fit(net, state, "tiny")
    weight = net.get_parameter("fc.weight")
    assert weight.dtype == torch.float32
    assert (weight == 3).all()
    assert net.get_buffer("norm.num_batches_tracked") == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(1).expand(10**9, 10**6), r"claims more numbers than the file has \(fc\.weight\)"),
        (torch.zeros(10**9, device="meta"), r"fc\.weight is of the device meta, without its numbers"),
    ],
)
def test_a_small_file_cannot_claim_a_huge_tensor(content: Tensor, words: str) -> None:
    with pytest.raises(JobError, match=words):
        weights.check_whole({"fc.weight": content}, "tiny")


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

    def download(_url: str, path: Path) -> None:
        path.write_bytes(DATA)

    weights.checkpoint("net", URL, download)
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


def test_a_download_that_another_process_holds_up_is_no_fault_of_this_worker(
    monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    monkeypatch.setattr(weights, "_OTHERS_TIMEOUT_S", 0.1)
    locks = hub.with_name(".locks")
    locks.mkdir()
    with FileLock(locks / f"{URL.rpartition('/')[2]}.lock"), pytest.raises(NotHere, match="has been downloading"):
        weights.checkpoint("net", URL, lambda _url, _path: None)


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
    weights.randomize(first)
    assert torch.equal(torch.rand(3), expected)
    weights.randomize(second)
    assert _same(first.state_dict(), second.state_dict())


def test_random_weights_open_residual_branches_that_training_starts_shut() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    weight = model.get_parameter("0.weight")
    nn.init.zeros_(weight)
    weights.randomize(model)
    assert torch.equal(weight, torch.ones(2))
