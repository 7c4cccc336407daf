"""What can go wrong, whose fault it is, and what to do about it.

    GradcamError                  anything of ours; its text is one sentence for the user
    ├── UsageError                what the user typed or set; nothing was sent                  (exit code 2)
    │   ├── SettingsError         settings missing, wrong or misspelt, all of them at once
    │   ├── UnknownJob            no job of that name, or its lifetime is over
    │   ├── JobEnded              it takes no more images
    │   └── SourceChanged         a name's source is not what it was
    ├── ServiceError              Redis or S3 cannot be used from here                          (exit code 4)
    │   └── Unfit                 Redis answers, and waiting helps nothing: rights, eviction, its kind
    ├── ItemError                 one image's own fault: it fails alone, the others go on
    │   ├── FetchError            the address is refused, gone or too large             → `fetch`
    │   │   ├── NothingThere      there is nothing, from wherever it is asked           → `fetch`
    │   │   ├── OtherContent      what is there has not the digest that was given       → `fetch`
    │   │   ├── EmptyFile         it is there and has no bytes                          → `image`
    │   │   └── FetchTimeout      it takes longer than an image may                     → `timeout`
    │   ├── ImageError            the bytes are no picture we can decode                → `image`
    │   ├── ModelError            the network gives no usable answer for it             → `model`
    │   ├── StoreError            its pictures cannot be written                        → `store`
    │   ├── ItemTimeout           a stage takes longer than an image may                → `timeout`
    │   └── CrashedWorker         it killed the process that worked at it, repeatedly   → `crashed_worker`
    ├── JobError                  every image of the job would fail alike: the job fails, once
    │   ├── OtherWeights          its weights are not those that were meant
    │   └── NotHere               so it is on this worker: the job fails when no worker that is alive can do it
    │       ├── BucketClosed      our bucket, as this worker sees it
    │       └── OtherVersion      written by another version: no worker of this one fails it
    │           └── UnreadableJob what Redis holds of it is not as this version writes it
    ├── Interrupted               nobody's fault: what is under way is not wanted any more, or not now
    └── WorkerError               this machine's fault: the chunk goes to another worker
        ├── NoRoom                what the job needs does not fit into its memory: it may elsewhere, or later
        └── DeviceError           its device failed: a new process may do better

Policy reads the class, never the text. Each makes its text safe to be shown, whatever strangers called what it names
(`text.py`): whoever raises one does not have to think of it.
"""

from __future__ import annotations

from typing import ClassVar

from producer.jobs.model.text import SENTENCE_CHARS, lines, quoted, shown


class GradcamError(Exception):
    """Something went wrong that has a sentence for the user.

    Args:
        sentence: What to tell; it becomes one line of at most 1,000 characters that does nothing to a terminal.
        excerpt: Lines of a program's own log that explain it, which are shown below the sentence.
    """

    def __init__(self, *sentence: object, excerpt: str = "") -> None:
        super().__init__(*(shown(each, SENTENCE_CHARS) for each in sentence))
        #: Safe to be shown as well; tracebacks have it as a note.
        self.excerpt = lines(excerpt)
        if excerpt:
            self.add_note(self.excerpt)


class UsageError(GradcamError):
    """What was typed or set cannot be used."""


class SettingsError(UsageError):
    """Settings are missing, wrong or misspelt."""


class UnknownJob(UsageError):
    """No job of that name is known, or its lifetime is over."""


class JobEnded(UsageError):
    """The job takes no more images: it has ended, or is about to."""


class SourceChanged(UsageError):
    """The source of a job is not the one it was made from."""


class ServiceError(GradcamError):
    """Redis or the object store cannot be used from here."""


class Unfit(ServiceError):
    """Redis answers, and cannot be worked with until somebody changes it, or our settings."""


class ItemError(GradcamError):
    """One image's own fault; it fails alone."""

    #: The word under which the failure is counted.
    reason: ClassVar[str] = "error"
    #: Whether the same image may succeed when tried again.
    retry: ClassVar[bool] = False


class FetchError(ItemError):
    """The image could not be fetched from its address.

    Args:
        words: The sentence for whoever submitted it.
        why: What only whoever runs the worker may know, such as where a name leads; for its log.
    """

    reason = "fetch"

    def __init__(self, words: str = "", *, why: str | None = None) -> None:
        super().__init__(words)
        self._why = why

    @property
    def why(self) -> str | None:
        """The reason for the log: its own, or that of the error it was made from."""
        return self._why or (self.__cause__.why if isinstance(self.__cause__, FetchError) else None)


class NothingThere(FetchError):
    """There is nothing behind the address, from wherever it is asked."""


class OtherContent(FetchError):
    """What is behind the address is not what was meant: its digest is another one."""


class EmptyFile(FetchError):
    """There is a file at the address, and it is empty."""

    reason = "image"


class FetchTimeout(FetchError):
    """The image takes longer to be fetched than it may."""

    reason = "timeout"
    retry = True


class ImageError(ItemError):
    """The bytes are not a picture that can be decoded."""

    reason = "image"


class ModelError(ItemError):
    """The network has no usable answer for this image."""

    reason = "model"


class StoreError(ItemError):
    """The pictures of this image could not be stored."""

    reason = "store"
    retry = True


class ItemTimeout(ItemError):
    """A stage takes longer with this image than it may."""

    reason = "timeout"
    retry = True


class CrashedWorker(ItemError):
    """The image killed the process that worked at it, more than once."""

    reason = "crashed_worker"


class JobError(GradcamError):
    """Every image of this job would fail alike."""


class OtherWeights(JobError):
    """The weights of the job are not those that were meant.

    Args:
        sentence: What is wrong, and what to do.
        found: The SHA-256 of what is there.
    """

    def __init__(self, sentence: str, found: str = "") -> None:
        super().__init__(sentence)
        self.found = found


class NotHere(JobError):
    """This worker cannot do the job; another one may."""


class BucketClosed(NotHere):
    """Our bucket is not there, or closed to this worker."""


class OtherVersion(NotHere):
    """The job was written by another version."""


class UnreadableJob(OtherVersion):
    """What Redis holds of a job is not as this version writes it; it concerns that job alone.

    Args:
        job: Its id.
        what: Which field or key of it, or what Redis says; shown in part.
    """

    def __init__(self, job: str, what: str) -> None:
        shown = "".join(c if c.isprintable() else "?" for c in what[:120])
        super().__init__(
            f"what Redis holds of job {job[:80]} cannot be read ({shown}): a newer gradcam-queue wrote it, or "
            f"something else did: update this one, or `gradcam delete {job[:80]}` forgets it"
        )


class Interrupted(GradcamError):
    """What is under way ends here: it is not wanted any more, or not now."""


class WorkerError(GradcamError):
    """This worker cannot work; the job can go on elsewhere."""


class NoRoom(WorkerError):
    """What the job needs does not fit into this worker's memory."""


class DeviceError(WorkerError):
    """The device of this process failed; a new process may do better."""


def no_such(job: str) -> str:
    """The message for a job that does not exist."""
    return (
        f"there is no job {quoted(job)} (or its lifetime is over): `gradcam list` shows those in Redis, "
        "`gradcam recover` those in the bucket"
    )
