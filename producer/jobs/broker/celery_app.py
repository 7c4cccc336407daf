"""The Celery application that both sides share: it carries pointers (job, chunk), nothing else.

A pointer may be lost, doubled, late or forged; the job table makes all of that harmless. The reason for each setting
stands beside it. What reads and writes the queues is in `transport.py`.
"""

from __future__ import annotations

import logging
import ssl
import time
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from redis.exceptions import ResponseError

from producer.jobs.model.errors import ServiceError
from producer.jobs.model.keys import QUEUE_PREFIX
from producer.jobs.model.names import is_job_name
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.redis_url import RedisUrl
from producer.jobs.model.spec import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from producer.jobs.table.table import JobTable

log = logging.getLogger(__name__)

TASK = "gradcam.explain_chunk"
#: Read in this order; `recovery` holds what a dead process left.
QUEUES = ("recovery", *PRIORITIES)
#: Ours have about 1000; nothing larger is looked into.
MAX_MESSAGE_BYTES = 16_384
#: How long a Redis that is away is waited for. A message is tried once more after that, which takes 10 s at most.
PUBLISH_WITHIN_S = 45.0
_PUBLISH_AGAIN_AFTER_S = 0.5


class BrokerAway(ServiceError):
    """Redis takes no message: it has been away for too long, or it refuses."""


def make_app(redis_url: str) -> Celery:
    """Make the Celery application.

    Raises:
        ValueError: The address is not one that `RedisUrl` reads.
    """
    url = RedisUrl.read(redis_url)
    app = Celery("gradcam", broker=url.plain, amqp="producer.jobs.broker.transport:AMQP", set_as_current=False)
    app.conf.update(
        # A Redis list needs no declaration, which would cost round trips and writes that a full Redis refuses.
        task_queues=[Queue(name, no_declare=True) for name in QUEUES],
        task_default_queue="default",
        task_create_missing_queues=False,
        # The job table keeps results; a second copy costs 389 bytes a task.
        task_ignore_result=True,
        result_backend=None,
        # Nobody can make a worker unpickle something.
        task_serializer="json",
        accept_content=["json"],
        # Our leases are the guarantee; late acks would bring the visibility timeout and its duplicates.
        task_acks_late=False,
        # It concerns late acks alone; left open, each lost connection writes nine lines of advice to the log.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        # `publish` does it, for a time that is known: Celery's retries are counted, and each may take any time.
        task_publish_retry=False,
        # CUDA cannot be used after a fork; a spawned child needs longer than 4 s to import torch.
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,
        worker_concurrency=1,
        # Results that a dead child may still have sent mean nothing to us: its chunk goes to others at once.
        worker_lost_wait=1.0,
        # Work that is hoarded behind a slow chunk helps nobody.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_prefetch_count_reduction=False,
        worker_send_task_events=False,
        # Nobody may end or change workers by a message; the channel for it would read messages that nothing checks.
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        # The log shows the task's own sentences, not its arguments.
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Left to itself kombu takes any certificate. What the address says (`?ssl_ca_certs=…`) goes first.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED, **url.ssl} if url.tls else None,
        broker_transport_options={
            "global_keyprefix": QUEUE_PREFIX,
            # Classes of service are queues read in order; Celery's own priorities would split each into four lists.
            "queue_order_strategy": "priority",
            "priority_steps": [0],
            # A Redis that stands still for longer is tried again: nobody hangs for much longer than this.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            # Half-open connections are noticed: a read of the queues within 1 s + 2 of these.
            "socket_keepalive": True,
            "health_check_interval": 10,
            **url.options,
        },
    )
    return app


def publish(
    app: Celery, job: str, chunk: int, *, queue: str, published_at: float, within_s: float = PUBLISH_WITHIN_S
) -> None:
    """Send a pointer to a chunk; `published_at` is the time the job table gave for it.

    A Redis that is away is waited for. One that froze may get the pointer twice: what it had not answered, and again.

    Raises:
        BrokerAway: Redis refuses the message (it is full, …), or has been away for `within_s`.
    """
    until = time.monotonic() + within_s
    while True:
        try:
            app.send_task(
                TASK, args=(job, chunk), queue=queue, headers={"gradcam_published_at": published_at},
                ignore_result=True, argsrepr="",
            )  # fmt: skip
            return
        except OperationalError as error:
            reason = error.__cause__ or error
            if isinstance(reason, ResponseError):
                raise BrokerAway(
                    f"Redis takes no message into the queue `{queue}`: {redact_text(str(reason))}"
                ) from error
            if time.monotonic() > until:
                away = f"Redis has taken no message for {within_s:.0f} s ({type(reason).__name__})"
                raise BrokerAway(f"{away}: try again when it is back") from error
        time.sleep(_PUBLISH_AGAIN_AFTER_S)


