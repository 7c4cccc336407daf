"""Images become chunks, chunks become entries of the job table, and each entry gets its message."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from producer.input.display import printable
from producer.jobs.model import keys
from producer.jobs.model.errors import GradcamError, JobError, ServiceError, SourceChanged, UsageError
from producer.jobs.model.items import Chunk, Item, decompress_items, uri_line
from producer.jobs.model.limits import FULL_SHARE
from producer.jobs.model.results import Failure, Result, class_key
from producer.jobs.model.text import counted
from producer.output.manifest import ChunkRecords
from producer.output.results import manifest_parts, read_parts
from producer.submission.differences import difference, why_differs

if TYPE_CHECKING:
    from producer.input.source import Source
    from producer.jobs.broker.messages import Publish
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from producer.jobs.table.table import JobTable
    from producer.output.results import Parts

#: What a source holds beside its address, where it is nothing else; most are.
_NOTHING_ELSE = (None,) * 6
#: Uploads at once: enough to hide a store's latency, few enough for a laptop.
UPLOAD_THREADS = 16
_UPLOADS_AHEAD = 4 * UPLOAD_THREADS
#: How often everything is looked through again when Redis lost some of it.
_PASSES = 5
_LOOK_EVERY_S = 0.5
#: How often Redis is told that somebody is at it, where nothing else tells it so.
_TELL_EVERY_S = 60.0
#: How long taking over what is recorded of a chunk may take.
_ADOPT_S = 30.0
#: Called with images sent so far, and images in all where that is known.
Progress = Callable[[int, int | None], None]
#: Called with the index of the first of some sources and these; gives the line of each.
LineMaker = Callable[[int, Sequence["Source"]], list[str]]
#: Gives what the store has of a chunk whose sources were just read from there.
Records = Callable[[int], ChunkRecords]


def line_maker(storage: Storage, job: str) -> LineMaker:
    """Make the function that turns sources into the lines of a chunk; a local file is named by where it will lie."""

    def lines(first: int, sources: Sequence[Source]) -> list[str]:
        return [
            uri_line(source.uri) if source.uri is not None and source[1:] == _NOTHING_ELSE else line(index, source)
            for index, source in enumerate(sources, first)
        ]

    def line(index: int, source: Source) -> str:
        uri, id = source.uri, source.id
        if source.path is not None:
            uri = storage.uri(keys.uploaded_input(storage.prefix, job, index, source.path.name))
            id = id or printable(str(source.path))[-1024:]
        try:
            return Item(
                uri=str(uri),
                id=id,
                class_id=source.class_id,
                class_name=source.class_name,
                label=source.label,
                keep=dict(source.keep) if source.keep else None,
            ).line
        except ValidationError as error:
            problem = error.errors()[0]
            raise UsageError(f"image {index} cannot be used: its {problem['loc'][0]}: {problem['msg']}") from None

    return lines


def send(
    table: JobTable,
    storage: Storage,
    publish: Publish,
    *,
    job: str,
    life: str,
    spec: JobSpec,
    sources: Iterable[Source],
    count: int | None = None,
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
    since: int = 0,
    records: Records | None = None,
) -> tuple[int, int]:
    """Send all images of a job that was created, then close it; what Redis has already is not sent again.

    Images are streamed: memory does not grow with them. Local files go to the object store first, many at once and
    ahead of the chunk they belong to. Redis can lose what it acknowledged within its last second: the ingest is closed
    only when everything is there and on its disk.

    Args:
        table: The job table.
        storage: Our bucket.
        publish: Sends a chunk's pointer.
        job: Its id.
        life: As `JobTable.create` gave it.
        spec: What it computes.
        sources: Its images; read again from the beginning where Redis has lost some.
        count: How many, where that is known.
        progress: Called with images sent and images in all.
        waiting: Called with a sentence while Redis is too full to take more.
        since: Records with a lower token are of an earlier life of the job's name: they are not taken over.
        records: Of a job that the store brings back, whose sources are read from there.

    Returns:
        How many chunks and images the job has.

    Raises:
        UsageError: The job holds other images.
        SourceChanged: It holds more images than there are now; it keeps them.
        JobEnded: It takes no more.
        UnknownJob: Redis has lost the job meanwhile.
        ServiceError: Redis loses again and again what is sent, or is away for too long.
    """
    sending = _Sending(table, storage, publish, job, life, spec, waiting, since, records)
    for _ in range(_PASSES):
        chunks, images = sending.all(sources, count, progress)
        sending.refuse_if_shorter(chunks, images)
        table.server.wait_until_on_disk()
        if table.close(job, chunks=chunks, items=images, life=life) == images:
            table.server.wait_until_on_disk()
            return chunks, images
    raise ServiceError(f"Redis does not keep the images of job {job}: check its persistence (appendonly yes)")


@dataclass
class _Sending:
    """One submission under way."""

    table: JobTable
    storage: Storage
    publish: Publish
    job: str
    life: str
    spec: JobSpec
    waiting: Callable[[str], None] | None
    since: int = 0
    records: Records | None = None
    #: Chunks of which an earlier life of this job left manifests: Redis was wiped, or lost its last second.
    recorded: dict[int, Parts] = field(default_factory=dict)
    #: Images taken over from there.
    adopted: int = 0
    #: When the fullness of Redis was looked at last.
    looked: float = float("-inf")

    @property
    def _claim_id(self) -> str:
        """Who takes over what is known: one that goes on where another broke off has the same lease."""
        return f"adopt/{self.life}"

    def all(self, sources: Iterable[Source], count: int | None, progress: Progress | None) -> tuple[int, int]:
        """Send every chunk that is not there; how many chunks and images there are."""
        if self.records is None:
            self.recorded = dict(manifest_parts(self.storage, self.job, since=self.since))
        known = self.table.queries.chunks(self.job)
        sent = chunks = 0
        with self._heard_of(), ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
            try:
                for chunk in self._uploaded(pool, iter(sources), known):
                    if chunk.number not in known:
                        self._add(chunk)
                    elif self.records is not None:
                        # An earlier try may have broken off between the chunk and its ends.
                        self._adopt(chunk, self._known_of(chunk), None)
                    sent, chunks = sent + chunk.count, chunks + 1
                    if progress:
                        progress(sent, count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        before = self.adopted if self.records is None else sent
        if before:
            # speed is that of the images explained since
            self.table.annotate(self.job, self.life, base_n=str(before))
        return chunks, sent

    @contextmanager
    def _heard_of(self) -> Iterator[None]:
        """Tell Redis that somebody is at it: between two chunks lie minutes of uploads, or of what is there already."""
        over = threading.Event()

        def tell() -> None:
            while True:
                with suppress(GradcamError):  # whoever sends meets it, too
                    self.table.annotate(self.job, self.life, ingest_at=f"{self.table.registry.now():.6f}")
                if over.wait(_TELL_EVERY_S):
                    return

        threading.Thread(target=tell, name="heard-of", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def refuse_if_shorter(self, chunks: int, images: int) -> None:
        """A source that has lost whole chunks since the job was made is another one.

        What the job has is kept, and no more will come: it ends like any other.

        Raises:
            SourceChanged: It is so.
        """
        known = self.table.queries.chunks(self.job)
        if not known or max(known) < chunks:
            return
        before = sum(int(entry.rpartition(":")[2]) for entry in known.values())
        self.table.close(self.job, chunks=len(known), items=before, life=self.life)
        raise SourceChanged(
            f"the source of job {self.job} has changed: it had {counted(before, 'image')} or more, it has {images:,} "
            "now; the job keeps those it was made from: choose another --name for this one"
        )

    def _uploaded(self, pool: Executor, sources: Iterator[Source], known: Mapping[int, str]) -> Iterator[Chunk]:
        """Chunks in order, each when its files are in the object store; later ones are uploaded meanwhile."""
        window: deque[tuple[Chunk, list[Future[None]]]] = deque()
        size, uploads = self.spec.chunk_size, 0
        lines = line_maker(self.storage, self.job)
        for number in itertools.count():
            part = list(islice(sources, size))
            if not part:
                break
            chunk = Chunk.compress(number, lines(number * size, part))
            if known.get(number, chunk.entry) != chunk.entry:
                raise UsageError(self._difference(chunk))
            files = [] if number in known else [(number * size + n, s.path) for n, s in enumerate(part) if s.path]
            window.append((chunk, [pool.submit(self._upload, index, path) for index, path in files]))
            uploads += len(files)
            while window and (not window[0][1] or uploads > _UPLOADS_AHEAD):
                chunk, futures = window.popleft()
                uploads -= len(futures)
                yield _when_done(chunk, futures)
        while window:
            yield _when_done(*window.popleft())

    def _difference(self, chunk: Chunk) -> str:
        """In what a chunk differs from the one that is there."""
        first, size = chunk.number * self.spec.chunk_size, self.spec.chunk_size
        records = ChunkRecords(chunk.number, first)
        read_parts(self.storage, records, self.recorded.get(chunk.number, []), size)
        before: dict[int, Item | Result] = {result.index - first: result for result in records.results()}
        before |= self.table.queries.items_of(self.job, chunk.number)  # these say more, while they are there
        return why_differs(self.job, first, before, decompress_items(chunk.payload))

    def _upload(self, index: int, path: Path) -> None:
        try:
            self.storage.put_file(keys.uploaded_input(self.storage.prefix, self.job, index, path.name), path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from None

    def _add(self, chunk: Chunk) -> None:
        self._wait_for_room()
        known = self._known_of(chunk)
        # Of what is known no worker may explain anything again, so that it is held from the first moment on.
        published_at = self.table.add_chunk(
            self.job, chunk, life=self.life, claim_id=self._claim_id if known else "", lease_s=_ADOPT_S
        )
        if known:
            # Also where it was there already: the reply to an earlier try may have been lost.
            published_at = self._adopt(chunk, known, published_at)
        if published_at is not None:
            self.publish(chunk.number, published_at)

    def _wait_for_room(self) -> None:
        """Wait while Redis is so full that workers might not be able to go on."""
        if time.monotonic() - self.looked < _LOOK_EVERY_S:
            return
        while (full := self.table.server.fullness()) > FULL_SHARE:
            if self.waiting:
                self.waiting(f"Redis is {full:.0%} full: waiting for workers to work something off")
            time.sleep(_LOOK_EVERY_S)
        self.looked = time.monotonic()

    def _known_of(self, chunk: Chunk) -> dict[int, Result]:
        """What manifests say of a chunk's images, by their offset; nothing where they say nothing."""
        if self.records is None and chunk.number not in self.recorded:
            return {}
        first, size = chunk.number * self.spec.chunk_size, self.spec.chunk_size
        if self.records is not None:
            found = self.records(chunk.number)
        else:
            parts = self.recorded[chunk.number]
            found = read_parts(self.storage, ChunkRecords(chunk.number, first), parts, size)
        if newer := next((one for one in found.damage if one.newer), None):
            raise JobError(f"{newer.key} was written by a newer version of gradcam-queue: update this one")
        items = decompress_items(chunk.payload)
        # What cannot be read of it is explained again.
        known = {result.index - first: result for result in found.results() if result.index - first in items}
        if told := difference(self.job, first, known, items):
            raise UsageError(f"the store holds a job of that name: {told}")
        return known

    def _adopt(self, chunk: Chunk, known: Mapping[int, Result], published_at: float | None) -> float | None:
        """Take over what is known of a chunk's images: their pictures are in the store.

        Args:
            chunk: The chunk, which the job table has.
            known: As `_known_of` gives it.
            published_at: The time to publish its pointer with where somebody else has it.

        Returns:
            The time to publish its pointer with; None when nothing of it is left to do.
        """
        claim = self.table.claim(
            self.job, chunk.number, self.spec, claim_id=self._claim_id, lease_s=_ADOPT_S, producer=True
        )
        if claim is None:
            return published_at
        failed = [
            Failure(index=claim.index(offset), item=claim.items[offset], reason=one.reason, message=one.message or "")
            for offset, one in known.items()
            if one.state == "failed" and one.reason
        ]
        done = {offset: class_key(one) for offset, one in known.items() if one.state == "done"}
        committed = self.table.commit(claim, done=done, failed=failed, lease_s=_ADOPT_S)
        self.adopted += len(done) + len(failed)
        return None if committed is None or committed.complete else self.table.release(claim)


def _when_done(chunk: Chunk, uploads: list[Future[None]]) -> Chunk:
    for upload in uploads:
        upload.result()
    return chunk
