"""The verbs of `gradcam-worker`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.jobs.model import release
from producer.jobs.model.errors import GradcamError, JobError, ServiceError, Unfit, UsageError, WorkerError
from producer.jobs.model.interrupt import INTERRUPTED, heard, wished
from producer.jobs.model.setting_files import held_in_file
from producer.jobs.model.terminal import out, out_json, out_table, say, say_bug, say_error, say_refused

if TYPE_CHECKING:
    from producer.jobs.model.results import Prediction
    from producer.jobs.model.settings import Connections

log = logging.getLogger(__name__)

#: What a job has and a trial of one image has no use for.
_NOT_TRIED = ("network", "explain", "raw", "pack", "queue")


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Stop it with SIGTERM or Ctrl-C: the current batch is finished, the rest goes to other workers. Exit codes: "
    "0 stopped, 2 usage or settings, 4 a driver or device is missing, no process could get ready, or Redis lacks what "
    "it takes.",
)
@click.version_option(release.own(), prog_name="gradcam-worker")
@click.option(
    "--devices",
    default="auto",
    show_default=True,
    help="auto (all GPUs, else the CPU), cpu, cuda or cuda:0,1. A GPU in MIG mode is used by its instances; cuda:0.1 "
    "is instance 1 of GPU 0.",
)
@click.option(
    "--processes-per-device",
    type=click.IntRange(1, 64),
    help="Processes on each device, or MIG instance.  [default: 2 on a GPU, 1 on the CPU, whose cores they share]",
)
@click.option(
    "--queues",
    help="The priorities to read, in this order; before them every worker reads `recovery`, which holds what dead "
    "processes left, whatever its priority.  [default: high,default,low]",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="NETWORK[=WEIGHTS]",
    help="Load a model before the first message is read; may be given several times.",
)
@click.option(
    "--metrics-port", type=click.IntRange(1, 65535), help="Serve metrics of all processes in Prometheus' format."
)
@click.option(
    "--metrics-address",
    default="127.0.0.1",
    show_default=True,
    help="Where to serve them; :: for whoever reaches this machine, 0.0.0.0 for whoever does by IPv4.",
)
@click.pass_context
def cli(
    context: click.Context,
    devices: str,
    processes_per_device: int | None,
    queues: str | None,
    preload: tuple[str, ...],
    metrics_port: int | None,
    metrics_address: str,
) -> None:
    """Work off jobs: supervised processes on each device, until stopped.

    Settings come from the environment: GRADCAM_REDIS_URL, GRADCAM_S3_*, AWS_* as for `gradcam`, and GRADCAM_WORKER_*.

    \b
    Examples:
      gradcam-worker
      gradcam-worker --devices cuda:0,1
      gradcam-worker --devices cuda:0.1 --processes-per-device 1
      gradcam-worker --devices cpu --processes-per-device 2
      gradcam-worker --preload resnet50 --preload vgg16=IMAGENET1K_V1
      gradcam-worker --queues high
      gradcam-worker --metrics-port 9101
      gradcam-worker check
      gradcam-worker networks
      gradcam-worker layers resnet50
      gradcam-worker try resnet50 --image cat.jpg
    """  # noqa: D301 - click reads the backspace
    if context.invoked_subcommand is None:
        try:
            code = _run(devices, processes_per_device, queues, preload, (metrics_address, metrics_port))
        except KeyboardInterrupt:
            # Its processes end as their launcher says, and there are none: to be stopped is how a worker ends.
            heard()
            log.info("action=stopped The launcher was asked to stop while no process ran, and ends.")
            code = 0
        sys.exit(code)


@cli.command("check", short_help="Say whether the workers of this stack are alive.")
@click.option(
    "--within-s",
    type=click.FloatRange(min=0, min_open=True),
    help="How old the last sign of life may be: a read of the queues that came back, or progress in a chunk.  "
    "[default: 60; with --live 1200]",
)
@click.option(
    "--live",
    is_flag=True,
    help="For liveness probes: all is well while one process lives, if only with waiting for Redis or the store.",
)
@click.option("--all", "of_all", is_flag=True, help="Also those that work for other stacks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list of the processes on stdout.")
def check_command(within_s: float | None, live: bool, of_all: bool, as_json: bool) -> None:
    """Say whether every worker process of this user on this machine is alive; for probes.

    Looked at are those of this stack, which work off the jobs of the Redis (host, port, database) of
    GRADCAM_REDIS_URL; where that is not set, or with --all, those of all stacks.

    A process is starting, idle, working or waiting for a server, and all is well (exit code 0); or faulty (it says
    itself what keeps it from working), silent or dead (exit code 1). No launcher at all is exit code 1, too. Where
    GRADCAM_WORKER_RUN_DIR or TMPDIR is set for the launcher, it has to be for the check.

    With --live exit code 1 says that only a restart can help: no process runs and has given a sign of life for 20 min.
    One that waits for Redis or the store, or says what is wrong with it, lives.

    \b
    Examples:
      gradcam-worker check
      gradcam-worker check --all
      gradcam-worker check --within-s 600
      gradcam-worker check --live --all
      gradcam-worker check --json | jq -r '.[] | select(.state == "faulty") | .problem'
    """  # noqa: D301 - click reads the backspace
    from worker.supervise.check import ALIVE, SILENT_AFTER_S, STUCK_AFTER_S, check, live_sentence, of_stack, sentence
    from worker.supervise.process_list import stack_of

    # A probe needs no settings, and has to be fast.
    run_dir = os.environ.get("GRADCAM_WORKER_RUN_DIR")
    stack = "" if of_all else stack_of(_redis_url())
    try:
        there = check(Path(run_dir) if run_dir else None, within_s or (STUCK_AFTER_S if live else SILENT_AFTER_S))
    except WorkerError as error:
        say_error(error)
        sys.exit(1)
    found = of_stack(there, stack)
    if live:
        healthy = any(process.lives for process in found)
    else:
        healthy = bool(found) and all(process.state in ALIVE for process in found)
    if as_json:
        out_json(json.dumps([asdict(process) for process in found], indent=1))
    else:
        others = sorted({one.stack for one in there} - {one.stack for one in found})
        (out if healthy else say)(live_sentence(found) if live and found else sentence(found, others, stack))
    sys.exit(0 if healthy else 1)


def _redis_url() -> str:
    """Return the address of Redis as the settings have it; empty where nothing can be read of it."""
    try:
        return held_in_file("GRADCAM_REDIS_URL") or os.environ.get("GRADCAM_REDIS_URL", "")
    except ValueError:
        # No worker starts with such a setting; whichever run are looked at.
        return ""


@cli.command("networks", short_help="List the networks that can be explained.")
@click.option("--timm", is_flag=True, help="Also those of timm, more than a thousand.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def networks_command(timm: bool, as_json: bool) -> None:
    """List the networks: input size in px, classes, family, where each comes from, and weights.

    A * marks weights that need no download. Networks of one's own come last, with their functions; making each of them
    takes its time.

    \b
    Examples:
      gradcam-worker networks
      gradcam-worker networks --timm --json | jq -r '.[] | select(.at_hand != []) | .name'
    """  # noqa: D301 - click reads the backspace
    _need_worker_packages()
    from worker.models.architectures import catalog

    found = catalog(with_timm=timm)
    if as_json:
        out_json(json.dumps([asdict(network) for network in found], indent=1))
        return
    rows = [("NAME", "INPUT", "CLASSES", "FAMILY", "FROM", "WEIGHTS")]
    for network in found:
        weights = " ".join(f"{name}*" if name in network.at_hand else name for name in network.weights)
        name = f"{network.name} ({', '.join(network.aliases)})" if network.aliases else network.name
        classes, family = str(network.classes or "-"), network.family or "-"
        rows.append((name, _by(network.size), classes, family, network.source, weights))
    out_table(rows)
    for network in found:
        if network.problem:
            say(f"Warning: {network.problem}")


@cli.command("layers", short_help="List the layers of a network.")
@click.argument("network")
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def layers_command(network: str, as_json: bool) -> None:
    """List what runs in NETWORK, in the order in which it ends: name, kind, shape of the output, and of its maps.

    A name in a row with MAPS (channels x height x width) can be given as a layer; marked are those of `last-conv` and
    `last-features`. What runs more than once in a forward pass has no maps.

    \b
    Examples:
      gradcam-worker layers densenet121
      gradcam-worker layers timm/vit_small_patch16_224
      gradcam-worker layers vgg16 --json | jq -r '.[] | select(.last_conv) | .name'
    """  # noqa: D301 - click reads the backspace
    _need_worker_packages()
    from worker.models.layers import listed, shortcut_note
    from worker.models.networks import survey_of

    try:
        seen = survey_of(network)
        found = listed(seen)
    except JobError as error:
        raise UsageError(str(error)) from None
    if as_json:
        out_json(json.dumps([asdict(layer) for layer in found], indent=1))
        return
    rows = [("NAME", "KIND", "OUTPUT", "MAPS", "")]
    for layer in found:
        marks = [
            name for name, is_it in (("last-conv", layer.last_conv), ("last-features", layer.last_features)) if is_it
        ]
        rows.append((layer.name, layer.kind, _by(layer.shape), _by(layer.maps), " ".join(marks)))
    out_table(rows)
    if note := shortcut_note(seen):
        say(f"Note: {note}")


class _Try(click.Command):
    """The command; what decides a picture is typed as for a job, and comes from the same model."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters: the network, what belongs to the command alone, and what a job has too."""
        first, *own, last = super().get_params(ctx)
        return [first, *own, *self._of_jobs, last]

    @cached_property
    def _of_jobs(self) -> list[click.Option]:
        # Not above: a probe loads this module every few seconds.
        from producer.jobs.model.click_options import click_options
        from producer.jobs.model.spec import JobSpec

        return click_options(JobSpec, without=_NOT_TRIED)


