"""In what the images of a submission differ from those that its name had before, in words of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from producer.jobs.model.items import Item
from producer.jobs.model.redaction import redact
from producer.jobs.model.results import Result

ANOTHER = "choose another --name for this one"


def difference(job: str, first: int, before: Mapping[int, Item | Result], now: Mapping[int, Item]) -> str | None:
    """Describe how a chunk's images differ; None where nothing known of them differs.

    Args:
        job: Its id.
        first: The index of the chunk's first image.
        before: What is known of them from before, by their offset; of some perhaps nothing.
        now: As they were named now.
    """
    for offset, known in sorted(before.items()):
        item = now.get(offset)
        if item is None or redact(known.uri) != redact(item.uri):
            is_now = "is none" if item is None else f"is {redact(item.uri)[:200]}"
            return (
                f"job {job} was made from another source (or other rows of it were bad and left out): image "
                f"{first + offset} was {redact(known.uri)[:200]}, and {is_now} now; {ANOTHER}"
            )
    return _other_columns(
        job, {words: None for offset, known in sorted(before.items()) for words in _columns(known, now[offset])}
    )


def why_differs(job: str, first: int, before: Mapping[int, Item | Result], now: Mapping[int, Item]) -> str:
    """Describe how a chunk's images differ that are known to differ; takes what `difference` takes."""
    told = difference(job, first, before, now)
    if told is None and before.keys() == now.keys():
        # All else is the same: results do not say whether a class was asked for.
        told = _other_columns(job, ["--class-column"])
    return told or f"job {job} was made from another source (or other rows of it were bad and left out): {ANOTHER}"


def _other_columns(job: str, said: Iterable[str]) -> str | None:
    columns = ", ".join(said)
    if not columns:
        return None
    return (
        f"job {job} was made from the same images with other columns: {columns}; give the same ones, or choose "
        "another --name"
    )


def _columns(known: Item | Result, item: Item) -> Iterable[str]:
    if known.id != item.id:
        yield "--id-column"
    if known.label != item.label:
        yield "--label-column or --label-from"
    kept, keep = known.keep or {}, item.keep or {}
    if kept.keys() != keep.keys():
        yield f"--keep-columns (before: {_named(kept)}; now: {_named(keep)})"
    elif kept != keep:
        name = next(name for name in kept if kept[name] != keep[name])
        yield f"--keep-columns (other texts in {name[:100]})"
    if isinstance(known, Item) and (known.class_id, known.class_name) != (item.class_id, item.class_name):
        yield "--class-column"
    if isinstance(known, Result) and known.class_id is not None and item.class_id not in {None, known.class_id}:
        yield "--class-column"


def _named(columns: Iterable[str]) -> str:
    return ", ".join(sorted(columns))[:200] or "none"
