"""The `gradcam` command: data on stdout, talk on stderr, errors in one sentence.

Heavy imports stand inside the functions that need them, so that `gradcam --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from producer.console import (
    Examples,
    end,
    examples,
    exit_code_of,
    follow_job,
    make_client,
    make_talk,
    one_line,
    summary_of,
)
from producer.control_cli import COMMANDS
from producer.jobs.errors import GradcamError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from producer.client import Client
    from producer.sources import Source

USAGE, SERVICE, BUG, INTERRUPTED = 2, 4, 70, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gradcam-queue", prog_name="gradcam")
def cli() -> None:
    """Show where a convolutional network looked, for as many images as you have.

    Settings come from the environment: GRADCAM_REDIS_URL, GRADCAM_S3_BUCKET, GRADCAM_S3_ENDPOINT_URL,
    GRADCAM_S3_PREFIX and the usual AWS_*.
    """


@cli.command(
    cls=Examples,
    epilog=examples(
        "gradcam submit photos/ --network resnet50 --wait",
        "gradcam submit cat.jpg --network vgg16 --class-id 281 --output-dir results",
        "gradcam submit s3://bucket/a.jpg https://example.org/b.png --name audit-7 --json",
        "gradcam submit --image-path cat.jpg --network densenet121 --weight-path densenet121-a639ec97.pth --wait",
    ),
)
@click.argument("source", nargs=-1)
@click.option("--image-path", multiple=True, help="One more SOURCE, as the original program names it.")
@click.option(
    "--network",
    default="resnet50",
    show_default=True,
    help="resnet50, vgg16, timm/NAME, …; `gradcam-worker networks` lists them.",
)
@click.option(
    "--weight-path",
    help="Weights: a .pth, .pt or .safetensors file (uploaded once), its address, a torchvision weights name, or "
    "`random`.  [default: torchvision's own, downloaded by the worker]",
)
@click.option(
    "--layer-name",
    default="last-conv",
    show_default=True,
    help="`last-conv`, `last-features`, or any module by its name; several by commas are averaged.",
)
@click.option("--class-id", type=click.IntRange(min=0), help="Class to explain.  [default: the predicted one]")
@click.option("--class-name", help="The same by its name, such as `tabby`.")
@click.option(
    "--top-k", type=click.IntRange(1, 100), default=1, show_default=True, help="Explain so many most likely classes."
)
@click.option("--labels", help="A file of class names, one a line, for weights with classes of their own.")
@click.option(
    "--method",
    type=click.Choice(["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]),
    default="gradcam",
    show_default=True,
    help="How maps are made.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="bf16 is about twice as fast where the hardware has it; fp16 needs a GPU.",
)
@click.option(
    "--fit",
    type=click.Choice(["squash", "crop", "pad"]),
    default="squash",
    show_default=True,
    help="How a picture is brought to the network's size.",
)
@click.option(
    "--output-size",
    type=click.Choice(["input", "original"]),
    default="input",
    show_default=True,
    help="Pictures of the network's size, or of the original's.",
)
@click.option("--raw", is_flag=True, help="Also store map and guided gradient as numbers (.npz).")
@click.option(
    "--outputs", default="heatmap,cam,gb,cam_gb", show_default=True, help="Which of the four pictures, by commas."
)
@click.option("--format", type=click.Choice(["jpg", "png"]), default="jpg", show_default=True, help="Picture format.")
@click.option(
    "--chunk-size", type=click.IntRange(1, 512), default=64, show_default=True, help="Images a worker takes at once."
)
@click.option(
    "--queue", type=click.Choice(["high", "default", "low"]), default="default", show_default=True, help="Urgency."
)
@click.option("--name", help="Name of the job; submitting the same again under it continues instead of doubling.")
@click.option("--wait", is_flag=True, help="Stay until the job ends.")
@click.option("--output-dir", help="Stay until the job ends, then download the pictures to this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's status as JSON.")
def submit(
    source: tuple[str, ...],
    image_path: tuple[str, ...],
    outputs: str,
    wait: bool,
    output_dir: str | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Send images to be explained.

    SOURCE is an address (s3://, http://, https://, file://), an image file, or a folder of images. Local files are
    uploaded first.
    """
    if output_dir is not None and not output_dir:
        raise UsageError("--output-dir needs the name of a folder")
    from producer.sources import expand

    # What was typed is looked at before the settings are: it is nearer to the one who typed it.
    images = expand([*source, *image_path])
    client, talk = make_client(), make_talk()
    job = _submit(client, talk, images, outputs=_list(outputs), **parameters)
    if not wait and not output_dir:
        _print_submitted(client, job, as_json)
        talk.print(f"watch it: gradcam status {job} --watch")
        return
    if not as_json:
        click.echo(job)
    status = follow_job(client, talk, job)
    if output_dir:
        _download(client, talk, job, output_dir)
    elif status.done:
        talk.print(f"the pictures: gradcam results {job} --output-dir results")
    end(status, as_json, talk)