@cli.command("try", cls=_Try, short_help="Explain one image here, without Redis and S3.")
@click.argument("network")
@click.option("--image", required=True, metavar="FILE", help="The picture.")
@click.option(
    "--weight-path",
    metavar="FILE|NAME",
    help="A file of weights, a name of weights, or random.  [default: the network's own]",
)
@click.option("--labels", metavar="FILE", help="A file of class names, one a line, as in a job.")
@click.option("--output-dir", default="results", show_default=True, metavar="FOLDER", help="Where pictures go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line on stdout.")
def try_command(
    network: str,
    image: str,
    weight_path: str | None,
    labels: str | None,
    output_dir: str,
    as_json: bool,
    **typed: Any,
) -> None:
    """Explain one image with NETWORK on the CPU, and write its pictures.

    It is the first thing to do with a model of one's own. What does not fit is told in a sentence. Notes say what
    works, and is perhaps not what was meant.

    \b
    Examples:
      gradcam-worker try efficientnet_lite0 --image cat.jpg
      gradcam-worker try resnet50 --image cat.jpg --weight-path cats.pth --layer-name layer3
      GRADCAM_WORKER_NETWORKS=lungs=mylab.models:build_lungs gradcam-worker try lungs --image scan.png --json
    """  # noqa: D301 - click reads the backspace
    _need_worker_packages()
    has_class = typed["class_id"] is not None or typed["class_name"] is not None
    if typed["class_id"] is not None and typed["class_name"] is not None:
        raise UsageError("give --class-id or --class-name, not both")
    if has_class and (typed["classes"] is not None or typed["top_k"] > 1):
        raise UsageError("--classes and --top-k take the most likely classes: leave --class-id and --class-name out")
    if weight_path is not None and "://" in weight_path:
        raise UsageError("try reads weights of this machine: download them, and give the file by --weight-path")
    from producer.jobs.model.spec import check_threshold
    from producer.jobs.model.typed_spec import make_spec, read_labels, spec_fields

    names = read_labels(None if labels is None else Path(labels))
    how = make_spec(labels=names, **spec_fields(**typed))
    check_threshold(how)
    from worker.trial import run_trial

    found = run_trial(network, Path(image), Path(output_dir), weights=weight_path, how=how)
    if as_json:
        out_json(json.dumps(found.as_json()))
        return
    lines = [
        ("network", found.network),
        ("reads", found.preprocessing),
        ("weights", found.weights),
        ("layer", found.layer),
        *(("class", _likely(each)) for each in found.classes),
        *([("explains", "what lowers the output of the class")] if found.direction == "down" else []),
        ("ReLUs", f"{found.guided_relus} guided"),
        *(("picture", path) for path in found.pictures.values()),
        *(("note", note) for note in found.notes),
    ]
    out_table(lines)


