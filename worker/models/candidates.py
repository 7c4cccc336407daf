"""Find the network's weights in a checkpoint, whatever their names there.

Training programs wrap a state dict (`{"net": …, "epoch": 5}`). They put words before all names of weights (`model.`) or
into some of them (`features.module.`), and save averages, losses and counters beside. No list of such wrappers is
complete. So every name in the file is written out with dots, through all mappings. Each prefix that stands before the
network's names is a candidate.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Final

from torch import Tensor

from producer.jobs.model.errors import JobError
from producer.jobs.model.text import SENTENCE_CHARS, shown

State = dict[str, Tensor]

#: What DataParallel, compile, Fabric and FSDP put into the names of what they wrap.
_TRANSPARENT: Final = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
#: What programs call the network, or a part of it, in their own classes.
_WRAPPERS: Final = _TRANSPARENT | {"model", "net", "network", "backbone", "encoder"}
#: Words in the name of a copy: an average, a teacher, an earlier state.
_COPY: Final = re.compile(
    r"(?:^|[._])(?:\w*ema|swa|\w*average\w*|avg|averaged|teacher|shadow|momentum|target|best|old|prev|k)(?=[._\d]|$)"
)
#: Counters and tables that programs add to every layer; none is a weight.
_NO_WEIGHTS: Final = frozenset(
    {"total_ops", "total_params", "n_averaged", "num_updates", "num_batches_tracked"}
    | {"relative_position_index", "relative_coords_table", "attn_mask"}
)
#: Words in the name of what a program measures or minimizes, beside the network in one class.
_NO_LAYERS: Final = frozenset(
    """
    acc accuracies accuracy auc auroc averaged confmat confusion criterion criterions crit dice ema f1 iou jaccard loss
    losses meter metric metrics mixup optim optimizer precision recall scaler scheduler top
    """.split()  # noqa: SIM905 - one a line would be a page
)
#: The position embeddings of torchvision's and timm's transformers: (1, tokens, C), longer for larger pictures.
PLACES: Final = ("encoder.pos_embedding", "pos_embed")
#: DenseNet's names from before torch forbade dots in module names; torchvision's own files still have them.
_OLD_DENSENET: Final = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
#: The first names of the layers in the blocks of torchvision's transformers; its own files still have them.
_OLD_VIT: Final = re.compile(r"^(.*encoder_layer_\d+\.mlp)\.linear_([12])\.(\w+)$")
#: Mappings within mappings, at most.
_DEEPEST: Final = 8
#: How many of the other candidates that fit are named.
_NAMED: Final = 3
#: Longer names, or of more words, are no weights of a network; more tensors than these no program saves.
_LONGEST_NAME, _MOST_WORDS, _MOST_TENSORS = 500, 64, 100_000
#: How many words before a network's own names are looked at: mappings and wrappers.
_MOST_BEFORE: Final = 8
#: How often tensors are looked at, all candidates together.
_MOST_LOOKS: Final = 300_000


@dataclass(frozen=True)
class Candidate:
    """Weights of a checkpoint that may be the network's."""

    #: The prefix of their names in the file, through all mappings, as `state_dict.module.`.
    prefix: str
    #: The weights by the network's names.
    state: State
    #: Names of the network that have no weights here.
    missing: list[str]
    #: Names of the file that belong here and that the network lacks.
    unexpected: list[str]
    #: Names of the file that are beside the network.
    beside: list[str]
    #: Names of the network whose weights have a shape that no other number of classes or places explains.
    misshapen: list[str]
    #: How many of the weights stand elsewhere than behind the prefix.
    elsewhere: int = 0

    @property
    def fits(self) -> bool:
        """Return whether nothing is missing and nothing is left over."""
        return not (self.missing or self.unexpected or self.misshapen)


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen, and the others."""

    taken: Candidate
    #: Others that fit as well.
    others: list[Candidate] = field(default_factory=list)
    #: The largest mapping with tensors, unchanged: where the file has none of the network's names.
    largest: State = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Say for people what was taken, what fitted as well, and what was left."""
        words = [f"taken: {_shown(self.taken)}"]
        if self.others:
            more = ", …" if len(self.others) > _NAMED else ""
            words.append(f"as well would fit: {', '.join(map(_shown, self.others[:_NAMED]))}{more}")
        if beside := self.taken.beside:
            words.append(f"left: {shown(beside[0])}" + (f" and {len(beside) - 1} more" if len(beside) > 1 else ""))
        return shown("; ".join(words), SENTENCE_CHARS)


