"""What a user does with a job that is there: cancel, pause, resume, and try its failed images again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from producer.jobs.model import keys
from producer.jobs.model.errors import UnknownJob, UsageError, no_such
from producer.jobs.model.items import Item, compress_items
from producer.jobs.model.keys import JobKeys
from producer.jobs.model.states import MAINTENANCE, JobState
from producer.jobs.model.text import quoted
from producer.jobs.table.redis_scripts import text

if TYPE_CHECKING:
    from datetime import datetime

    from producer.jobs.model.history import Action
    from producer.jobs.table.redis_scripts import Scripts

BROKEN_OFF = "its submission was broken off; submit it again"
#: What is said of a job of which Redis has lost a part.
DAMAGED = (
    "Redis has lost a part of this job: it evicts keys (set maxmemory-policy to noeviction), or an older copy of it "
    "came back; `gradcam delete {job}`, then submit it again, under its name if it had one: what is done is taken over"
)
#: How long a client that repairs or deletes may be silent before another may go on.
MAINTENANCE_LEASE_S = 60.0
RetryMode = Literal["", "repair", "submit"]


class By(NamedTuple):
    """Who does something to a job, and why; a job's history keeps it."""

    who: str
    reason: str = ""


NOBODY = By("")


@dataclass(frozen=True)
class Generation:
    """What a retry began."""

    #: 1 at first, one more with each retry.
    number: int
    #: The job's life, as `Claim` has it.
    life: str


def refusal(job: str, state: str) -> str:
    """Why a verb cannot be done to a job that stands so, and what to do."""
    match state:
        case "repairing":
            return f"job {job} is being repaired (`gradcam audit {job} --repair`): wait until that has ended"
        case "deleting":
            return (
                f"job {job} is being deleted: wait until that has ended; `gradcam delete {job} --objects` goes on with "
                "a deletion that was broken off"
            )
        case "cancelled":
            return f"job {job} was cancelled: submit it again under another name"
        case "running" | "paused" | "finalizing":
            return f"job {job} has not ended, it is {state}: wait for it, or `gradcam cancel {job}`"
        case _:
            return f"job {job} has ended already: {state}"


