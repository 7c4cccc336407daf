"""The `gradcam-worker` command."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import click

from producer.jobs.errors import GradcamError, UsageError


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Stop it with SIGTERM or Ctrl-C: the batch in hand is finished, the rest goes to other workers.",
)
@click.version_option(package_name="gradcam-queue", prog_name="gradcam-worker")
@click.option(
    "--devices", default="auto", show_default=True, help="auto (all GPUs, else the CPU), cpu, cuda or cuda:0,1."
)
@click.option(
    "--processes-per-device", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes on each device."
)
@click.pass_context
def cli(context: click.Context, devices: str, processes_per_device: int) -> None:
    """Work off jobs: one supervised process on each device, until stopped.

    Settings come from the environment: GRADCAM_REDIS_URL, GRADCAM_S3_*, AWS_* as for `gradcam`, and GRADCAM_WORKER_*.

    \b
    Examples:
      gradcam-worker
      gradcam-worker --devices cuda:0,1
      gradcam-worker --devices cpu --processes-per-device 2
    """  # noqa: D301 - click reads the escape
    if context.invoked_subcommand is None:
        sys.exit(_run(devices, processes_per_device))


def _run(devices: str, processes_per_device: int) -> int:
    from producer.jobs.settings import Connections, read_both
    from worker.launcher import Launcher, plan
    from worker.settings import WorkerSettings

    _need_worker_packages()
    _, settings = read_both(Connections, WorkerSettings)
    slots = plan(devices, processes_per_device)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launcher %(levelname)s %(message)s")
    return Launcher(slots, grace_s=settings.grace_s).run()


def _need_worker_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "torchvision", "cv2", "numpy") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not installed: this is the light client; `pip install 'gradcam-queue[worker]'`"
        )


def main() -> NoReturn:
    """Run the command; the one place where errors become sentences and exit codes."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except GradcamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 4)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)


if __name__ == "__main__":
    main()
