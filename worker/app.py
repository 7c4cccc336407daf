"""The worker's wiring, in one place: settings, connections, task, reconciler. `celery -A worker.app` runs it."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from billiard.exceptions import WorkerLostError
from celery import signals

from producer.jobs import queue
from producer.jobs.scripts import connect, make_client
from producer.jobs.settings import Connections, read_both
from producer.jobs.storage import Storage
from producer.jobs.table import JobTable
from worker import tasks
from worker.reconcile import Death, Reconciler
from worker.settings import WorkerSettings
from worker.watchdog import Watchdog

if TYPE_CHECKING:
    from worker.work import Work

log = logging.getLogger(__name__)

connections, settings = read_both(Connections, WorkerSettings)
#: A child that takes longer to import torch has died, and Celery starts another; what is preloaded may be downloaded.
_WARM_WITHIN_S = 3600.0 if settings.preload else 60.0
app = queue.make_app(connections.redis_url.get_secret_value())
# A spawned child starts from a pickled application without tasks; importing this module gives it ours.
app.conf.include = ["worker.app"]
app.conf.worker_proc_alive_timeout = _WARM_WITHIN_S
_parent = os.getppid()
# The main process's, once it is ready; no watchdog where no launcher says where the child's file is.
_at_work: list[tuple[Reconciler, Watchdog | None]] = []


def _publish(name: str, job: str, chunk: int, published_at: float) -> None:
    queue.publish(app, job, chunk, queue=name, published_at=published_at, within_s=5)


def _republish(job: str, chunk: int, published_at: float) -> None:
    _publish("recovery", job, chunk, published_at)


@cache
def _work_of_process() -> Work:
    from worker.work import Work  # the child only: it imports torch

    storage = Storage.from_settings(connections, connections=2 * settings.io_threads)
    table = JobTable(connect(connections))
    return Work(table, storage, settings, _republish, partial(queue.take, table, settings.queues))


tasks.register(app, settings.name, _work_of_process)


@signals.setup_logging.connect
def _log(**_: Any) -> None:
    """Log sentences with a stable action name to stderr; Celery's own chatter only where it matters."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {settings.name} %(levelname)s %(message)s")
    # What it says of a dead child, with a traceback of its own pool, `_child_died` says in a sentence.
    logging.getLogger("celery.worker.request").setLevel(logging.CRITICAL)
    # `Task … received` and `… succeeded` a chunk say nothing that our own lines do not.
    for name in ("celery.worker.strategy", "celery.app.trace", "botocore.credentials", "multiprocessing"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its warnings show whole addresses, and an address may hold a secret.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


def _end_when_orphaned() -> None:
    """A worker whose launcher is gone would be one that nobody can stop."""
    if os.getppid() != _parent:
        log.warning("action=orphaned The launcher is gone; this worker ends as well.")
        os.kill(os.getpid(), signal.SIGTERM)


@signals.worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Import torch before the first message comes; the main process stays free of it."""
    work = _work_of_process()
    try:
        work.preload()
    finally:
        if settings.warm_file is not None:
            settings.warm_file.touch()


def _wait_until_warm() -> None:
    """Read no message before somebody can work at it: one that lies here for long counts as lost."""
    until = time.monotonic() + _WARM_WITHIN_S
    while settings.warm_file is not None and not settings.warm_file.exists() and time.monotonic() < until:
        time.sleep(0.05)


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    # Celery reads its first message after this.
    _wait_until_warm()
    reconciler = Reconciler(
        # A Redis that is away just now must not leave this worker without its reconciler: it waits.
        JobTable(make_client(connections)),
        Storage.from_settings(connections),
        _republish,
        publish=_publish,
        who=settings.name,
        interval_s=settings.interval_s,
        # A lost message is found as late as a lost lease: until then it may be on its way to a claim.
        grace_s=settings.lease_s,
        on_orphaned=_end_when_orphaned,
    )
    reconciler.start()
    watchdog = None
    if settings.busy_files:
        watchdog = Watchdog(settings.busy_files, grace_s=settings.interval_s)
        watchdog.start()
    _at_work.append((reconciler, watchdog))
    log.info("action=ready The worker is ready.")


@signals.task_failure.connect
def _child_died(task_id: str, exception: BaseException, **_: Any) -> None:
    """Give a dead child's chunk to others now; nobody needs to wait for its lease to run out."""
    if not isinstance(exception, WorkerLostError):
        return
    log.warning("action=child_died The child's end: %s", exception)
    delivery = tasks.delivery_of(settings.name, task_id)
    for reconciler, watchdog in _at_work:
        for busy, weight in watchdog.inquest(delivery, str(exception)) if watchdog else ():
            reconciler.report(Death(busy.job, busy.chunk, claim_id=busy.claim_id, weight=weight, marked=busy.marked))


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    for reconciler, _watchdog in _at_work:
        reconciler.stop()