def choose_state_dict(
    content: Any,
    own: Mapping[str, Tensor],
    *,
    classes: int = 0,
    head: str = "",
    auxiliary: tuple[str, ...] = (),
    key: str | None = None,
) -> Choice | None:
    """Find the network's weights in what a file holds.

    Of several that fit, the plain one is taken: no word in its names says that it is a copy (an average, a teacher).
    Then the one in fewer mappings is taken, then the first. Where none fits, it is the nearest.

    Args:
        content: The content of the file.
        own: The network's state dict, for names and shapes.
        classes: How many classes that network has; weights may have another number of them.
        head: The name of the weight that makes its logits.
        auxiliary: Prefixes of names that the network need not have.
        key: The name of a mapping, or of words before names: only weights under it are looked at.

    Returns:
        The choice; None where there is no mapping with tensors.

    Raises:
        JobError: No weights of the network are under `key`; names those that there are. Or there are too many tensors.
    """
    file = _File(content)
    if not file.entries:
        return None
    names = _Names(own, classes, head, auxiliary)
    prefixes = names.prefixes(file)
    if key is not None:
        prefixes = _under(key, prefixes)
    found = [names.behind(prefix, file) for prefix in prefixes]
    if not found:
        largest = file.largest()
        return Choice(Candidate("", {}, list(own), list(largest), [], []), largest=largest)
    fitting = _distinct(sorted((each for each in found if each.fits), key=_plainness), names.first)
    if fitting:
        return Choice(fitting[0], fitting[1:])
    return Choice(max(found, key=_nearness))


def _under(key: str, prefixes: Sequence[str]) -> list[str]:
    there = [prefix for prefix in prefixes if f".{key}." in f".{prefix}"]
    if not there:
        known = (
            ", ".join(f"{shown(prefix)}*" for prefix in prefixes[:_NAMED] if prefix)
            or "names without any word before them"
        )
        raise JobError(
            f"--weight-key {shown(key)}: the file has no weights of this network under that name; it has {known}"
        )
    return there


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tensor of the file."""

    #: Its name through all mappings, and the part of it that names its mapping.
    name: str
    mapping: str
    tensor: Tensor

    @cached_property
    def parts(self) -> list[str]:
        return self.name.split(".")


class _File:
    """Every tensor that a checkpoint holds under a name."""

    def __init__(self, content: Any) -> None:
        self.entries = [_Entry(*found) for found in islice(_tensors(content), _MOST_TENSORS + 1)]
        if len(self.entries) > _MOST_TENSORS:
            raise JobError(f"the weights have more than {_MOST_TENSORS} tensors: save those of the network alone")

    def largest(self) -> State:
        """Return the tensors of the mapping that has most of them, by their names there."""
        ((mapping, _),) = Counter(entry.mapping for entry in self.entries).most_common(1)
        return {e.name[len(mapping) :]: e.tensor for e in self.entries if e.mapping == mapping}


def _tensors(content: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Yield each tensor's name through all mappings, the name of its mapping, and the tensor; flat ones come first."""
    row: deque[tuple[int, str, Any]] = deque([(0, "", content)])
    # A hostile file may contain itself, or one mapping a million times.
    seen = {id(content)}
    while row:
        depth, path, value = row.popleft()
        entries = value.items() if isinstance(value, Mapping) else enumerate(value) if _is_row(value) else ()
        for key, inner in entries:
            if isinstance(inner, Tensor):
                if isinstance(key, str) and _is_name(path + key):
                    yield path + _renamed(key), path, inner
            elif (isinstance(inner, Mapping) or _is_row(inner)) and depth < _DEEPEST and id(inner) not in seen:
                seen.add(id(inner))
                # Not every key has a text of any length: a tuple may hold itself a million times.
                word = key if isinstance(key, str | int) else type(key).__name__
                row.append((depth + 1, f"{path}{word}."[: _LONGEST_NAME + 1], inner))


def _is_name(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and name.count(".") < _MOST_WORDS


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)


