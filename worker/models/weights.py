"""Find and download the weights of a network, put them into its model, or make random ones.

`worker.models.checkpoint` reads a weights file, and `worker.models.candidates` finds the network's weights in it.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import socket
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import torch
from filelock import Timeout
from torch import Tensor, nn

from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import Interrupted, JobError, NotHere, NothingThere, WorkerError
from producer.jobs.model.text import shown

State = dict[str, Tensor]
#: Fetches an address into a file; may raise any error.
Download = Callable[[str, Path], None]

_TIMEOUT_S: Final = 20.0
#: How long to wait for another process that downloads the same.
_OTHERS_TIMEOUT_S: Final = 1800.0
#: torchvision's files carry the beginning of their own SHA-256 in their names.
_DIGEST_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,64})\.")
#: A counter for training only, which files from before torch 0.4.1 lack.
_COUNTER: Final = ".num_batches_tracked"
#: What batch normalizations have measured.
_VARIANCE: Final = "running_var"
_STATISTICS: Final = ("running_mean", _VARIANCE)


def check_whole(state: Mapping[str, Tensor], name: str, own: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that claim more than their file has, or that are no plain numbers, before anything copies them.

    Args:
        state: The weights by the network's names.
        name: The network's name, for errors.
        own: The network's state dict: where it has floating point, so must the weights.

    Raises:
        JobError: A tensor claims more numbers than the file has, or is of another kind; says which, and of which kind.
    """
    for key, tensor in state.items():
        kind = _kind(tensor)
        if own is not None and not kind and own[key].is_floating_point() and not tensor.is_floating_point():
            kind = f"of type {str(tensor.dtype).removeprefix('torch.')}, not floating point"
        if kind:
            raise JobError(
                f"the weights do not fit {name}: {key} is {kind}; save the network's weights as float32 before they "
                "are made so"
            )
        # A view that repeats one number takes a few bytes in the file, and its copy any amount of memory.
        if tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise JobError(f"the weights of {name} are broken: a tensor claims more numbers than the file has ({key})")


def _kind(tensor: Tensor) -> str:
    """Say what a tensor is that has no plain numbers; "" for all others."""
    if tensor.is_nested:
        return "nested, of several tensors"
    if tensor.is_quantized:
        return f"quantized ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.layout != torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.device.type != "cpu":
        return f"of the device {tensor.device.type}, without its numbers"
    return f"complex ({str(tensor.dtype).removeprefix('torch.')})" if tensor.is_complex() else ""


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are not numbers: the network would have no answer for any picture.

    Looked at are the parameters, and the means and variances of normalizations. Other buffers may be masks of infinity.
    So may a variance: its channel is shut.

    Raises:
        JobError: Names the first, and how many there are.
    """
    looked_at: dict[str, Tensor] = dict(model.named_parameters())
    looked_at |= {key: each for key, each in model.named_buffers() if key.endswith(_STATISTICS)}
    faulty = [key for key, tensor in looked_at.items() if not _is_finite(key, tensor)]
    if faulty:
        what = "NaN" if looked_at[faulty[0]].isnan().any() else "infinity"
        raise JobError(
            f"the weights of {name} have no answer for any picture: {faulty[0]} holds {what}{_others(faulty)}; "
            "give weights from before the training diverged"
        )


def _is_finite(key: str, tensor: Tensor) -> bool:
    # A sum is not finite where a number is not, and costs half as much as a look at each.
    if not tensor.is_floating_point() or math.isfinite(tensor.detach().sum(dtype=torch.float64).item()):
        return True
    return not tensor.isnan().any() if key.endswith(_VARIANCE) else bool(tensor.isfinite().all())


def fit(model: nn.Module, state: Mapping[str, Tensor], name: str, unexpected: Sequence[str] = ()) -> None:
    """Put all of `state` into a model; nothing may be missing or left over.

    Args:
        model: the model.
        state: by the model's own names.
        name: the network's name, for errors.
        unexpected: names of the file that the model lacks.

    Raises:
        JobError: names the first weight missing, the first unexpected and the first of another shape or type.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    extra = [*unexpected, *(key for key in state if key not in own)]
    shared = [key for key in own if key in state]
    misshapen = [key for key in shared if own[key].shape != state[key].shape]
    # A mean of counters, as in some averages of weights, is fine; quantized numbers mean something else.
    mistyped = [key for key in shared if own[key].is_floating_point() and not state[key].is_floating_point()]
    faults = []
    if missing:
        faults.append(f"{shown(missing[0])} is missing{_others(missing)}")
    if extra:
        faults.append(f"{shown(extra[0])} is unexpected{_others(extra)}")
    if misshapen:
        key = misshapen[0]
        faults.append(f"{shown(key)} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}{_others(misshapen)}")
    if mistyped:
        key = mistyped[0]
        kind = str(state[key].dtype).removeprefix("torch.")
        faults.append(f"{shown(key)} is of type {kind}, not floating point{_others(mistyped)}")
    if faults:
        raise JobError(f"the weights do not fit {name}: {'; '.join(faults)}")
    whole: OrderedDict[str, Tensor] = OrderedDict({key: state.get(key, own[key]) for key in own})
    # The versions of the layers' formats: names and shapes are those of today, whatever the file says.
    whole._metadata = own._metadata  # type: ignore[attr-defined]
    model.load_state_dict(whole, strict=True)


