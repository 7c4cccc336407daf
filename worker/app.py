"""The wiring of a worker's main process: settings, the Celery application, its task, reconciler and watchdog.

`worker/main.py` calls `start`; nothing happens when this module is imported. A child process, which owns the device, is
put together in `worker/child.py`: it alone imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from billiard.exceptions import WorkerLostError
from billiard.process import active_children
from celery import signals
from celery.exceptions import SecurityWarning

from producer.jobs.broker import celery_app, transport
from producer.jobs.model import release
from producer.jobs.model.errors import GradcamError, ServiceError, Unfit, WorkerError
from producer.jobs.model.redaction import redact_text
from producer.jobs.model.settings import Connections, read_both
from producer.jobs.model.text import SENTENCE_CHARS, shown
from producer.jobs.model.worker_record import WorkerFacts
from producer.jobs.store.bucket import Storage
from producer.jobs.table.redis_scripts import Scripts, make_redis_client
from producer.jobs.table.table import JobTable
from producer.jobs.table.workers import WorkerRegistry
from worker import logs, tasks
from worker.models.registered import usable_names
from worker.recover.reconciler import Death, Reconciler
from worker.recover.watchdog import Watchdog
from worker.settings import WorkerSettings
from worker.supervise import run_dirs
from worker.supervise.grace import PARENT_SHARE, Grace
from worker.supervise.health import PRELOADED_WITHIN_S, READY_WITHIN_S, Health, gone_from

if TYPE_CHECKING:
    from celery import Celery

    from worker.chunks.consumer import ChunkConsumer

log = logging.getLogger(__name__)

#: The exit code of a process that cannot get what it needs; before it was ever ready, its launcher counts it.
STARTUP_FAILED = 78
#: A main process whose children crash so often in a row while they start ends: Celery would start them for ever.
_STARTS = 3


def start() -> Celery:
    """Read the settings and make this worker's Celery application, with its task and with what follows its signals.

    Raises:
        SettingsError: Names every missing, wrong and misspelt setting at once.
    """
    connections, settings = read_both(Connections, WorkerSettings)
    # OpenCV reads it once, when the child imports it.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(settings.max_pixels)
    process = WorkerProcess(connections, settings)
    process.connect_signals()
    return process.app


class WorkerProcess:
    """One worker process, the main one or its child: Celery tells by its signals which of them it is.

    Args:
        connections: Where Redis and the store are.
        settings: The worker's.
    """

    def __init__(self, connections: Connections, settings: WorkerSettings) -> None:
        self._connections, self._settings = connections, settings
        #: What is preloaded may have to be downloaded.
        self._ready_within_s = PRELOADED_WITHIN_S if settings.preload else READY_WITHIN_S
        self._health = Health(settings.health_stem)
        # Not asked of the system alone: a launcher that was killed meanwhile is our parent no more.
        self._parent = settings.launcher_pid or os.getppid()
        self._redis_is_fit = threading.Event()
        self._consumer: ChunkConsumer | None = None
        # The main process's, once it is ready; no watchdog where no launcher says where the child's files are.
        self._reconciler: Reconciler | None = None
        self._watchdog: Watchdog | None = None
        transport.hooks.polled, transport.hooks.connecting = self._health.polled, self._health.away
        self.app = celery_app.make_app(connections.redis_url.get_secret_value())
        # A spawned child starts from a pickled application without tasks; importing that module gives it ours.
        self.app.conf.include = ["worker.main"]
        # We wait for the first child ourselves; Celery's own watch, which begins after that, must not find it late.
        self.app.conf.worker_proc_alive_timeout = 2 * self._ready_within_s
        tasks.register(self.app, settings.name, self._consumer_of_process)

    def connect_signals(self) -> None:
        """From now on, what Celery tells of is answered."""
        if self._settings.drain_file is not None:
            # A launcher's process, from its first moment: Celery warns before it sets up logging, and so does a child.
            self._set_up_logging()
        signals.celeryd_init.connect(_say_nothing_raw, weak=False)
        signals.celeryd_after_setup.connect(_start_children_silently, weak=False)
        signals.setup_logging.connect(self._set_up_logging, weak=False)
        signals.worker_process_init.connect(self._child_starts, weak=False)
        signals.worker_process_shutdown.connect(self._child_stops, weak=False)
        signals.worker_ready.connect(self._main_starts, weak=False)
        signals.task_failure.connect(self._child_died, weak=False)
        signals.worker_shutdown.connect(self._main_stops, weak=False)

    def _set_up_logging(self, **_: Any) -> None:
        """Log sentences with a stable action name to stderr; Celery's own chatter only where it matters."""
        logs.set_up(self._settings.name, self._connections.log)
        # What it says of a dead child, with a traceback of its own pool, `_child_died` says in a sentence.
        logging.getLogger("celery.worker.request").setLevel(logging.CRITICAL)
        # `Task … received` and `… succeeded` a chunk say nothing that our own lines do not.
        for name in ("celery.worker.strategy", "celery.app.trace", "botocore.credentials", "multiprocessing"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Its warnings show whole addresses, and an address may hold a secret.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        # Containers run as root, and no message of ours is a pickle, which is what it warns of.
        warnings.filterwarnings("ignore", category=SecurityWarning)

    def _publish(self, queue: str, job: str, chunk: int, published_at: float) -> None:
        celery_app.publish(self.app, job, chunk, queue=queue, published_at=published_at, within_s=5)

    # -- the child -------------------------------------------------------------------------------------------------

    def _child_starts(self, **_: Any) -> None:
        """Import torch and open the device before the first message comes; the main process stays free of both."""
        self._health.begins()
        try:
            consumer = self._consumer_of_process()
            if self._settings.preload:
                self._health.preloads()
                consumer.preload(self._settings.preload)
        except Exception as error:  # whatever it is, this process can do nothing without what it needs
            self._cannot_start(error)
        self._set_up_logging()  # torch has brought handlers of its own
        self._health.ready()

    def _consumer_of_process(self) -> ChunkConsumer:
        if self._consumer is None:
            from worker.child import make_consumer  # the child only: it imports torch

            self._consumer = make_consumer(
                self._connections,
                self._settings,
                self._health,
                publish=self._publish,
                pop=lambda table: partial(celery_app.pop_message, table, self._settings.queues),
            )
        return self._consumer

    def _child_stops(self, **_: Any) -> None:
        if self._consumer is not None:
            self._consumer.stop()

    def _cannot_start(self, error: Exception) -> NoReturn:
        first = (str(error).splitlines() or [""])[0]
        unforeseen = shown(f"{type(error).__name__}: {redact_text(first)}", SENTENCE_CHARS)
        sentence = str(error) if isinstance(error, GradcamError) else unforeseen
        log.error("action=cannot_start This process cannot get what it needs: %s", sentence)
        self._health.startup_failed(f"it cannot get what it needs: {sentence}")
        with suppress(GradcamError):
            # Who looks at a job sees it, too.
            scripts = Scripts(make_redis_client(self._connections), patience_s=1)
            WorkerRegistry(scripts).report_problem(self._settings.name, sentence)
        os._exit(STARTUP_FAILED)

    # -- the main process ------------------------------------------------------------------------------------------

    def _main_starts(self, **_: Any) -> None:
        # Celery reads its first message after this.
        settings = self._settings
        # A Redis that is away just now must not leave this worker without its reconciler: it waits.
        table = JobTable(make_redis_client(self._connections))
        self._forget_dead(table)
        self._wait_until_ready()
        if settings.busy_files:
            self._watchdog = Watchdog(settings.busy_files, grace_s=settings.interval_s)
            self._watchdog.start()
        self._reconciler = Reconciler(
            table,
            Storage.from_settings(self._connections),
            partial(self._publish, "recovery"),
            publish=self._publish,
            who=settings.name,
            queues=settings.queues,
            networks=usable_names(),
            warnings=settings.fetch_policy.warnings(),
            interval_s=settings.interval_s,
            # A lost message is found as late as a lost lease: until then it may be on its way to a claim.
            grace_s=settings.lease_s,
            before_each=partial(self._look_around, table),
            facts=self._facts,
            leave=self._leave,
        )
        self._reconciler.start()
        if settings.drain_file is not None:
            Grace(settings.drain_files, settings.grace_s, PARENT_SHARE, _end_without_redis).start()
        log.info("action=ready The worker is ready.")

    def _facts(self) -> WorkerFacts:
        """Return what this process tells of itself; what its child does is in a file, as is all that a child tells."""
        settings = self._settings
        known = {
            "host": socket.gethostname()[:200], "launcher": settings.launcher, "device": settings.told_device,
            "version": release.own(),
        }  # fmt: skip
        try:
            return WorkerFacts(**{**json.loads(self._health.work() or "{}"), **known})
        except (ValueError, TypeError):  # a name of a network that is too long, say
            return WorkerFacts(**known)

    def _leave(self, asked: set[str]) -> bool:
        """Somebody asked this process, or its launcher, to finish and leave: the launcher sees it, and ends us.

        Returns:
            Whether the launcher could be told; a folder that is full or read-only may be mended.
        """
        files, settings = self._settings.drain_files, self._settings
        whole = settings.launcher in asked
        who = "this launcher" if whole else "this process"
        if not files:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            try:
                run_dirs.restore(files[0].parent)
                files[0 if whole else 1].touch()
            except (OSError, WorkerError) as error:
                log.warning(
                    "action=cannot_leave Somebody asked %s to finish and leave, and the launcher cannot be told (%s); "
                    "trying again. SIGTERM to the launcher ends all of its processes.",
                    who,
                    error,
                )
                return False
        log.info("action=asked_to_leave Somebody asked %s to finish and leave.", who)
        return True

    def _wait_until_ready(self) -> None:
        """Read no message before somebody can work at it: one that lies here for long counts as lost."""
        until = time.monotonic() + self._ready_within_s
        drain_file = self._settings.drain_file
        while drain_file is not None and not self._health.has("ready"):
            if drain_file.exists() or os.getppid() != self._parent:
                log.info("action=stopped This worker was stopped before it was ready.")
                os._exit(0)  # Celery would let the child import to its end first
            if self._health.has("startup_failed") or not active_children():
                _end("its child could not get what it needs")
            if time.monotonic() > until:
                self._health.fault(f"its child has not got ready within {self._ready_within_s:g} s")
                _end(f"its child has not got ready within {self._ready_within_s:g} s")
            time.sleep(0.05)

    def _look_around(self, table: JobTable) -> None:
        self._end_when_useless(table)
        self._forget_dead(table)

    def _forget_dead(self, table: JobTable) -> None:
        """Remove from Redis the processes that our launcher has seen end: nobody shall wait a minute for their word.

        One that is only slow has not ended, and is not among them.
        """
        if self._settings.drain_file is None:
            return
        for file in gone_from(self._settings.drain_file.parent):
            with suppress(ServiceError, OSError):  # the next time, or after the minute in which a silent one is alive
                table.registry.forget(file.stem)
                file.unlink(missing_ok=True)

    def _end_when_useless(self, table: JobTable) -> None:
        """End a worker that nobody can stop, as its launcher is gone, or that can do nothing."""
        drain_file = self._settings.drain_file
        if os.getppid() != self._parent:
            log.warning("action=orphaned The launcher is gone; this worker ends as well.")
            if drain_file is not None:
                with suppress(OSError, GradcamError):  # the child then ends with us, its chunks in flight
                    run_dirs.restore(drain_file.parent)
                    drain_file.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if self._health.has("startup_failed") or self._health.starts() > _STARTS:
            _end("no new child can get what it needs")
        self._end_where_redis_is_unfit(table)

    def _end_where_redis_is_unfit(self, table: JobTable) -> None:
        """A Redis that was away when the launcher looked may be one that cannot be worked with."""
        if self._redis_is_fit.is_set():
            return
        try:
            table.server.check(reads_queues=True, allow_eviction=self._connections.allow_eviction)
        except Unfit as error:
            self._health.fault(str(error))
            _end(str(error).rstrip("."))
        self._redis_is_fit.set()

    def _child_died(self, task_id: str, exception: BaseException, **_: Any) -> None:
        """Give a dead child's chunks to others now; nobody needs to wait for their leases to run out."""
        if not isinstance(exception, WorkerLostError):
            return
        log.warning("action=child_died The child's end: %s", exception)
        if self._watchdog is None or self._reconciler is None:
            return
        delivery = tasks.delivery_of(self._settings.name, task_id)
        for busy, weight in self._watchdog.diagnose(delivery, str(exception)):
            self._reconciler.report(
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

    def _main_stops(self, **_: Any) -> None:
        if self._reconciler is not None:
            self._reconciler.stop()


def _say_nothing_raw(**_: Any) -> None:
    """What Celery writes to the descriptor of stdout when it is told to stop, the launcher has said."""
    from celery.apps import worker  # no child needs it

    worker.safe_say = lambda *_, **__: None  # type: ignore[attr-defined]


def _start_children_silently(**_: Any) -> None:
    """A child writes lines of billiard's format where it finds this, before our format is set up in it."""
    os.environ.pop("_MP_FORK_LOGLEVEL_", None)


def _end(why: str) -> NoReturn:
    # Celery would start children for ever, and wait for them before it ends. Nothing is in flight; a child that hangs
    # is ended by the kernel, with us.
    log.error("action=startup_failed This worker ends: %s.", why)
    os._exit(STARTUP_FAILED)


def _end_without_redis(_within_s: float) -> None:
    # Nothing is in flight any more; Celery may wait for a Redis that does not answer.
    log.warning("action=stop_forced The time to stop is over, and Redis has not answered.")
    os._exit(0)