@cli.command(
    cls=Examples, epilog=examples("gradcam status JOB", "gradcam status JOB --watch", "gradcam status JOB --json")
)
@click.argument("job")
@click.option("--watch", is_flag=True, help="Show progress until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(job: str, watch: bool, as_json: bool) -> None:
    """Say where a job stands."""
    client, talk = make_client(), make_talk()
    found = follow_job(client, talk, job) if watch else client.status(job)
    click.echo(found.model_dump_json() if as_json else summary_of(found))
    sys.exit(exit_code_of(found))


@cli.command(name="list", cls=Examples, epilog=examples("gradcam list", "gradcam list --limit 100 --json"))
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_jobs(limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    found = make_client().list(limit=limit)
    if as_json:
        click.echo(json.dumps([job.model_dump(mode="json") for job in found]))
        return
    if not found:
        make_talk().print("no jobs yet: gradcam submit photos/")
        return
    from rich.console import Console

    from producer.watch import table

    # Ids are there to be copied: a line is never cut, however narrow the terminal.
    Console(width=200, markup=False, highlight=False).print(table(found), crop=False)


@cli.command(cls=Examples, epilog=examples("gradcam failures JOB", "gradcam failures JOB --json | jq .item.uri"))
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an image.")
def failures(job: str, as_json: bool) -> None:
    """List the images of a job that failed, and why."""
    for failure in make_client().failures(job):
        if as_json:
            click.echo(failure.model_dump_json(exclude_none=True))
        else:
            named = failure.item.id or failure.item.uri
            click.echo(
                "\t".join(one_line(text) for text in (str(failure.index), failure.reason, named, failure.message))
            )


@cli.command(
    cls=Examples,
    epilog=examples("gradcam results JOB --output-dir results", "gradcam results JOB --json > results.jsonl"),
)
@click.argument("job")
@click.option("--output-dir", help="Download the pictures to this folder.  [default: results, without --json]")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON an image.")
def results(job: str, output_dir: str | None, as_json: bool) -> None:
    """Download a job's pictures, or print what is known of each image."""
    if output_dir is not None and not output_dir:
        raise UsageError("--output-dir needs the name of a folder")
    client, talk = make_client(), make_talk()
    if as_json:
        for result in client.results(job):
            click.echo(result.model_dump_json(exclude_none=True))
    if output_dir or not as_json:
        _download(client, talk, job, output_dir or "results")


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command; the one place where errors become sentences and exit codes."""
    # A submission that is stopped by any means tidies up after itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    sys.exit(run(lambda: cli(standalone_mode=False)))


def run(command: Callable[[], Any]) -> int:  # noqa: PLR0911 - a line a way to end
    """Call a command and turn what it raises into a sentence on stderr and an exit code."""
    try:
        return int(command() or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except UsageError as error:
        return _say(error, USAGE)
    except GradcamError as error:
        return _say(error, SERVICE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; Python must not complain about stdout while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(f"the output cannot be written ({error.strerror or error})", USAGE)
    except Exception as error:
        if _is_redis(error):
            return _say(f"Redis cannot be used any more ({type(error).__name__}): try again when it is back", SERVICE)
        click.echo(f"Error: this is a bug of gradcam-queue, please report it with what follows ({error})", err=True)
        sys.excepthook(type(error), error, error.__traceback__)
        return BUG


def _say(error: object, code: int) -> int:
    click.echo(f"Error: {error}", err=True)
    return code


def _is_redis(error: BaseException) -> bool:
    # By name: an error path must not import what the happy path did without.
    modules = {type(e).__module__.split(".")[0] for e in (error, error.__cause__) if e is not None}
    return bool(modules & {"redis", "kombu"})


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _submit(client: Client, talk: Console, images: list[Source], **parameters: Any) -> str:
    try:
        return _send(client, talk, images, **parameters)
    except KeyboardInterrupt:
        name = parameters.get("name")
        talk.print(
            f"continue with the same command and --name {name}" if name else "the job is given up: submit it again"
        )
        raise


def _send(client: Client, talk: Console, images: list[Source], **parameters: Any) -> str:
    if not talk.is_terminal:
        return client.submit(images, waiting=talk.print, **parameters)
    from rich.progress import Progress

    with Progress(console=talk, transient=True) as bar:
        task = bar.add_task("sending", total=None)
        return client.submit(
            images,
            progress=lambda sent, total: bar.update(task, completed=sent, total=total),
            waiting=lambda sentence: bar.update(task, description=sentence),
            **parameters,
        )


def _print_submitted(client: Client, job: str, as_json: bool) -> None:
    click.echo(client.status(job).model_dump_json() if as_json else job)


def _download(client: Client, talk: Console, job: str, output_dir: str) -> None:
    files = client.download(job, output_dir)
    talk.print(f"{len(files)} pictures in {output_dir}")


if __name__ == "__main__":
    main()