def head_of(model: nn.Module, classes: int) -> str:
    """Return the name of the weight that makes the logits: of the last layer with a row for each class, or ""."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return next((f"{name}.weight" for name in reversed(layers) if len(layers[name].weight) == classes), "")


def renamed_by_position(state: State, names: list[str]) -> State:
    """Give the weights other names, in order: for files of another implementation of the same network.

    Raises:
        JobError: their number or the last parts of their names (weight, bias, …) do not pair up.
    """
    if len(state) != len(names):
        raise JobError(f"the weights do not fit: the file has {len(state)} of them, the network {len(names)}")
    for old, new in zip(state, names, strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2]:
            raise JobError(f"the weights do not fit: the file has {shown(old)} where the network has {shown(new)}")
    return dict(zip(names, state.values(), strict=True))


def checkpoint(name: str, url: str, download: Download | None) -> Path:
    """Return the file of `url` among torch.hub's checkpoints, which other programs share; download it where it is not.

    Raises:
        JobError: it is not there and cannot be downloaded; the error names the network and the remedy.
        NotHere: another process takes too long to download it.
        WorkerError: it cannot be written to this machine's disk.
    """
    parts = Path(unquote(urlsplit(url).path)).parts[1:]
    # A hub of models gives every file the same name; there the whole path tells them apart.
    file_name = parts[-1] if _DIGEST_IN_NAME.search(parts[-1]) else "-".join(parts)
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    if path.is_file():
        return path
    if download is None:
        raise JobError(f"the weights of {name} are not among {path.parent}")
    with _one_process(path):
        if not path.is_file():  # no other process brought it meanwhile
            _download_to(path, name, url, download)
    return path


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Let one process at a time download a checkpoint; the lock is beside torch.hub's folder, which is not ours.

    Raises:
        NotHere: another process takes too long.
        WorkerError: the folder cannot be written.
    """
    locks = path.parent.with_name(".locks")
    try:
        for folder in (path.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        # It brings metrics and what fetches along, which `make gpu-check` does without.
        from worker.models.weights_cache import acquired

        lock = acquired(locks / f"{path.name}.lock", _OTHERS_TIMEOUT_S)
    except Timeout:
        raise NotHere(
            f"another process has been downloading {path.name} for more than {_OTHERS_TIMEOUT_S:.0f} s; "
            "`gradcam retry` tries again"
        ) from None
    except OSError as error:
        raise WorkerError(f"no weights can be written to {path.parent} ({error.strerror or error})") from None
    with lock:
        yield


def _download_to(path: Path, name: str, url: str, download: Download) -> None:
    # What killed processes left.
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        left.unlink(missing_ok=True)
    # Written beside and renamed, so that no other process, which may be no program of ours, ever reads half a file.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        download(url, partial)
        _check_arrived(partial, _DIGEST_IN_NAME.search(path.name))
        os.replace(partial, path)
    except (WorkerError, Interrupted):  # a full disk, say, is not the job's fault
        raise
    # For any other failure the job cannot go on, and the remedy is the same.
    except Exception as error:
        raise (JobError if isinstance(error, NothingThere) else NotHere)(
            f"the weights of {name} could not be downloaded from {url} ({error or type(error).__name__}); "
            "give a file with --weight-path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def download(url: str, path: Path) -> None:
    """Download by HTTP; a server may be silent for 20 s."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # urllib, which torch.hub uses, takes no other
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    finally:
        socket.setdefaulttimeout(before)


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give convolutions and linear layers the same random weights on every call, without touching global generators.

    He's uniform initialization over the inputs (arXiv:1502.01852, eq. 10), under which signals neither vanish nor
    explode in depth; with the builders' own, logits of inception_v3 hardly depend on the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = math.sqrt(6 / module.weight[0].numel())
                module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.BatchNorm2d) and module.affine and not module.weight.any():
                # Some networks start with closed residual branches, and every map inside them would be zero.
                module.weight.fill_(1)


def digest_of(model: nn.Module) -> str:
    """Return the SHA-256 of a model's names and numbers in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_arrived(path: Path, digest_in_name: re.Match[str] | None) -> None:
    if digest_in_name and not sha256_of(path).startswith(digest_in_name[1]):
        raise ValueError("what arrived is another file")


def _others(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