def _likely(one: Prediction) -> str:
    """A class with its probability, or its output where that is no probability."""
    named = one.class_name if one.class_name is not None else f"class {one.class_id}"
    return f"{named}, {one.score:.6g}" if one.probability is None else f"{named}, {one.probability:.1%}"


def _by(shape: Sequence[int] | None) -> str:
    return "x".join(map(str, shape)) if shape else "-"


def _run(
    devices: str,
    processes_per_device: int | None,
    queues: str | None,
    preload: Sequence[str],
    metrics: tuple[str, int | None],
) -> int:
    from producer.jobs.model.settings import Connections, read_both
    from worker import logs
    from worker.settings import WorkerSettings
    from worker.supervise.launcher import NAME, Launcher
    from worker.supervise.process_list import stack_of
    from worker.supervise.process_plan import plan

    _need_worker_packages()
    if preload:
        # Worker processes read it there.
        os.environ["GRADCAM_WORKER_PRELOAD"] = ",".join(preload)
    connections, settings = read_both(Connections, WorkerSettings)
    _check_preloaded(settings.preload)
    read_queues = settings.queues if queues is None else _queues(queues)
    planned = plan(devices, processes_per_device)
    # What is wrong with what was typed has been told, as every command tells it; from here on all lines are the log's.
    logs.set_up(NAME, connections.log)
    try:
        _check_redis(connections)
        return Launcher(
            planned,
            grace_s=settings.grace_s,
            queues=read_queues,
            run_dir=settings.run_dir,
            metrics=metrics,
            stack=stack_of(connections.redis_url.get_secret_value()),
            weights_dir=settings.weights_cache_dir,
            warnings=settings.fetch_policy.warnings(),
        ).run()
    except GradcamError as error:
        log.error("action=ended The launcher ends: %s", error)  # noqa: TRY400 - a sentence says it all
        return _code(error)


