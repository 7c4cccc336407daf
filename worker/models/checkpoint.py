"""Read a weights file that a stranger may have written: its bytes tell its kind, and no code in it runs.

It reads two kinds: those of `torch.save` (a zip archive, or before torch 1.6 a few pickles in a row) and safetensors.
For every other kind the error names it and says what to do. Classes beside the tensors are never imported.
What reading would take is looked up before (`worker.models.bounds`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from producer.jobs.model.errors import JobError
from worker.engine.explain import is_out_of_memory
from worker.models import bounds
from worker.models.inert import inert_classes
from worker.models.pickle_cost import TooMuch
from worker.models.pickled import Pickled, look_into

#: Enough bytes to know a file by; a tar archive has its mark at byte 257.
_HEAD_BYTES: Final = 512
_ZIP: Final = b"PK\x03\x04"
#: A pickle of protocol 2 or later; torch.save's of before 1.6 begin with one of a number of ten bytes.
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]", re.DOTALL)
_LEGACY: Final = re.compile(rb"\x80[\x02\x03]\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_LEGACY_HEAD_BYTES: Final = 15
#: The same with a protocol that torch does not read without trust.
_LATE_PROTOCOL: Final = re.compile(rb"\x80[\x04-\xff](\x95.{8})?\x8a\nl\xfc", re.DOTALL)
#: Pickles of the protocols 0 and 1: a dict, a list, a class.
_OLD_PICKLE: Final = (b"(dp", b"(lp", b"}q", b"]q", b"ccollections\n", b"ccopy_reg\n", b"cnumpy", b"ctorch")
#: Mappings within mappings, at most; and how many tensors are more than a number beside others.
_DEEPEST: Final = 8
_FEW: Final = 2
#: What a storage may have beside its numbers: the room that rounding up takes.
_ROUNDED_BYTES: Final = 64
#: A safetensors file is a length of 8 bytes, little endian, then that many bytes of JSON, then the numbers.
_LENGTH_BYTES: Final = 8

_UNPACK: Final = "unpack it, and give the weights file in it"
_EXPORT: Final = "save the network's state_dict() with torch.save where it was trained"
_OTHERS: Final = "take weights of PyTorch"
#: The first bytes of files of other kinds, what they are, and what to do.
_OTHER_KINDS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (rb"\x1f\x8b", "a gzip file", _UNPACK),
    (rb"BZh\d", "a bzip2 file", _UNPACK),
    (rb"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89HDF\r\n\x1a\n", "HDF5, as Keras writes it", _OTHERS),
    (rb"\x93NUMPY", "an array of NumPy (.npy)", _EXPORT),
    (rb"GGUF", "GGUF", _OTHERS),
    (rb".{4}TFL3", "TensorFlow Lite", _OTHERS),
    # Its version, then the name of the program that wrote it, or the graph.
    (rb"\x08[\x01-\x20][\x12\x3a]", "ONNX", _EXPORT),
)
#: Texts that come in place of a file, and what to do.
_TEXTS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"version https://git-lfs", "it is a pointer of Git LFS: run `git lfs pull`, and give the file that comes"),
    (b"<", "it is a web page: the address leads to a page, not to the file"),
    (b"{", "it is JSON: give the file of the numbers, .safetensors or .pth"),
)


def read(path: Path, most_bytes: int | None = None) -> Any:
    """Read the content of a weights file on the CPU: mostly mappings with tensors.

    Whatever else it holds beside them, such as a program's options, becomes an inert object without content.

    Args:
        path: The file.
        most_bytes: How many bytes of numbers it may hold, all its tensors together; None where nobody says.

    Raises:
        JobError: The file cannot be read, is of another kind, is truncated, holds more than tensors, maybe code, or
            would take too much memory or time.
    """
    try:
        return _read(path, most_bytes)
    except TooMuch as error:
        raise JobError(f"the weights file {path} {error}; {_EXPORT}") from None


def _read(path: Path, most: int | None) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise JobError(f"the weights file {path} cannot be read: {error.strerror}") from None
    if head.startswith(_ZIP):
        return _read_torch(path, _checked_zip(path, most))
    if _LATE_PROTOCOL.match(head):
        raise _not_trusted(path, look_into(path))
    if _LEGACY.match(head) or (head and len(head) < _LEGACY_HEAD_BYTES and _PICKLE.match(head)):
        return _read_torch(path, bounds.check_legacy(path, most))
    if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and not head.startswith((b"{", b"<")):
        bounds.check_safetensors(path, most)
        return _read_safetensors(path)
    raise _refusal(path, head)


def _read_torch(path: Path, total_bytes: int) -> Any:
    content = _unpickled(path)
    claimed = {storage.data_ptr(): storage.nbytes() for storage in _storages(content)}
    # Calls in a pickle can make tensors of any size that no numbers stand for. They take memory once they are read.
    if sum(claimed.values()) > total_bytes + _ROUNDED_BYTES * len(claimed):
        raise JobError(f"the weights file {path} is broken: its tensors claim more numbers than the file has")
    return content


def _storages(content: Any) -> Iterator[torch.UntypedStorage]:
    row, seen = [content], {id(content)}
    while row:
        value = row.pop()
        if isinstance(value, torch.Tensor):
            # Others have no storage of their own, or none with numbers.
            if value.layout == torch.strided and value.device.type == "cpu":
                yield value.untyped_storage()
        elif isinstance(value, Mapping | list | tuple):
            inner = [each for each in (value.values() if isinstance(value, Mapping) else value) if id(each) not in seen]
            seen.update(map(id, inner))
            row += inner


def _unpickled(path: Path) -> Any:
    try:
        # Given the path, torch would go by its ending.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    # Whatever a broken or hostile pickle raises: the file is at fault.
    except Exception as error:
        if is_out_of_memory(error):
            # It may also be a small file that claims much.
            raise JobError(
                f"the weights file {path} does not fit into this machine's memory, or is broken or truncated"
            ) from None
        found = look_into(path)
        unsafe = re.search(r"(?:GLOBAL|class|type|instruction|opcode) ([\w.$]+)", str(error))
        if "nsupported" not in str(error) or not (unsafe or found.late_protocol):
            raise _broken(path) from None
        content = None if found.dangerous or found.late_protocol else _read_beside_classes(path, found)
        if content is None:
            raise _not_trusted(path, found, unsafe[1] if unsafe else "") from None
        return content


def _read_beside_classes(path: Path, found: Pickled) -> Any:
    """Read weights that lie beside classes of others; None if it does not work, or the weights are in such a class."""
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(inert_classes(found.foreign)):
            content = torch.load(file, map_location="cpu", weights_only=True)
    # Whatever a broken or hostile pickle raises: the caller refuses the file then.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
    return content if _has_weights(content) else None


def _has_weights(content: Any, depth: int = 0) -> bool:
    """Return whether a mapping that is no optimizer's has several tensors."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return False
    if sum(isinstance(value, torch.Tensor) for value in content.values()) >= _FEW:
        return True
    return any(_has_weights(value, depth + 1) for key, value in content.items() if "optim" not in str(key))


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except KeyError as error:  # of its own table of types
        raise _unread(path, f"safetensors with numbers of type {error}", "save them as float32") from None
    except (SafetensorError, ValueError):
        raise _broken(path) from None


