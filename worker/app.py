"""The worker's wiring, in one place: settings, connections, task, reconciler. `celery -A worker.app` runs it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

from billiard.exceptions import WorkerLostError
from billiard.process import active_children
from celery import signals

from producer.jobs.broker import celery_app, transport
from producer.jobs.model.errors import GradcamError, Unfit
from producer.jobs.model.settings import Connections, read_both
from producer.jobs.store.bucket import Storage
from producer.jobs.table.redis_scripts import Scripts, make_redis_client
from producer.jobs.table.table import JobTable
from producer.jobs.table.workers import WorkerRegistry
from worker import tasks
from worker.recover.reconciler import Death, Reconciler
from worker.recover.watchdog import Watchdog
from worker.settings import WorkerSettings
from worker.supervise import run_dirs
from worker.supervise.grace import PARENT_SHARE, Grace
from worker.supervise.health import PRELOADED_WITHIN_S, READY_WITHIN_S, Health

if TYPE_CHECKING:
    from worker.chunks.consumer import Work

log = logging.getLogger(__name__)

#: The exit code of a process that cannot get what it needs; before it was ever ready, its launcher counts it.
STARTUP_FAILED = 78
#: A main process whose children crash so often in a row while they start ends: Celery would start them for ever.
_STARTS = 3

connections, settings = read_both(Connections, WorkerSettings)
# OpenCV reads it once, when the child imports it.
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
#: What is preloaded may have to be downloaded.
_READY_WITHIN_S = PRELOADED_WITHIN_S if settings.preload else READY_WITHIN_S
health = Health(settings.health_stem)
transport.hooks.polled, transport.hooks.connecting = health.polled, health.away
app = celery_app.make_app(connections.redis_url.get_secret_value())
# A spawned child starts from a pickled application without tasks; importing this module gives it ours.
app.conf.include = ["worker.app"]
# We wait for the first child ourselves; Celery's own watch, which begins after that, must not find it late.
app.conf.worker_proc_alive_timeout = 2 * _READY_WITHIN_S
_parent = os.getppid()
_redis_is_fit = threading.Event()
# The main process's, once it is ready; no watchdog where no launcher says where the child's file is.
_at_work: list[tuple[Reconciler, Watchdog | None]] = []


def _publish(name: str, job: str, chunk: int, published_at: float) -> None:
    celery_app.publish(app, job, chunk, queue=name, published_at=published_at, within_s=5)


def _republish(job: str, chunk: int, published_at: float) -> None:
    _publish("recovery", job, chunk, published_at)


@cache
def _work_of_process() -> Work:
    from worker.chunks.consumer import Work  # the child only: it imports torch

    storage = Storage.from_settings(connections, connections=2 * settings.io_threads)
    # A Redis that is away just now is no fault of this process: its first chunk waits for it.
    table = JobTable(make_redis_client(connections))
    return Work(table, storage, settings, health, _publish, partial(celery_app.pop_message, table, settings.queues))


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


def _end_when_useless() -> None:
    """A worker whose launcher is gone is one that nobody can stop; one whose children cannot start can do nothing."""
    if os.getppid() != _parent:
        log.warning("action=orphaned The launcher is gone; this worker ends as well.")
        if settings.drain_file is not None:
            with suppress(OSError, GradcamError):  # the child then ends with us, its chunk in hand
                run_dirs.restore(settings.drain_file.parent)
                settings.drain_file.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    if health.has("startup_failed") or health.starts() > _STARTS:
        _end("no new child can get what it needs")


def _end_where_redis_is_unfit(table: JobTable) -> None:
    """A Redis that was away when the launcher looked may be one that cannot be worked with."""
    if _redis_is_fit.is_set():
        return
    try:
        table.server.check(reads_queues=True, allow_eviction=connections.allow_eviction)
    except Unfit as error:
        health.fault(str(error))
        _end(str(error).rstrip("."))
    _redis_is_fit.set()


def _end(why: str) -> NoReturn:
    # Celery would start children for ever, and wait for them before it ends. Nothing is in hand; a child that hangs is
    # ended by the kernel, with us.
    log.error("action=startup_failed This worker ends: %s.", why)
    os._exit(STARTUP_FAILED)


@signals.worker_process_init.connect
def _get_ready(**_: Any) -> None:
    """Import torch and look for the device before the first message comes; the main process stays free of both."""
    health.begins()
    try:
        work = _work_of_process()
        from worker.device.batches import open_device

        open_device(settings.device)
        if settings.preload:
            health.preloads()
            work.preload()
    except Exception as error:  # whatever it is, this process can do nothing without what it needs
        _cannot_start(error)
    health.ready()


def _cannot_start(error: Exception) -> NoReturn:
    first = (str(error).splitlines() or [""])[0]
    sentence = str(error) if isinstance(error, GradcamError) else f"{type(error).__name__}: {first}"
    log.error("action=cannot_start This process cannot get what it needs: %s", sentence)
    health.startup_failed(f"it cannot get what it needs: {sentence}")
    with suppress(GradcamError):
        # Who looks at a job sees it, too.
        WorkerRegistry(Scripts(make_redis_client(connections), patience_s=1)).report_problem(settings.name, sentence)
    os._exit(STARTUP_FAILED)


def _wait_until_ready() -> None:
    """Read no message before somebody can work at it: one that lies here for long counts as lost."""
    until = time.monotonic() + _READY_WITHIN_S
    while settings.drain_file is not None and not health.has("ready"):
        if settings.drain_file.exists():
            log.info("action=stopped This worker was stopped before it was ready.")
            os._exit(0)  # Celery would let the child import to its end first
        if health.has("startup_failed") or not active_children():
            _end("its child could not get what it needs")
        if time.monotonic() > until:
            health.fault(f"its child has not got ready within {_READY_WITHIN_S:g} s")
            _end(f"its child has not got ready within {_READY_WITHIN_S:g} s")
        time.sleep(0.05)


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    # Celery reads its first message after this.
    _wait_until_ready()
    # A Redis that is away just now must not leave this worker without its reconciler: it waits.
    table = JobTable(make_redis_client(connections))

    def look() -> None:
        _end_when_useless()
        _end_where_redis_is_unfit(table)

    reconciler = Reconciler(
        table,
        Storage.from_settings(connections),
        _republish,
        publish=_publish,
        who=settings.name,
        queues=settings.queues,
        interval_s=settings.interval_s,
        # A lost message is found as late as a lost lease: until then it may be on its way to a claim.
        grace_s=settings.lease_s,
        before_each=look,
    )
    reconciler.start()
    watchdog = None
    if settings.busy_files:
        watchdog = Watchdog(settings.busy_files, grace_s=settings.interval_s)
        watchdog.start()
    if settings.drain_file is not None:
        Grace(settings.drain_file, settings.grace_s, PARENT_SHARE, _end_at_last).start()
    _at_work.append((reconciler, watchdog))
    log.info("action=ready The worker is ready.")


def _end_at_last(_within_s: float) -> None:
    # Nothing is in hand any more; Celery may wait for a Redis that does not answer.
    log.warning("action=stop_forced The time to stop is over, and Redis has not answered.")
    os._exit(0)


@signals.task_failure.connect
def _child_died(task_id: str, exception: BaseException, **_: Any) -> None:
    """Give a dead child's chunk to others now; nobody needs to wait for its lease to run out."""
    if not isinstance(exception, WorkerLostError):
        return
    log.warning("action=child_died The child's end: %s", exception)
    delivery = tasks.delivery_of(settings.name, task_id)
    for reconciler, watchdog in _at_work:
        for busy, weight in watchdog.diagnose(delivery, str(exception)) if watchdog else ():
            reconciler.report(
                Death(
                    busy.job,
                    busy.chunk,
                    claim_id=busy.claim_id,
                    weight=weight,
                    marked=busy.marked,
                    life=busy.life,
                    loading=busy.loading,
                )
            )


@signals.worker_shutdown.connect
def _stop(**_: Any) -> None:
    for reconciler, _watchdog in _at_work:
        reconciler.stop()
