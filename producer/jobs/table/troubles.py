"""Why workers cannot do a job: what each says of it, until it can; where all say so, the job fails (`_convict.lua`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel

from producer.jobs.model.keys import JobKeys
from producer.jobs.model.text import SENTENCE_CHARS, shown
from producer.jobs.table.redis_scripts import text

if TYPE_CHECKING:
    from producer.jobs.table.claims import Claim
    from producer.jobs.table.redis_scripts import Scripts

_WORKER = "worker:"


class Kind(StrEnum):
    """What kind of trouble a worker has with a job."""

    #: It cannot do it, and knows why; another worker may.
    REFUSED = "refused"
    #: Something failed that nobody foresaw.
    ERROR = "error"
    #: It cannot read what the job is; it says nothing against it.
    VERSION = "version"


class _Word(BaseModel):
    """What is read of a worker's word against a job."""

    sentence: str


class Troubles:
    """What workers say against jobs."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def tell(self, worker: str, host: str, job: str, kind: Kind, sentence: str, claim: Claim | None = None) -> str:
        """Report why a worker cannot do a job: it gets no chunk of it for a while.

        When all workers report it, the job fails.

        Args:
            worker: Its name.
            host: The machine's name: the workers of one machine share its faults.
            job: Its id.
            kind: What kind of trouble.
            sentence: What is told to whoever looks at the job.
            claim: The chunk that it held. The report counts for that life and epoch of the job alone.

        Returns:
            The state of the job now, or `gone`.
        """
        arguments = [
            worker,
            kind,
            shown(sentence, SENTENCE_CHARS),
            host,
            *(() if claim is None else (claim.life, claim.epoch)),
        ]
        return text(self._scripts.run("trouble", JobKeys(job).parts("troubles"), arguments))

    def over(self, job: str, worker: str) -> None:
        """Withdraw a report: the worker can do the job after all."""
        self._scripts.run("unburden", [JobKeys(job).part("troubles")], [_WORKER + worker])

    def loaded(self, job: str) -> None:
        """Withdraw the suspicion against a job's model: it can be loaded."""
        self._scripts.run("unburden", [JobKeys(job).part("troubles")], ["load"])


def problem_of(troubles: Mapping[str, str]) -> str | None:
    """What keeps a worker from doing a job, in a sentence, as `J:troubles` holds it; None where nothing does."""
    for field in sorted(troubles):
        if field.startswith(_WORKER):
            worker = field.removeprefix(_WORKER)
            try:
                return f"worker {worker} cannot do this job: {_Word.model_validate_json(troubles[field]).sentence}"
            except ValueError:
                return f"worker {worker} cannot do this job, and says why in words that this version cannot read"
    return "a process ended while it loaded the model; it is tried again" if "load" in troubles else None
