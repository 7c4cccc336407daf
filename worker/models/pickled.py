"""What is in a pickle, without running it: this reads its instructions and obeys none.

Only the error about a refused file needs it: which classes the file names, and where its weights are.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from worker.models.pickle_cost import MOST_INSTRUCTIONS, BoundedReader

#: Modules whose functions in a pickle do something to the machine.
_DANGEROUS: Final = frozenset(
    """
    asyncio code codeop commands ctypes importlib marshal nt os pdb pickle pip posix pty runpy shutil socket subprocess
    sys timeit torch.hub urllib webbrowser
    """.split()  # noqa: SIM905 - one a line would be a page
)
#: The harmless names of `builtins`, which has `eval` beside `set`.
_BUILTINS: Final = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"}
    | {"slice", "str", "tuple"}
)
#: Names that torch itself writes around tensors.
_TORCHS_OWN: Final = ("torch._utils.", "torch._tensor.", "torch.storage.", "torch.serialization.")
_STORAGES: Final = "Storage"
#: Keys under which training programs put the state dict, the commonest first.
_USUAL: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "model_state")
#: Fewer tensors than this are no network.
_FEW: Final = 2
_FIRST_LATE_PROTOCOL: Final = 4
#: In a file from before torch 1.6 three small pickles come before the content.
_PICKLES_AT_MOST: Final = 4
_STRINGS: Final = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINUNICODE8"})
_ENDS_OF_MARKS: Final = frozenset(
    {"TUPLE", "LIST", "DICT", "SETITEMS", "APPENDS", "ADDITEMS", "FROZENSET", "POP_MARK", "OBJ", "INST"}
)


@dataclass
class Pickled:
    """What a pickle names, as far as it is readable."""

    #: Classes and functions that torch does not write around tensors, as `module.name`, each once, in order.
    foreign: dict[str, None] = field(default_factory=dict)
    #: The first of them that does something to the machine.
    dangerous: str = ""
    #: The Python code that gets the state dict out of the content: `["model"]`, `.state_dict()`, or nothing.
    state_dict: str = ""
    #: Whether the content itself is the state dict, with other things beside the tensors.
    flat: bool = False
    #: Whether torch reads its protocol only with trust.
    late_protocol: bool = False


def look_into(path: Path) -> Pickled:
    """Read the instructions of a file of torch.save, or of a bare pickle; unreadable parts are left out."""
    found = Pickled()
    # Whatever a broken or hostile file raises: the caller has an error without this, too.
    with suppress(Exception), path.open("rb") as file:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(file) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as pickled:
                    _look(BoundedReader(pickled), found)
        else:
            reader = BoundedReader(cast("IO[bytes]", file))
            for _ in range(_PICKLES_AT_MOST):
                _look(reader, found)
    return found


def _look(file: BoundedReader, found: Pickled) -> None:
    depth, strings = 0, ["", ""]
    key, tensors = "", Counter[str]()
    for number, (code, argument, _position) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if number > MOST_INSTRUCTIONS:
            break
        match code.name:
            case "PROTO":
                found.late_protocol |= int(cast(Any, argument)) >= _FIRST_LATE_PROTOCOL
            case "MARK":
                depth += 1
            case "GLOBAL" | "INST":
                _note(str(argument).replace(" ", "."), found)
            case "STACK_GLOBAL":
                _note(".".join(strings), found)
            case "BINPERSID" | "PERSID":
                tensors[key] += 1
        if code.name in _ENDS_OF_MARKS:
            depth -= 1
        if code.name in _STRINGS:
            strings = [strings[1], str(argument)]
            # Directly within the outermost mapping: a key, or a short value, which no tensor follows.
            key = str(argument) if depth <= 1 else key
    _place(tensors, found)


def _note(name: str, found: Pickled) -> None:
    module, _, attribute = name.rpartition(".")
    own = name.startswith(_TORCHS_OWN) or name in {"collections.OrderedDict", "torch.Size", "torch.device"}
    if own or (module == "torch" and (attribute.endswith(_STORAGES) or attribute.islower())):
        return
    found.foreign[name] = None
    builtin = module in {"builtins", "__builtin__"}
    dangerous = attribute not in _BUILTINS if builtin else not _DANGEROUS.isdisjoint({module, module.split(".")[0]})
    if dangerous and not found.dangerous:
        found.dangerous = name


def _place(tensors: Counter[str], found: Pickled) -> None:
    """Note where the state dict is, from how many tensors there are under each key."""
    whole = any(name.startswith("torch.nn.modules.") for name in found.foreign)
    many = {key: count for key, count in tensors.items() if key and count >= _FEW and "optim" not in key}
    key = next((name for name in _USUAL if name in many), max(many, key=lambda name: many[name], default=""))
    if whole:
        # In a module everything is deeper, and its keys are its own.
        key = key if key in _USUAL else ""
        found.state_dict = (f'["{key}"]' if key else "") + ".state_dict()"
    elif key and key.isprintable() and '"' not in key and "'" not in key and "\\" not in key:
        found.state_dict = f'["{key}"]'
    elif tensors:
        found.flat = True
