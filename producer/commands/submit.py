"""`gradcam submit`: what to explain, and how."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from producer.commands.console import (
    Examples,
    client_from_env,
    end,
    examples,
    follow_job,
    make_talk,
    registered_networks,
)
from producer.commands.results import check_output_dir, download_to
from producer.jobs.model.errors import UsageError
from producer.jobs.model.terminal import out, out_json, out_lines
from producer.jobs.model.text import counted, shown

if TYPE_CHECKING:
    from producer.client.client import Client
    from producer.client.talk import Talk
    from producer.input.sources import Sources
    from producer.submission.plan import Plan

_THOUSAND = 1000


class _Submit(Examples):
    """The command; its options come from the models, which are imported when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters: the source, what the models define, and what belongs to the command alone."""
        source, *own = super().get_params(ctx)
        return [source, *self._of_models, *own]

    @cached_property
    def _of_models(self) -> list[click.Option]:
        from producer.input.read_options import ReadOptions
        from producer.jobs.model.click_options import click_options
        from producer.jobs.model.spec import JobSpec
        from producer.submission.options import SubmitOptions

        return click_options(JobSpec, SubmitOptions, ReadOptions)


@click.command(
    cls=_Submit,
    epilog=examples(
        "gradcam submit photos/ --network resnet50 --wait",
        "gradcam submit cat.jpg --network vgg16 --class-id 281 --output-dir results",
        "gradcam submit s3://bucket/a.jpg https://example.org/b.png --name audit-7 --json",
        "gradcam submit list.csv --uri-column url --class-column label --keep-columns split --network vgg16",
        "gradcam submit list.csv --label-column label --explain both",
        "gradcam results JOB --where correct=false --csv",
        "gradcam submit s3://bucket/train/ --include '*.jpg' --sample 10000 --seed 7 --dry-run",
        "find /data -name '*.png' | gradcam submit - --allow-local --queue high",
        "gradcam submit --image-path cat.jpg --network densenet121 --weight-path densenet121-a639ec97.pth --wait",
    ),
)
@click.argument("source", nargs=-1)
@click.option("--image-path", multiple=True, help="One more SOURCE, as the original program names it.")
@click.option(
    "--bad-rows",
    metavar="FILE",
    help="The file for rows that --skip-bad leaves out: .jsonl or .csv, which `gradcam submit` reads again.  "
    "[default: bad-rows.jsonl]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option("--wait", is_flag=True, help="Stay until the job ends.")
@click.option("--output-dir", help="Stay until the job ends, then download the pictures to this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's status as JSON.")
def submit(
    source: tuple[str, ...],
    image_path: tuple[str, ...],
    dry_run: bool,
    bad_rows: str | None,
    wait: bool,
    output_dir: str | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Send images to be explained.

    SOURCE is an address (s3://, http://, https://, file://), an image file, a folder or a pattern ('photos/**/*.jpg'),
    a prefix (s3://bucket/prefix/), - for standard input, or a list: .txt, .csv, .tsv, .jsonl (also .gz and .zst) or
    .parquet, here, on S3 or on the web. Local images are uploaded first.
    """
    check_output_dir(output_dir)
    from producer.commands.left_out import check_file, list_bad, tell_left_out
    from producer.input.sources import ReadOptions, open_sources
    from producer.jobs.model.options import parameters as parameters_of
    from producer.submission.spec_builder import check_typed

    if parameters["explain"] != "predicted" and not (parameters["label_column"] or parameters["label_from"]):
        raise UsageError(f"--explain {parameters['explain']} needs labels: give --label-column or --label-from folder")
    reading = ReadOptions(**{name: parameters.pop(name) for name in parameters_of(ReadOptions)})
    # What was typed is looked at before the settings are: it is nearer to the one who typed it.
    check_typed(reading, registered=registered_networks, **parameters)
    check_file(bad_rows, reading)
    with open_sources([*source, *image_path], reading, storage=lambda: client_from_env().storage) as sources:
        client, talk = client_from_env(), make_talk()
        list_bad(talk, sources, bad_rows, parameters, dry_run=dry_run)
        if dry_run:
            _show(client.plan(sources, **parameters), as_json)
            tell_left_out(talk, sources)
            return
        job = _submit(client, talk, sources, **parameters)
        tell_left_out(talk, sources)
    if not wait and not output_dir:
        _print_submitted(client, job, as_json)
        status = client.status(job)
        if status.ended:
            talk.print(f"it has ended already: {status.state}{f': {status.error}' if status.error else ''}")
        else:
            talk.print(f"watch it: gradcam status {job} --watch")
        return
    if not as_json:
        out(job)
    status = follow_job(client, talk, job)
    if output_dir:
        download_to(client, talk, job, output_dir)
    elif status.done:
        talk.print(f"the pictures: gradcam results {job} --output-dir results")
    end(status, as_json, talk)


def _submit(client: Client, talk: Talk, images: Sources, **parameters: Any) -> str:
    try:
        return _send(client, talk, images, **parameters)
    except KeyboardInterrupt:
        name = parameters.get("name")
        talk.print(
            f"continue with the same command and --name {name}" if name else "the job is given up: submit it again"
        )
        raise


def _send(client: Client, talk: Talk, images: Sources, **parameters: Any) -> str:
    from producer.client.watch import sending

    with sending(talk) as (progress, waiting):
        return client.submit(images, progress=progress, waiting=waiting, **parameters)


def _print_submitted(client: Client, job: str, as_json: bool) -> None:
    if as_json:
        out_json(client.status(job).model_dump_json())
    else:
        out(job)


def _show(plan: Plan, as_json: bool) -> None:
    if as_json:
        out_json(plan.model_dump_json())
        return
    rows = {
        "images": f"{plan.images:,}",
        "messages": f"{plan.chunks:,}, of up to {counted(plan.chunk_size, 'image')} each",
        "Redis": f"{_size(plan.redis_bytes)} while they wait",
        "upload": f"{counted(plan.files, 'local file')}, {_size(plan.upload_bytes)}" if plan.files else "nothing",
        "pictures": f"about {_size(plan.pictures_bytes)}, if they are of 224 x 224 px",
        "the first": "\n          ".join(map(shown, plan.first)),
    }
    for name, words in rows.items():
        out_lines(f"{name:<9} {words}")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < _THOUSAND:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return f"{count:.1f} TB"