class _Names:
    """The network's names and shapes."""

    def __init__(self, own: Mapping[str, Tensor], classes: int, head: str, auxiliary: tuple[str, ...]) -> None:
        self._own, self._classes, self._head, self._auxiliary = own, classes, head, auxiliary
        # No network has `module` in its own names; the names of one that had would stay as they are.
        self._by_core = {_without(name.split("."), _TRANSPARENT): name for name in own}
        self._by_bare_core = Counter(_without(name.split("."), _WRAPPERS) for name in own)
        #: The first of the names: its tensor tells candidates apart.
        self.first = next(iter(own), "")
        self._most_words = max((name.count(".") + 1 for name in own), default=0) + _MOST_BEFORE

    def prefixes(self, file: _File) -> list[str]:
        """Return the prefixes of at least half of the network's names; else the commonest one; else none."""
        votes: Counter[str] = Counter()
        for entry in file.entries:
            for start in range(max(len(entry.parts) - self._most_words, 0), len(entry.parts)):
                if self._name(entry.parts[start:]) is not None:
                    votes["".join(f"{part}." for part in entry.parts[:start])] += 1
        half = [prefix for prefix, count in votes.items() if 2 * count >= len(self._own)]
        most = max(_MOST_LOOKS // len(file.entries), 1)
        return half[:most] or [prefix for prefix, _ in votes.most_common(1)]

    def behind(self, prefix: str, file: _File) -> Candidate:
        """Return the candidate behind a prefix."""
        state: State = {}
        start = prefix.count(".")
        matched: list[_Entry] = []
        others: list[_Entry] = []
        # Names that equal the network's to the letter come first.
        for entry in sorted(file.entries, key=lambda entry: entry.name.removeprefix(prefix) not in self._own):
            own = self._name(entry.parts[start:]) if entry.name.startswith(prefix) else None
            if own is None or own in state:
                others.append(entry)
            else:
                matched.append(entry)
                state[own] = entry.tensor
        elsewhere = self._elsewhere(state, others)
        state |= {name: entry.tensor for name, entry in elsewhere.items()}
        matched += elsewhere.values()
        mappings = {entry.mapping for entry in matched}
        taken = set(elsewhere.values())
        others = [entry for entry in others if entry not in taken]
        unexpected = [entry for entry in others if entry.mapping in mappings and self._belongs(entry, prefix, state)]
        left = set(unexpected)
        beside = [entry for entry in others if entry not in left and not self._is_auxiliary(entry, prefix)]
        return Candidate(
            prefix,
            state,
            [name for name in self._own if name not in state and not name.endswith(".num_batches_tracked")],
            [entry.name.removeprefix(prefix) for entry in unexpected],
            [entry.name for entry in beside],
            [name for name, tensor in state.items() if not self._has_shape(name, tensor)],
            len(elsewhere),
        )

    def _name(self, parts: Sequence[str]) -> str | None:
        whole = ".".join(parts)
        return whole if whole in self._own else self._by_core.get(_without(parts, _TRANSPARENT))

    def _elsewhere(self, state: State, others: Sequence[_Entry]) -> dict[str, _Entry]:
        """Find missing weights under another prefix, if only one has the name: `fc.` beside `backbone.`."""
        missing = [name for name in self._own if name not in state]
        if not missing or len(missing) == len(self._own):
            return {}
        by_core: dict[str, list[_Entry]] = {}
        for entry in others:
            by_core.setdefault(_without(entry.parts, _WRAPPERS), []).append(entry)
        found = {}
        for name in missing:
            core = _without(name.split("."), _WRAPPERS)
            entries = by_core.get(core, [])
            if len(entries) == 1 and self._by_bare_core[core] == 1:
                found[name] = entries[0]
        return found

    def _belongs(self, entry: _Entry, prefix: str, state: State) -> bool:
        """Return whether a tensor that the network lacks is part of its layers: the file is of another network then."""
        first, last = entry.parts[prefix.count(".") :][:1], entry.parts[-1]
        if not entry.name.startswith(prefix):
            # A layer that reads the network's answers gives the real ones: the file is of a larger network.
            head = state.get(self._head)
            return head is not None and last == "weight" and shape_of(entry.tensor)[1:] == shape_of(head)[:1] != (1,)
        if last in _NO_WEIGHTS or self._is_auxiliary(entry, prefix):
            return False
        # A weight whose place another weight of that name has is a copy.
        copied = self._name(entry.parts[prefix.count(".") :]) is not None
        return not copied and _NO_LAYERS.isdisjoint(_words(first[0]))

    def _is_auxiliary(self, entry: _Entry, prefix: str) -> bool:
        parts = entry.parts[prefix.count(".") :] if entry.name.startswith(prefix) else []
        return bool(self._auxiliary) and _without(parts, _TRANSPARENT).startswith(self._auxiliary)

    def _has_shape(self, name: str, tensor: Tensor) -> bool:
        own, shape = self._own[name].shape, shape_of(tensor)
        if name in PLACES:
            return shape[:1] + shape[2:] == own[:1] + own[2:]
        # The head, and its bias, have a row for each class.
        return shape == own or (
            self._classes > 0 and own[:1] == (self._classes,) and shape[:1] > (0,) and shape[1:] == own[1:]
        )


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; of one of nested tensors, which have many, none."""
    return () if tensor.is_nested else tuple(tensor.shape)


def _without(parts: Sequence[str], words: frozenset[str]) -> str:
    return ".".join(part for part in parts if part not in words)


def _words(name: str) -> list[str]:
    """Return the words in a name such as `val_acc1` or `trainLoss`, with their numbers and without."""
    words = [word.lower() for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)]
    return [*words, *(word.rstrip("0123456789") for word in words)]


def _renamed(name: str) -> str:
    name = _OLD_DENSENET.sub(r"\1\2", name)
    return _OLD_VIT.sub(lambda old: f"{old[1]}.{3 * (int(old[2]) - 1)}.{old[3]}", name)


def _plainness(candidate: Candidate) -> tuple[bool, int, int]:
    return bool(_COPY.search(candidate.prefix)), candidate.elsewhere, candidate.prefix.count(".")


def _nearness(candidate: Candidate) -> tuple[int, int, int]:
    return len(candidate.state) - len(candidate.misshapen), -len(candidate.unexpected), len(candidate.prefix)


def _distinct(candidates: Sequence[Candidate], first: str) -> list[Candidate]:
    """Return one candidate for each set of tensors, in order: that with the longest prefix, which leaves least."""
    kept: dict[int, Candidate] = {}
    for candidate in candidates:
        tensors = id(candidate.state[first])
        if tensors not in kept or len(kept[tensors].prefix) < len(candidate.prefix):
            kept[tensors] = candidate
    return list(kept.values())


def _shown(candidate: Candidate) -> str:
    return f"{shown(candidate.prefix)}*" if candidate.prefix else "all names as they are"
