"""The Celery application that both sides share: it carries pointers (job, chunk), nothing else.

A pointer may be lost, doubled, late or forged; the job table makes all of that harmless. The reason for each setting
stands beside it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from celery import Celery
from kombu import Queue

from producer.jobs.keys import QUEUE_PREFIX

if TYPE_CHECKING:
    import redis

TASK = "gradcam.work"
#: Read in this order; `recovery` holds what a dead process left.
QUEUES = ("recovery", "high", "default", "low")
_PUBLISHED_AT = "gradcam_published_at"


def make_app(redis_url: str) -> Celery:
    """Make the Celery application."""
    app = Celery("gradcam", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_queues=[Queue(name) for name in QUEUES],
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
        # CUDA cannot be used after a fork; a spawned child needs longer than 4 s to import torch.
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,
        worker_concurrency=1,
        # Work that is hoarded behind a slow chunk helps nobody.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        # The log shows the task's own sentences, not its arguments.
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": QUEUE_PREFIX,
            # Classes of service are queues read in order; Celery's own priorities would split each into four lists.
            "queue_order_strategy": "priority",
            "priority_steps": [0],
            # Half-open connections are noticed.
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    )
    return app


def publish(app: Celery, job: str, chunk: int, *, queue: str, published_at: float) -> None:
    """Send a pointer to a chunk; `published_at` is the time the job table gave for it."""
    app.send_task(
        TASK, args=(job, chunk), queue=queue, headers={_PUBLISHED_AT: published_at}, ignore_result=True, argsrepr=""
    )


def oldest_published_at(client: redis.Redis, queue: str) -> float | None:
    """The publish time of the message that will be read next, or None when the queue is empty.

    A message that is not ours, or is damaged, counts as published at 0: it hides no lost pointer for longer than it
    takes a worker to drop it.
    """
    message = cast("bytes | None", client.lindex(QUEUE_PREFIX + queue, -1))
    if message is None:
        return None
    try:
        return float(json.loads(message)["headers"][_PUBLISHED_AT])
    except (ValueError, KeyError, TypeError):
        return 0.0