def pop_message(table: JobTable, priorities: Sequence[str] = PRIORITIES) -> tuple[str, Pointer] | None:
    """Read the next message, for a process that is at work and has room for one more chunk; Celery reads for idle ones.

    Args:
        table: Whose Redis.
        priorities: In the order in which they are read; `recovery` goes before them.

    Returns:
        The queue and what the message says; None when none waits.

    Raises:
        ServiceError: Redis is away.
    """
    while found := table.pop_message(("recovery", *priorities)):
        queue, message = found
        try:
            return queue, read_pointer(message)
        except BadMessage as error:
            tell_dropped(queue, message, error)
    return None


def tell_dropped(queue: str, message: bytes, error: BadMessage) -> None:
    """Log that a message is not ours; its content is not shown."""
    log.warning("action=bad_message queue=%s A message of %d bytes was dropped: %s.", queue, len(message), error)


# -- what a message must be -----------------------------------------------------------------------------------------


class BadMessage(ValueError):
    """The message is not one that `publish` sends; the text says why, and shows nothing of it."""


@dataclass(frozen=True)
class Pointer:
    """What a message says."""

    job: str
    chunk: int
    #: By the job table's clock.
    published_at: float


class _Part(BaseModel):
    # What Celery adds in other versions is ignored: nothing but the pointer gets through (`transport.py`).
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _Headers(_Part):
    task: Literal["gradcam.explain_chunk"]  # TASK
    gradcam_published_at: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    # Whoever set these wants what we do not do: wait, expire, limit, group, unpack.
    eta: None = None
    expires: None = None
    timelimit: tuple[None, None] | None = None
    group: None = None
    chord: None = None
    compression: None = None


class _DeliveryInfo(_Part):
    routing_key: str


class _Properties(_Part):
    body_encoding: Literal["base64"]
    delivery_info: _DeliveryInfo
    delivery_tag: str


class _Envelope(_Part):
    content_type: Annotated[Literal["application/json"], Field(alias="content-type")]
    content_encoding: Annotated[Literal["utf-8"], Field(alias="content-encoding")]
    headers: _Headers
    properties: _Properties
    body: str


class _Embed(_Part):
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


_Args = tuple[str, Annotated[int, Field(ge=0, lt=2**31)]]
_Kwargs = Annotated[dict[str, Any], Field(max_length=0)]
_BODY: TypeAdapter[tuple[_Args, _Kwargs, _Embed]] = TypeAdapter(
    tuple[_Args, _Kwargs, _Embed], config=ConfigDict(strict=True)
)


def read_pointer(message: bytes) -> Pointer:
    """Read a message as it lies in a queue: anybody's bytes until they have passed here.

    Raises:
        BadMessage: It is not exactly what `publish` sends.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"it is larger than {MAX_MESSAGE_BYTES} bytes")
    try:
        envelope = _Envelope.model_validate_json(message)
    except ValidationError as error:
        raise BadMessage(_why(error, ())) from None
    try:
        (job, chunk), _, _ = _BODY.validate_json(b64decode(envelope.body, validate=True))
    except ValidationError as error:
        raise BadMessage(_why(error, ("body",))) from None
    except ValueError:  # binascii's among them
        raise BadMessage("its body is not base64") from None
    if not is_job_name(job):
        raise BadMessage("its job has a name that no job has")
    return Pointer(job, chunk, envelope.headers.gradcam_published_at)


def _why(error: ValidationError, outer: tuple[str, ...]) -> str:
    """The first thing that is wrong, by its place: places are ours, values are anybody's."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, (*outer, *problem["loc"])))
    if problem["type"] == "json_invalid":
        return f"its {place} is not JSON" if place else "it is not JSON"
    return f"its {place} is not as we send it" if place else "it is no envelope"