def _check_redis(connections: Connections) -> None:
    """Refuse a Redis that the workers cannot use; each process waits for one that is only away.

    Raises:
        Unfit: Redis lacks rights, drops jobs, or is of another kind.
    """
    from producer.jobs.table.redis_scripts import Scripts, make_redis_client
    from producer.jobs.table.redis_server import Server

    if unchecked := connections.redis.unchecked:
        log.warning("action=tls_unchecked %s", unchecked)
    try:
        server = Server(Scripts(make_redis_client(connections), patience_s=0))
        server.check(reads_queues=True, allow_eviction=connections.allow_eviction)
    except Unfit:
        raise
    except ServiceError as error:
        log.warning("action=redis_away %s", error)


def _queues(text: str) -> tuple[str, ...]:
    from worker.settings import checked_queues

    try:
        return checked_queues([name.strip() for name in text.split(",") if name.strip()])
    except ValueError as error:
        raise UsageError(f"--queues {error}") from None


def _check_preloaded(names: Sequence[str]) -> None:
    """Refuse a mistyped name here, once, and not in each process. Raises UsageError."""
    if not names:
        return  # importing torch takes seconds
    from worker.models.networks import check_names

    for name in names:
        network, _, weights = name.partition("=")
        try:
            check_names(network, weights or None)
        except (JobError, WorkerError) as error:
            raise UsageError(f"--preload {name}: {error}") from None


def _need_worker_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "torchvision", "cv2", "numpy") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not installed: this is the light client; `pip install 'gradcam-queue[worker]'`"
        )


def _code(error: GradcamError) -> int:
    return 2 if isinstance(error, UsageError) else 4


def run() -> int:  # noqa: PLR0911 - a line a way to end
    """Run the command; the one place where errors become sentences and exit codes."""
    try:
        return int(cli(standalone_mode=False) or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        say_refused(error)
        return 2
    except GradcamError as error:
        say_error(error)
        return _code(error)
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if wished():
            say("interrupted")
            return INTERRUPTED
        if sys.excepthook is not sys.__excepthook__:
            raise  # the log's, once it is set up
        say_bug(error)
        return 70