def _broken(path: Path) -> JobError:
    return JobError(f"the weights file {path} is broken or truncated")


def _unread(path: Path, kind: str, advice: str) -> JobError:
    return JobError(f"the weights file {path} is of a kind that is not read: {kind}; {advice}")


def _refusal(path: Path, head: bytes) -> JobError:
    """Return the error for a file that is neither of torch.save nor safetensors."""
    for start, kind, advice in _OTHER_KINDS:
        if re.match(start, head, re.DOTALL):
            return _unread(path, kind, advice)
    if _PICKLE.match(head) or head.startswith(_OLD_PICKLE):
        return _not_trusted(path, look_into(path), bare=True)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in _TEXTS:
        if text.startswith(start):
            return JobError(f"{path} is not a weights file: {what}")
    what = "neither of torch.save nor of safetensors" if head else "it is empty"
    return JobError(f"{path} is not a weights file: {what}")


def _checked_zip(path: Path, most: int | None) -> int:
    """Return how many bytes an archive of torch.save unpacks to; other archives are refused by their kinds."""
    try:
        bounds.check_entries(path)
        with zipfile.ZipFile(path) as archive:
            _refuse_other_zips(path, archive.namelist())
            return bounds.check_zip(path, archive, most)
    # RuntimeError: torch's own reader of archives.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        raise _broken(path) from None


