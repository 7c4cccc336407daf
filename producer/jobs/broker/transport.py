"""kombu's Redis transport, made to outlive whatever lies in our queues and whatever becomes of Redis.

Measured with kombu 5.7: a message that is not JSON, a key of another type and a Redis that is full each end the main
process of a worker. Here

- a message is read, checked and written anew before kombu sees it: nothing gets through but a job, a chunk and a time;
- no message that was delivered is noted down in Redis. kombu keeps a copy until it is acknowledged, so that another
  worker can take over. We acknowledge before we work; what a worker had read and not begun is still `waiting` in the
  job table, whose reconciler has it sent again. It saves two round trips a message, and reading writes nothing, so a
  full Redis is read from as ever;
- what Redis refuses is told in a sentence and tried again.
"""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty
from typing import Any

import kombu
from celery.app import amqp
from kombu.transport import redis as kombu_redis
from redis.exceptions import RedisError, ResponseError

from producer.jobs.broker.celery_app import TASK, BadMessage, Pointer, read_pointer, tell_dropped
from producer.jobs.model.redaction import redact_text

log = logging.getLogger(__name__)

#: How long a Redis that refuses to be read from is left alone, and after how long a key is looked at again.
REFUSED_PAUSE_S = 2.0
#: How often a refusal that lasts is told.
REFUSED_TELL_S = 60.0
#: Connections to read from are made no faster than this.
RECONNECT_AFTER_S = 1.0
#: A Redis that is away is tried again after 1 s, 2 s, … and never less often than this.
RECONNECT_WITHIN_S = 5


def _nothing() -> None:
    pass


@dataclass
class Hooks:
    """What a process calls at its reads; called from the thread that reads, so they must be short."""

    #: A read of the queues came back, with a message or without: once a second at least, while there is no work.
    polled: Callable[[], None] = _nothing
    #: Redis is about to be connected to, or is still waited for: once a second at least. Or it refuses to be read.
    connecting: Callable[[], None] = _nothing


#: This process's own; `worker/app.py` sets them.
hooks = Hooks()


def envelope(pointer: Pointer, queue: str) -> bytes:
    """Write a message for kombu and Celery; of the one that was read only the pointer is in it."""
    ticket = uuid.uuid4().hex
    body = [[pointer.job, pointer.chunk], {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]
    message = {
        "body": b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "task": TASK,
            "id": ticket,
            "argsrepr": "",
            "kwargsrepr": "",
            "ignore_result": True,
            "gradcam_published_at": pointer.published_at,
        },
        "properties": {
            "body_encoding": "base64",
            "correlation_id": ticket,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_tag": ticket,
            "priority": 0,
        },
    }
    return json.dumps(message).encode()


def checked(queue: bytes, message: bytes) -> tuple[bytes, bytes] | None:
    """Write a message that was read from a queue anew, or say why it is dropped."""
    try:
        return queue, envelope(read_pointer(message), queue.decode())
    except BadMessage as error:
        tell_dropped(queue.decode(), message, error)
        return None


class Client(kombu_redis.PrefixedStrictRedis):
    """Where messages come in."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """Read a reply; a message that is dropped looks to kombu like a queue that stayed empty."""
        reply = super().parse_response(connection, command_name, **options)
        return checked(*reply) if command_name == "BRPOP" and reply else reply


class Channel(kombu_redis.Channel):
    """Reads our queues."""

    # What was delivered is counted in memory, and not put back when the connection or the process ends.
    ack_emulation = False
    do_restore = False

    def __init__(self, *args: Any, **options: Any) -> None:
        #: Queues whose key is no list.
        self._unreadable: set[str] = set()
        self._look_at = self._read_at = self._tell_at = 0.0
        super().__init__(*args, **options)

    def _get_client(self) -> Any:
        return partial(Client, global_keyprefix=self.global_keyprefix)

    def _brpop_start(self, timeout: float | None = None) -> None:
        # Called before each read, and once a second while there is none.
        now = time.monotonic()
        if self._unreadable and now >= self._look_at:
            self._look()
        if now >= self._read_at:
            super()._brpop_start(timeout)  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            answer = super()._brpop_read(**options)  # type: ignore[misc]
        except Empty:
            hooks.polled()
            raise
        except ResponseError as error:
            # One key that is no list makes Redis refuse to read any of those behind it.
            known = self._unreadable
            self._look()
            if self._unreadable <= known:
                self._refused(error)
            raise Empty from None
        hooks.polled()
        return answer

    def _look(self) -> None:
        """Find the queues that cannot be read; the others are."""
        found = {queue for queue in self.active_queues if not self._is_list(queue)}
        for queue in found - self._unreadable:
            log.error(
                "action=bad_queue queue=%s The key %s%s is no list: it is left as it is, and only the other queues are "
                "read. Rename or delete it.", queue, self.global_keyprefix, queue,
            )  # fmt: skip
        for queue in self._unreadable - found:
            log.info("action=good_queue queue=%s It is read again.", queue)
        self._unreadable = found
        self._look_at = time.monotonic() + REFUSED_PAUSE_S
        self._update_queue_cycle()

    def _is_list(self, queue: str) -> bool:
        with self.conn_or_acquire() as client:
            try:
                client.llen(queue)
            except ResponseError as error:
                return not str(error).startswith("WRONGTYPE")
            return True

    def _update_queue_cycle(self) -> None:
        self._queue_cycle.update(  # type: ignore[attr-defined]
            [queue for queue in self.active_queues if queue not in self._unreadable]
        )

    def _refused(self, error: ResponseError) -> None:
        hooks.connecting()
        now = time.monotonic()
        self._read_at = now + REFUSED_PAUSE_S
        if now >= self._tell_at:
            self._tell_at = now + REFUSED_TELL_S
            log.error("action=redis_refuses Redis lets no queue be read (%s); trying again.", redact_text(str(error)))

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        # A message that came when nobody consumed any more: it goes back to the end it came from.
        queue = message.delivery_info["routing_key"]
        try:
            with self.conn_or_acquire() as client:
                client.rpush(queue, json.dumps(message.serializable()))
        except RedisError as error:
            log.warning(
                "action=requeue_failed queue=%s A message could not be put back (%s); the reconciler sends it again.",
                queue, type(error).__name__,
            )  # fmt: skip


class Transport(kombu_redis.Transport):
    """The transport; whatever Redis raises is a reason to connect again, never to end."""

    Channel = Channel
    connection_errors = (*kombu_redis.Transport.connection_errors, RedisError)


class Connection(kombu.Connection):
    """A connection by our transport, for `redis://` and `rediss://` addresses alike."""

    #: When this process made its last connection to read from.
    _made_at = -math.inf

    def get_transport_cls(self) -> type[Transport]:
        """Ours, whatever the address says."""
        return Transport

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Wait for Redis; Celery's own pauses grow to half a minute, idle time after each outage."""
        callback = options.pop("callback", None) or _nothing

        def waiting() -> None:
            hooks.connecting()
            callback()

        hooks.connecting()
        pauses = {"interval_start": 1, "interval_step": 1, "interval_max": RECONNECT_WITHIN_S}
        # What lets us connect and then cuts us off, again and again, is no reason to run in circles.
        time.sleep(max(0.0, Connection._made_at + RECONNECT_AFTER_S - time.monotonic()))
        made = super().ensure_connection(*args, **{**pauses, **options, "callback": waiting})
        Connection._made_at = time.monotonic()
        return made


class AMQP(amqp.AMQP):
    """What Celery makes connections with."""

    Connection = Connection