class UserActions:
    """The verbs of `gradcam cancel | pause | resume | retry | audit` on the job table."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def cancel(self, job: str, by: By = NOBODY) -> JobState:
        """Stop a job for good; where it stands then. Raises UnknownJob."""
        return self._control("cancel", job, by)

    def pause(self, job: str, by: By = NOBODY) -> JobState:
        """Hand out nothing more until it is resumed; where it stands then. Raises UnknownJob."""
        return self._control("pause", job, by)

    def resume(self, job: str, by: By = NOBODY) -> JobState:
        """Go on with a paused job; where it stands then. Raises UnknownJob."""
        return self._control("resume", job, by)

    def _control(self, verb: str, job: str, by: By) -> JobState:
        state = text(self._scripts.run(verb, [JobKeys(job).hash], [*by]))
        if state == "gone":
            raise UnknownJob(no_such(job))
        if state in MAINTENANCE:
            raise UsageError(refusal(job, state))
        return JobState(state)

    def recover(
        self, job: str, life: str, *, created_at: datetime, facts: Mapping[str, str], history: Sequence[Action], by: By
    ) -> None:
        """Give a job that was just made what the store says of it, and pause it until its images are there.

        Args:
            job: Its id.
            life: As `JobTable.create` gave it.
            created_at: When it was made at first.
            facts: What workers noted of it.
            history: What was done to it.
            by: Who brings it back.

        Raises:
            UnknownJob: It is not there, or another of its name is.
            UsageError: It has ended meanwhile.
        """
        answer = self._scripts.run(
            "recover",
            [JobKeys(job).hash, keys.JOBS],
            [
                *(job, life, f"{max(created_at.timestamp(), 0):.3f}", by.who, len(history)),
                *(action.model_dump_json() for action in history),
                *(part for pair in facts.items() for part in pair),
            ],
        )
        match text(answer):
            case "paused":
                return
            case "gone":
                raise UnknownJob(no_such(job))
            case state:
                raise UsageError(refusal(job, state))

    def maintain(self, job: str, state: JobState, who: str, *, lease_s: float = MAINTENANCE_LEASE_S) -> str:
        """Give one client the lease of a job that has ended, or renew it.

        Args:
            job: Its id.
            state: `REPAIRING` or `DELETING`; the latter also of a job that Redis has forgotten.
            who: The client.
            lease_s: How long it may be silent.

        Returns:
            The job's life, as `Claim` has it.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has not ended, or another client has it.
        """
        answer = self._scripts.run("maintain", [JobKeys(job).hash, keys.ACTIVE], [job, state.value, who, lease_s])
        match text(answer[0]):
            case "yours":
                return text(answer[1])
            case "gone":
                raise UnknownJob(no_such(job))
            case found:
                raise UsageError(refusal(job, found))

    def maintained(self, job: str, who: str, *, incomplete: bool = False) -> None:
        """Give the lease back; `incomplete` when objects of the job may be gone."""
        self._scripts.run("maintained", [JobKeys(job).hash, keys.ACTIVE], [job, who, int(incomplete)])

    def delete(self, job: str, *, who: str = "") -> None:
        """Forget a job that has ended.

        Args:
            job: Its id.
            who: The client that has its lease, if one does.

        Raises:
            UnknownJob: There is no such job.
            UsageError: It has not ended, or another client has its lease.
        """
        names = JobKeys(job)
        others = map(names.part, keys.JOB_PARTS)
        state = text(self._scripts.run("delete", [names.hash, keys.JOBS, keys.ACTIVE, *others], [job, who]))
        if state == "gone":
            raise UnknownJob(no_such(job))
        if state != "deleted":
            raise UsageError(refusal(job, state))

    def retry(
        self, job: str, queue: str, *, retry_id: str, only: str | None = None, mode: RetryMode = "", by: By = NOBODY
    ) -> Generation:
        """Begin a new generation of a job that has ended; `reopen` and `reopened` follow.

        Args:
            job: Its id.
            queue: Its priority.
            retry_id: Asking twice with the same one gives the same generation: the first reply may be lost.
            only: Only items that failed for it are going to be reopened.
            mode: `repair`: done items are going to be reopened, by the client that holds the job under this retry id;
                `submit`: a submission goes on with a job that failed meanwhile, and nothing is reopened.
            by: Who does it, and why.

        Raises:
            UnknownJob: There is no such job, or its lifetime is over.
            UsageError: It cannot be tried again, or nothing failed.
        """
        names = JobKeys(job)
        others = [names.part(part) for part in keys.JOB_PARTS if part != "reasons"]
        answer = self._scripts.run(
            "retry",
            [names.hash, keys.ACTIVE, keys.round_robin(queue), names.part("reasons"), *others],
            [job, retry_id, only or "", mode, *by],
        )
        match text(answer[0]):
            case "begun":
                return Generation(int(answer[1]), text(answer[2]))
            case "gone":
                raise UnknownJob(no_such(job))
            case "nothing":
                why = f" with the reason {quoted(only)}; `gradcam status {job}` lists the reasons" if only else ""
                raise UsageError(f"job {job} has no failed images{why}")
            case "open":
                raise UsageError(f"job {job} was never sent whole: {BROKEN_OFF}")
            case "damaged":
                raise UsageError(f"job {job} cannot be tried again: {DAMAGED.format(job=job)}")
            case state:
                raise UsageError(refusal(job, state))

    def reopen(
        self, job: str, generation: Generation, chunk: int, items: dict[int, Item], again: Mapping[int, str]
    ) -> float | None:
        """Make items pending again, chunk by chunk in ascending order.

        Args:
            job: Its id.
            generation: As `retry` gave it.
            chunk: Which one.
            items: The items to work at, by offset, with those the chunk still holds: `items_of`.
            again: Which of them become pending: their offsets, with the class a done one was explained for, or "".

        Returns:
            The time to publish the chunk's pointer with; None when it was reopened before, or the job went on.
        """
        answer = self._scripts.run(
            "reopen",
            JobKeys(job).parts(
                "items", "waiting", "leases", "attempts", "bits", "failures", "reasons", "suspects", "classes"
            ),
            [
                *(chunk, generation.number, compress_items(items), generation.life),
                *(part for pair in again.items() for part in pair),
            ],
        )
        return float(answer[1]) if answer[0] == b"reopened" else None

    def reopened(self, job: str, generation: Generation) -> None:
        """Finish the reopening: the job may end again."""
        self._scripts.run("reopened", [JobKeys(job).hash], [generation.number, generation.life])
