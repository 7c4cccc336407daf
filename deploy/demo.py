"""`gradcam demo`: real photos go through the whole system, servers included, and one sheet shows all pictures."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy import contact_sheet
from deploy.directory_lock import holder
from deploy.stack import FOREIGN, Stack
from producer.client.client import Client
from producer.client.talk import Talk
from producer.client.watch import exit_code, follow
from producer.jobs.model.errors import GradcamError, UsageError
from producer.jobs.model.results import Result
from producer.jobs.model.spec import OUTPUTS
from producer.jobs.model.states import WaitReason
from producer.jobs.model.status import JobStatus
from producer.jobs.model.terminal import out_lines, say
from producer.jobs.model.text import shown
from producer.output.atomic_file import not_written

NETWORK = "efficientnet_lite0"
CHUNK_SIZE = 4
#: Photos that scikit-image has inside its package, so that nothing is downloaded.
PHOTOS = (
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "astronaut.png",
    "camera.png",
    "coins.png",
    "page.png",
    "brick.png",
    "hubble_deep_field.jpg",
)
_STARTS = "the worker starts and imports PyTorch"
_TEMPORARY = "gradcam-demo-"
#: An older directory of ours that nobody holds is of a killed demo.
_LEFT_AFTER_S = 60.0


def run(output_dir: Path, console: Console) -> int:
    """Explain the photos, write pictures and sheet, print a table; returns the exit code."""
    output_dir.mkdir(parents=True, exist_ok=True)
    photos = _photos()
    with _temporary() as directory, ExitStack() as held:
        with console.status("starting Valkey, SeaweedFS and a worker"):
            stack = held.enter_context(Stack(directory))
        held.enter_context(_using(stack))
        client = Client.from_env()
        job = client.submit(_upload(stack, photos), network=NETWORK, chunk_size=CHUNK_SIZE)
        status = _follow(client, job, stack, console)
        results = list(client.results(job))
        _download(client, job, output_dir)
        # The job is done: the worker has nothing to finish.
        stack.stop_worker(grace_s=5.0)
    rows = [_row(photos[result.index], result, output_dir) for result in results]
    sheet = output_dir / "contact-sheet.png"
    contact_sheet.draw(rows, OUTPUTS).save(sheet)
    _print(results, photos, status, sheet)
    return exit_code(status)


def _photos() -> list[Path]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photos = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not photos:
        raise UsageError(f"this scikit-image has none of the demo's photos in {folder}; install the tested version")
    return photos


def _upload(stack: Stack, photos: Sequence[Path]) -> list[str]:
    with closing(stack.s3.client()) as client:
        for photo in photos:
            client.upload_file(str(photo), stack.s3.bucket, f"photos/{photo.name}")
    return [f"s3://{stack.s3.bucket}/photos/{photo.name}" for photo in photos]


def _download(client: Client, job: str, output_dir: Path) -> None:
    """Bring the pictures, in the place of those of an earlier demo: a download replaces none of another job."""
    with tempfile.TemporaryDirectory(prefix=f".{_TEMPORARY}", dir=output_dir) as fresh:
        client.download(job, fresh)
        for picture in Path(fresh).glob("[!.]*"):
            try:
                picture.replace(output_dir / picture.name)
            except OSError as error:
                raise not_written(output_dir / picture.name, error) from None


def _follow(client: Client, job: str, stack: Stack, console: Console) -> JobStatus:
    return follow(_watch(client, job, stack), console)


def _watch(client: Client, job: str, stack: Stack) -> Iterator[JobStatus]:
    for status in client.watch(job):
        if stack.worker is not None and not status.ended:
            stack.worker.check()  # nobody else would ever finish the job
        is_starting = status.waits_reason is WaitReason.NO_WORKER
        yield status.model_copy(update={"waits": _STARTS}) if is_starting else status


def _row(photo: Path, result: Result, output_dir: Path) -> contact_sheet.Row:
    paths = {kind: output_dir / f"{photo.stem}-{NETWORK}-{kind}.jpg" for kind in result.objects}
    if result.state == "failed":
        lines = [f"failed: {result.reason}", result.message or ""]
    else:
        lines = [_class(result), _percent(result), *(["nothing spoke for this class"] if result.flat else [])]
    return contact_sheet.Row(photo, photo.name, lines, {kind: path for kind, path in paths.items() if path.exists()})


def _print(results: Sequence[Result], photos: Sequence[Path], status: JobStatus, sheet: Path) -> None:
    table = Table("image", "class", "probability", "layer", "status", box=None, pad_edge=False)
    for result in results:
        outcome = "done" if result.state == "done" else f"{result.reason}: {result.message}"
        cells = (photos[result.index].name, _class(result), _percent(result), result.layer or "", outcome)
        table.add_row(*map(shown, cells))
    Talk().print(table)
    if status.error:
        say(f"error: {status.error}")
    out_lines(f"\n{status.done} of {status.total} images explained; all their pictures on one sheet: {sheet}")


def _class(result: Result) -> str:
    return result.class_name or ("" if result.class_id is None else f"class {result.class_id}")


def _percent(result: Result) -> str:
    return "" if result.probability is None else f"{result.probability:.1%}"


@contextmanager
def _using(stack: Stack) -> Iterator[None]:
    """Give this process the stack's settings, and none for other services."""
    before = dict(os.environ)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(stack.env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _temporary() -> Iterator[Path]:
    """Make a directory for the stack; remove it afterwards, and those of killed demos now."""
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with suppress(OSError, GradcamError):  # whatever is there, it is no reason to show nothing
            found = left.lstat()  # a link may lead to anything of ours
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if is_ours and time.time() - found.st_mtime > _LEFT_AFTER_S:
                _remove(left)
    directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        yield directory
    finally:
        # Everything is ending; another Ctrl-C must not leave the directory behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        shutil.rmtree(directory, ignore_errors=True)


def _remove(left: Path) -> None:
    if holder(left) is None:
        Stack(left).stop()  # its sockets lie outside the directory
        shutil.rmtree(left, ignore_errors=True)