def _refuse_other_zips(path: Path, names: Sequence[str]) -> None:
    # torch puts everything into a folder with the file's own name.
    inner = {name.partition("/")[2] or name for name in names}
    if inner & {"constants.pkl", "bytecode.pkl"}:
        line = 'torch.save(torch.jit.load("FILE", map_location="cpu").state_dict(), "weights.pth")'
        raise _unread(path, "TorchScript (torch.jit.save)", _one_line(line))
    if "data.pkl" in inner:
        return
    if {"archive_format", "serialized_exported_program.json"} & {*inner, *names}:
        line = 'torch.save(torch.export.load("FILE").state_dict, "weights.pth")'
        raise _unread(path, "an exported program (.pt2, torch.export)", _one_line(line))
    if any(name.startswith(".data/") for name in inner):
        raise _unread(path, "a package of code (torch.package)", _EXPORT)
    if "model.weights.h5" in names:
        raise _unread(path, "a network of Keras", "take weights of PyTorch")
    if names and all(name.endswith(".npy") for name in names):
        raise _unread(path, "arrays of NumPy (.npz)", _EXPORT)
    raise _unread(path, f"a zip archive around other files ({_first(names)})", _UNPACK)


def _not_trusted(path: Path, found: Pickled, named: str = "", *, bare: bool = False) -> JobError:
    """Return the error for a pickle that only running code could read; it says what a look without running it tells."""
    named = found.dangerous or named or next(iter(found.foreign), "")
    if named:
        start = f"the weights file {path} is refused: it holds more than tensors ({named}), which might run code"
        if found.dangerous:
            return JobError(f"{start}; do not load it anywhere, and get weights from somewhere else")
    elif bare:
        start = f"the weights file {path} is of a kind that is not read: a bare pickle, not one of torch.save"
    else:
        start = f"the weights file {path} is of a kind that is not read: torch.save with a pickle_protocol above 3"
    if bare:
        load = 'c = pickle.loads(pathlib.Path("FILE").read_bytes())'
        save = f'torch.save({{k: torch.as_tensor(v) for k, v in c{found.state_dict}.items()}}, "weights.pth")'
        return JobError(f"{start}; if you trust it, {_one_line(f'{load}; {save}', 'pathlib, pickle, torch')}")
    load = 'c = torch.load("FILE", map_location="cpu", weights_only=False)'
    content = f"c{found.state_dict}"
    if found.flat:
        content = "{k: v for k, v in c.items() if isinstance(v, torch.Tensor)}"
    return JobError(f'{start}; if you trust it, {_one_line(f"""{load}; torch.save({content}, "weights.pth")""")}')


def _one_line(statements: str, modules: str = "torch") -> str:
    return f"save its weights alone: python -c 'import {modules}; {statements}'"


def _first(names: Iterable[str]) -> str:
    files = [name for name in names if not name.endswith("/")]
    return ", ".join(files[:3]) + (", …" if len(files) > 3 else "") if files else "none"  # noqa: PLR2004
