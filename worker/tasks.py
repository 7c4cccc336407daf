"""The one Celery task. This module is also imported by the main process, which must stay free of torch and CUDA."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from producer.jobs.broker.celery_app import TASK
from worker.chunks.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery, Task

log = logging.getLogger(__name__)


class Consumer(Protocol):
    """What messages are given to."""

    def consume(self, message: Message, delivery: str) -> object:
        """Work at the chunk that a message lets us take; `worker/chunks/consumer.py`."""


def delivery_of(worker: str, task_id: str) -> str:
    """What all claim ids of a process begin with while it works; it never comes twice, and its parent knows it, too."""
    return f"{worker}/{task_id}"


def register(app: Celery, worker: str, consumer_of_process: Callable[[], Consumer]) -> None:
    """Give the application its task.

    Args:
        app: Celery's.
        worker: This worker's name.
        consumer_of_process: Called in the child process, for each message; gives the same each time.
    """

    @app.task(name=TASK, bind=True)
    def consume(self: Task[Any, Any], job: Any = None, chunk: Any = None) -> None:
        """Work at a chunk of the priority that the message was read from; the message is untrusted."""
        if not isinstance(job, str) or not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0:
            log.warning("action=bad_message A message that points to no chunk was dropped.")
            return
        queue = str((self.request.delivery_info or {}).get("routing_key", ""))
        consumer_of_process().consume(Message(queue, job, chunk), delivery_of(worker, str(self.request.id)))
