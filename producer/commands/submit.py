"""`gradcam submit`: what to explain, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from producer.commands.console import (
    ChunkSize,
    Examples,
    client_from_env,
    end,
    examples,
    follow_job,
    make_talk,
    one_line,
)
from producer.commands.results import check_output_dir, download_to
from producer.jobs.model.errors import UsageError
from producer.jobs.model.limits import MAX_CLASS_ID, MAX_COUNT

if TYPE_CHECKING:
    from rich.console import Console

    from producer.client.client import Client
    from producer.input.sources import Sources
    from producer.submission.plan import Plan

_THOUSAND = 1000
_READING = (
    "uri_column",
    "class_column",
    "id_column",
    "include",
    "exclude",
    "limit",
    "sample",
    "seed",
    "skip_bad",
    "label_column",
    "label_from",
)


@click.command(
    cls=Examples,
    epilog=examples(
        "gradcam submit photos/ --network resnet50 --wait",
        "gradcam submit cat.jpg --network vgg16 --class-id 281 --output-dir results",
        "gradcam submit s3://bucket/a.jpg https://example.org/b.png --name audit-7 --json",
        "gradcam submit list.csv --uri-column url --class-column label --keep-columns split --network vgg16",
        "gradcam submit list.csv --label-column label --explain both",
        "gradcam results JOB --where correct=false --csv",
        "gradcam submit s3://bucket/train/ --include '*.jpg' --sample 10000 --seed 7 --dry-run",
        "find /data -name '*.png' | gradcam submit - --network resnet50 --queue high",
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
@click.option("--any-network", is_flag=True, help="Do not look the network up: the workers know newer ones.")
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
@click.option(
    "--class-id", type=click.IntRange(0, MAX_CLASS_ID), help="Class to explain.  [default: the predicted one]"
)
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
    "--input-size",
    help="Pixels that the network reads: 320, or HEIGHTxWIDTH.  [default: those that belong to the network]",
)
@click.option(
    "--mean",
    help="What is subtracted from red, green and blue in [0, 1], as 0.485,0.456,0.406.  [default: the network's]",
)
@click.option("--std", help="What they are divided by then, as 0.229,0.224,0.225.  [default: the network's]")
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
    "--chunk-size",
    type=ChunkSize(),
    default="auto",
    show_default=True,
    help="Images a worker takes at once, 1 to 512; auto makes it about ten seconds of work.",
)
@click.option(
    "--queue", type=click.Choice(["high", "default", "low"]), default="default", show_default=True, help="Urgency."
)
@click.option(
    "--uri-column", help="Column of the address or path.  [default: uri, url, image_url, image, path, file, …]"
)
@click.option("--class-column", help="Column of each image's own class, by number or name.")
@click.option("--id-column", help="Column of what you call an image; kept in results.")
@click.option("--keep-columns", default="", help="Further columns to carry along into the results, by commas.")
@click.option("--label-column", help="Column of what each image shows, by number or name: results say what is correct.")
@click.option(
    "--label-from", type=click.Choice(["folder"]), help="The same by the name of the folder that an image lies in."
)
@click.option(
    "--explain",
    type=click.Choice(["predicted", "label", "both"]),
    default="predicted",
    show_default=True,
    help="Of an image with a label: the predicted class, the label's, or both.",
)
@click.option("--include", multiple=True, help="Of a folder or prefix, only what matches, such as 'train/*.png'.")
@click.option("--exclude", multiple=True, help="Of a folder or prefix, not what matches.")
@click.option("--limit", type=click.IntRange(1, MAX_COUNT), help="Only the first so many images.")
@click.option(
    "--sample", type=click.IntRange(1, MAX_COUNT), help="Only so many images, drawn at random, in their order."
)
@click.option(
    "--seed", type=click.IntRange(-MAX_COUNT, MAX_COUNT), default=0, show_default=True, help="Another one draws others."
)
@click.option("--skip-bad", is_flag=True, help="Leave out rows of lists that cannot be used, list them in a file.")
@click.option(
    "--bad-rows",
    metavar="FILE",
    help="That file, .jsonl or .csv, which `gradcam submit` reads again.  [default: bad-rows.jsonl]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.option(
    "--pack",
    type=click.Choice(["none", "tar"]),
    default="none",
    show_default=True,
    help="tar: the pictures of a chunk in one webdataset shard; for millions of images.",
)
@click.option("--name", help="Name of the job; submitting the same again under it continues instead of doubling.")
@click.option("--wait", is_flag=True, help="Stay until the job ends.")
@click.option("--output-dir", help="Stay until the job ends, then download the pictures to this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's status as JSON.")
def submit(
    source: tuple[str, ...],
    image_path: tuple[str, ...],
    outputs: str,
    keep_columns: str,
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
    from producer.client.submitting import check_typed
    from producer.commands.left_out import check_file, list_bad, tell_left_out
    from producer.input.sources import ReadOptions, open_sources

    if parameters["explain"] != "predicted" and not (parameters["label_column"] or parameters["label_from"]):
        raise UsageError(f"--explain {parameters['explain']} needs labels: give --label-column or --label-from folder")
    reading = ReadOptions(**{name: parameters.pop(name) for name in _READING}, keep_columns=tuple(_list(keep_columns)))
    # What was typed is looked at before the settings are: it is nearer to the one who typed it.
    check_typed(reading, **parameters)
    check_file(bad_rows, reading)
    with open_sources([*source, *image_path], reading, storage=lambda: client_from_env().storage) as sources:
        client, talk = client_from_env(), make_talk()
        parameters["outputs"] = _list(outputs)
        list_bad(talk, sources, bad_rows, dry_run=dry_run)
        if dry_run:
            _show(client.plan(sources, **parameters), as_json)
            tell_left_out(talk, sources)
            return
        job = _submit(client, talk, sources, **parameters)
        tell_left_out(talk, sources)
    if not wait and not output_dir:
        _print_submitted(client, job, as_json)
        status = client.status(job)
        words = f"it has ended already: {status.state}" if status.ended else f"watch it: gradcam status {job} --watch"
        talk.print(words)
        return
    if not as_json:
        click.echo(job)
    status = follow_job(client, talk, job)
    if output_dir:
        download_to(client, talk, job, output_dir)
    elif status.done:
        talk.print(f"the pictures: gradcam results {job} --output-dir results")
    end(status, as_json, talk)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _submit(client: Client, talk: Console, images: Sources, **parameters: Any) -> str:
    try:
        return _send(client, talk, images, **parameters)
    except KeyboardInterrupt:
        name = parameters.get("name")
        talk.print(
            f"continue with the same command and --name {name}" if name else "the job is given up: submit it again"
        )
        raise


def _send(client: Client, talk: Console, images: Sources, **parameters: Any) -> str:
    from producer.client.watch import sending

    with sending(talk) as (progress, waiting):
        return client.submit(images, progress=progress, waiting=waiting, **parameters)


def _print_submitted(client: Client, job: str, as_json: bool) -> None:
    click.echo(client.status(job).model_dump_json() if as_json else job)


def _show(plan: Plan, as_json: bool) -> None:
    if as_json:
        click.echo(plan.model_dump_json())
        return
    rows = {
        "images": f"{plan.images:,}",
        "messages": f"{plan.chunks:,}, of up to {plan.chunk_size} images each",
        "Redis": f"{_size(plan.redis_bytes)} while they wait",
        "upload": f"{plan.files:,} local files, {_size(plan.upload_bytes)}" if plan.files else "nothing",
        "pictures": f"about {_size(plan.pictures_bytes)}, if they are of 224 x 224 px",
        "the first": "\n          ".join(one_line(address) for address in plan.first),
    }
    for name, words in rows.items():
        click.echo(f"{name:<9} {words}")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < _THOUSAND:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= _THOUSAND
    return f"{count:.1f} TB"
