"""Hostile text is planted wherever a stranger may write, and every place is looked at where somebody reads."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any
from unicodedata import category

import boto3
import click
import pytest
import torch
from botocore.config import Config
from command import gradcam
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from deploy import contact_sheet
from producer import cli
from producer.client import watch
from producer.client.talk import Talk
from producer.commands.console import make_talk
from producer.input.bad_rows import BadRow
from producer.input.read_options import ReadOptions
from producer.input.sources import open_sources
from producer.jobs.fetch import addresses
from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy
from producer.jobs.model import terminal
from producer.jobs.model.errors import GradcamError, JobError, UsageError, no_such
from producer.jobs.model.items import Item
from producer.jobs.model.network_names import check_network
from producer.jobs.model.results import Failure, Result
from producer.jobs.model.settings import Connections, read
from producer.jobs.model.spec import checked_name
from producer.jobs.model.states import Ingest, JobState
from producer.jobs.model.status import ChunkCounts, JobStatus, Wait
from producer.jobs.model.text import LINE_CHARS, SENTENCE_CHARS
from producer.jobs.model.typed_spec import read_labels
from producer.output.checks import check_reason
from producer.output.export import write_jsonl
from producer.output.filters import parse_where
from worker.chunks.faults import _sentence
from worker.models import candidates, checkpoint, layers, weights
from worker.models.classes import class_id_of
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
LONG = 2**20
TEXTS = {
    "terminal": "a\x1b[2J\x1b]0;title\x07\x08\x9b31m\x7fz",
    "lines": "a\r\n2026-01-01T00:00:00.000Z w1 INFO action=ready forged\u2028b\u2029c\x85d",
    "bidi": "a\u202egpj.exe\u2066\u2069\u200f\u061cz",
    "invisible": "a\u200b\ufeff\u2060\u3164\U000e0041\U000e0001z",
    "halves": "a\ud800\udcffz",
    "marks": "e" + "\u0301" * 5000 + "z",
    "markup": "[bold red]a[/][link=http://b.example]c[/link] :smile: [/nothing]",
    "long": "a" + "x" * LONG + "z",
    "long, of controls": "a" + "\x1b" * LONG + "z",
}
NASTY = pytest.mark.parametrize("nasty", TEXTS.values(), ids=TEXTS)
#: What rich writes for colors, links and the cursor: with its own links there is none, as nothing of ours makes one.
OF_RICH = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def assert_harmless(text: str, chars: int = SENTENCE_CHARS) -> None:
    """It moves no cursor, begins no line, reorders and hides nothing, and is short."""
    assert [char for char in text if category(char) in HIDDEN or char == "\u3164"] == []
    assert len(text) <= chars
    assert "\u0301" * 7 not in text


def utf8(text: str) -> str:
    """The text as a file or a server can hold it: halves of characters are none there."""
    return text.encode("utf-8", "replace").decode()


# -- entries: what each is told of ------------------------------------------------------------------------------------


def net() -> nn.Module:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 1), fc=nn.Linear(2, 5)))


def content_of(name: str, folder: Path) -> Any:
    """What a weights file holds whose tensors are called so; .safetensors has no halves of characters."""
    path = folder / "weights.safetensors"
    save_file({f"{utf8(name)}.weight": torch.zeros(2, 3, 1, 1)}, path)
    return checkpoint.read(path)


def tensors(nasty: str, folder: Path) -> None:
    content = content_of(nasty, folder)
    weights.fit(net(), content, "tiny", list(content))


def pickled_tensors(nasty: str, folder: Path) -> None:
    path = folder / "weights.pth"
    torch.save({nasty: torch.zeros(1)}, path)
    weights.renamed_by_position(checkpoint.read(path), ["conv.bias"])


def weight_key(nasty: str, folder: Path) -> None:
    # Names of 500 characters and more are no names of tensors; those of another mapping are there.
    content = {nasty: {"conv.weight": torch.zeros(2, 3, 1, 1)}, "model": {"conv.weight": torch.zeros(2, 3, 1, 1)}}
    candidates.choose_state_dict(content, net().state_dict(), key=f"no {nasty}")


def weights_path(nasty: str, folder: Path) -> None:
    checkpoint.read(folder / utf8(nasty)[:100].replace("/", "_").replace("\x00", ""))


def layer(nasty: str, folder: Path) -> None:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 3), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
    model.add_module(nasty.replace(".", "_"), nn.Linear(2, 5))
    layers.select_layers(layers.survey("tiny", model.eval(), (8, 8)), nasty + "?")


class Named:
    """As much of a network as a search for a class looks at."""

    name = "tiny"
    classes = 2

    def __init__(self, categories: list[str]) -> None:
        self.categories = categories


def class_name(nasty: str, folder: Path) -> None:
    class_id_of(Named([nasty, "cat"]), f"{nasty}?")  # type: ignore[arg-type]


def class_twice(nasty: str, folder: Path) -> None:
    class_id_of(Named([nasty, nasty]), nasty)  # type: ignore[arg-type]


def labels_file(nasty: str, folder: Path) -> None:
    read_labels(folder / utf8(nasty)[:100].replace("/", "_").replace("\x00", ""))


def row(nasty: str, folder: Path, header: str, cells: str) -> None:
    path = folder / "list.csv"
    path.write_text(f"{header}\n{cells}\n", "utf-8", "replace")
    options = ReadOptions(class_column="class" if "class" in header else None, keep_columns=())
    with open_sources([str(path)], options) as sources:
        list(sources)


def quoted_cell(nasty: str) -> str:
    return '"' + nasty.replace('"', "").replace("\x00", "") + '"'


def list_address(nasty: str, folder: Path) -> None:
    row(nasty, folder, "uri", quoted_cell(f"ftp://{nasty}"))


def list_class(nasty: str, folder: Path) -> None:
    row(nasty, folder, "uri,class", "s3://b/k," + quoted_cell("9" * 300 + nasty))


def list_columns(nasty: str, folder: Path) -> None:
    row(nasty, folder, f"{quoted_cell(nasty)},other", "s3://b/k,1")


def typed_source(nasty: str, folder: Path) -> None:
    with open_sources([nasty.replace("\x00", "")[:4000]], ReadOptions()) as sources:
        list(sources)


def address(nasty: str, folder: Path) -> None:
    addresses.parse(f"gopher://{nasty}"[: addresses.MAX_URI_CHARS])


def long_address(nasty: str, folder: Path) -> None:
    addresses.parse("http://" + nasty * (1 + addresses.MAX_URI_CHARS // len(nasty)))


def local_file(nasty: str, folder: Path) -> None:
    with closing(Fetcher(FetchPolicy(file_roots=(folder,)), None)) as fetcher:
        fetcher.fetch(f"file:///elsewhere/{nasty}"[: addresses.MAX_URI_CHARS])


def network_name(nasty: str, folder: Path) -> None:
    check_network(nasty)


def job_name(nasty: str, folder: Path) -> None:
    checked_name(nasty)


def unknown_job(nasty: str, folder: Path) -> None:
    raise UsageError(no_such(nasty))


def reason(nasty: str, folder: Path) -> None:
    check_reason(nasty, {nasty + "?": 3})


def condition(nasty: str, folder: Path) -> None:
    parse_where([f"{nasty}~1"])


def settings(nasty: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        name = utf8(nasty).replace("\x00", "").replace("=", "")[:60_000]
        patch.setenv("GRADCAM_" + name, "1")
        patch.setenv("GRADCAM_S3_BUCKET", name)
        read(Connections)


def worker_settings(nasty: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        value = utf8(nasty).replace("\x00", "")[:60_000]
        patch.setenv("GRADCAM_WORKER_ALLOW_HOSTS", value + "/*")
        patch.setenv("GRADCAM_WORKER_QUEUES", value)
        read(WorkerSettings)


def answered(nasty: str, head: str, fetch: Callable[[int], object]) -> None:
    """What a server answers that writes the text into its first line and its headers."""
    text = utf8(nasty).replace("\n", "").replace("\r", "")[:30_000]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(3):
                try:
                    connection, _peer = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(head.replace("NASTY", text).encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            fetch(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def web(nasty: str, head: str) -> None:
    policy = FetchPolicy(allow_hosts=("127.0.0.0/8:*",), total_timeout_s=3)
    with closing(Fetcher(policy, None)) as fetcher:
        answered(nasty, head, lambda port: fetcher.fetch(f"http://127.0.0.1:{port}/a.jpg"))


def web_status(nasty: str, folder: Path) -> None:
    web(nasty, "HTTP/1.1 404 NASTY\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def web_redirect(nasty: str, folder: Path) -> None:
    web(nasty, "HTTP/1.1 302 Found\r\nLocation: gopher://NASTY\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def web_length(nasty: str, folder: Path) -> None:
    web(nasty, "HTTP/1.1 200 OK\r\nContent-Length: NASTY\r\nConnection: close\r\n\r\n")


def s3_error(nasty: str, folder: Path) -> None:
    text = utf8(nasty).replace("<", "(").replace("&", "+")[:20_000]
    body = f"<Error><Code>Odd{text}</Code><Message>{text}</Message></Error>"
    head = f"HTTP/1.1 400 Bad\r\nContent-Type: application/xml\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"

    def fetch(port: int) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="id",
            aws_secret_access_key="word",
            config=Config(retries={"max_attempts": 0}),
        )
        with closing(client), closing(Fetcher(FetchPolicy(), client)) as fetcher:
            fetcher.fetch("s3://bucket/key")

    answered(nasty, head, fetch)


def library(nasty: str, folder: Path) -> None:
    raise JobError(_sentence(RuntimeError(nasty)))


ENTRIES: tuple[Callable[[str, Path], None], ...] = (
    *(tensors, pickled_tensors, weight_key, weights_path, layer, class_name, class_twice, labels_file, list_address),
    *(list_class, list_columns, typed_source, address, long_address, local_file, network_name, job_name, unknown_job),
    *(reason, condition, settings, worker_settings, web_status, web_redirect, web_length, s3_error),
    library,
)


def error_of(entry: Callable[[str, Path], None], nasty: str, folder: Path) -> GradcamError:
    with pytest.raises(GradcamError) as raised:
        entry(nasty, folder)
    return raised.value


# -- sinks ------------------------------------------------------------------------------------------------------------


@NASTY
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_an_error_quotes_strangers_harmlessly_and_the_terminal_shows_it_so(
    entry: Callable[[str, Path], None], nasty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(entry, nasty, tmp_path)
    assert_harmless(str(error))

    def fail() -> None:
        raise error

    assert cli.run(fail) in {2, 4}
    said = capsys.readouterr()
    assert said.out == ""
    assert_harmless(said.err.removesuffix("\n"), LINE_CHARS)


def status_of(nasty: str) -> JobStatus:
    """What Redis says of a job where everything in it was written by somebody else."""
    return JobStatus(
        job=nasty, name=nasty, state=JobState.RUNNING, ingest=Ingest.OPEN, network=nasty, total=9, done=3, failed=2,
        cancelled=0, pending=4, failures={nasty: 2}, images_per_s=1.0, eta_s=4.0, created_at=datetime.now(UTC),
        finished_at=None, error=nasty, workers=1, problem=nasty, stalled_s=40.0,
        waits=nasty, waited_for=(Wait(what=nasty, workers=2, longest_s=40.0),), other_versions={nasty: nasty},
        chunks=ChunkCounts(total=2, waiting=1, in_flight=1, complete=0),
    )  # fmt: skip


@NASTY
@pytest.mark.parametrize("terminal", [False, True])
def test_a_status_a_list_and_a_bar_show_names_harmlessly(nasty: str, terminal: bool) -> None:
    """A terminal gets rich's own sequences of colors and cursors, and none of the text's."""
    file = BytesIO()
    stream = TextIOWrapper(file, "utf-8", write_through=True)
    talk = Talk(file=stream, force_terminal=terminal, width=200, soft_wrap=True, color_system="truecolor")
    talk.print_lines(watch.summary(status_of(nasty)))
    talk.print(watch.table([status_of(nasty)], talk))
    watch.follow([status_of(nasty), status_of(nasty).model_copy(update={"state": JobState.FAILED})], talk)
    with watch.sending(talk) as (_progress, waiting):
        waiting(nasty)
    said = file.getvalue().decode()
    for line in said.replace("\r", "\n").split("\n"):
        assert_harmless(OF_RICH.sub("", line), 4 * LINE_CHARS)
    assert "b.example" not in said or "[link=http://b.example]" in said


@NASTY
def test_what_commands_print_for_people_is_harmless(nasty: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.out(nasty, nasty)
    terminal.say(nasty)
    terminal.say_error(GradcamError("x", excerpt=nasty))
    terminal.out_table([(nasty, "b"), ("c", nasty)])
    terminal.say_refused(click.BadParameter(nasty))
    try:
        int(nasty)
    except ValueError as error:
        terminal.say_bug(error)
        terminal.say_bug(ValueError(nasty))
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert_harmless(line.replace("\t", ""), 2 * LINE_CHARS + 1)
    assert len(said.out + said.err) < 20 * LINE_CHARS


@NASTY
def test_json_keeps_the_data_and_moves_no_cursor(nasty: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut: a program has to find again what it sent."""
    text = utf8(nasty)[: 2**16]
    failure = Failure(index=0, item=Item(uri=f"s3://b/{text}"[:8000], id=text[:1000]), reason="fetch", message="gone")
    terminal.out_json(failure.model_dump_json(exclude_none=True))
    terminal.out_json(status_of(text).model_dump_json())
    first, second = capsys.readouterr().out.splitlines()
    assert (json.loads(first)["item"]["id"], json.loads(second)["network"]) == (text[:1000], text)
    file = BytesIO()
    # Of its address only what is no secret is kept at all.
    result = Result(
        index=0, uri="s3://b/a", state="failed", label=text, keep={text: text}, reason="fetch", message=text
    )
    write_jsonl([result], file, lambda key: key)
    (line,) = file.getvalue().decode().split("\n")[:-1]
    assert (json.loads(line)["label"], json.loads(line)["keep"]) == (text, {text: text})
    assert [char for char in {*first, *second, *line} if category(char) in HIDDEN] == []


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_lines_are_harmless_and_short_in_both_formats(log_format: str) -> None:
    """Also the worker's own name, the loggers' of libraries, printed lines, and tracebacks."""
    program = (
        "import json, logging, sys\nfrom worker import logs\n"
        "texts = json.load(sys.stdin)\n"
        f"logs.set_up('w1' + texts[0], {log_format!r})\n"
        "ours = logging.getLogger('worker.somewhere')\n"
        "for text in texts:\n"
        "    ours.warning('action=job_failed job=%s It says: %s', text, text)\n"
        "    logging.getLogger('lib' + text).error(text)\n"
        "    print(text)\n"
        "    try:\n        raise ValueError(text)\n"
        "    except ValueError:\n        ours.exception('action=bug %s', text)\n"
    )
    texts = json.dumps(list(TEXTS.values()))
    run = subprocess.run([sys.executable, "-c", program], input=texts.encode(), capture_output=True, check=True)
    said = run.stderr.decode()
    assert run.stdout == b""
    for line in said.splitlines():
        assert_harmless(line, 9 * LINE_CHARS)
    assert len(said.splitlines()) < 25 * len(TEXTS)
    assert len(said) < 10 * LINE_CHARS * len(TEXTS)
    assert not any(line.startswith("2026-01-01T") for line in said.splitlines())


@NASTY
def test_a_contact_sheet_draws_any_name_at_once(nasty: str, tmp_path: Path) -> None:
    """It is a picture: what could go wrong is a name that takes minutes to be measured."""
    photo = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(photo)
    rows = [contact_sheet.Row(photo, nasty, [nasty, nasty], {"cam": photo})]
    assert contact_sheet.draw(rows, ["cam"]).size == contact_sheet.size_px(1, 1)


@NASTY
def test_a_row_that_is_left_out_is_told_harmlessly(nasty: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_talk().print(f"  {BadRow(nasty, 7, 'line', nasty).sentence}")
    assert_harmless(capsys.readouterr().err.rstrip("\n"), LINE_CHARS)


def test_what_is_typed_comes_back_harmlessly(tmp_path: Path) -> None:
    for text in (TEXTS["terminal"], TEXTS["bidi"], TEXTS["invisible"], TEXTS["markup"]):
        for typed in (["status", "--" + text], ["submit", text, "--network", text], ["list", "--state", text], [text]):
            said = gradcam(
                *typed, code=2, env={"GRADCAM_REDIS_URL": "redis://127.0.0.1:1/0", "GRADCAM_S3_BUCKET": "b-b"}
            )
            for line in said.stderr.splitlines():
                assert_harmless(line, LINE_CHARS)


# -- nobody forgets ---------------------------------------------------------------------------------------------------

#: Where texts are printed: everything else goes through these.
PRINTERS = {"producer/jobs/model/terminal.py", "producer/client/talk.py"}
#: It runs before anything of ours is installed, and prints a folder that whoever runs it has typed.
PRINTERS |= {"deploy/make_secrets.py"}


def calls_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func) if node.func.attr in {"write", "echo", "secho", "print", "show"} else ""


def test_all_that_our_programs_print_goes_through_one_file() -> None:
    """So that new code cannot print a stranger's text as it is."""
    direct = {"print", "click.echo", "click.secho", "Console", "sys.stdout.write", "sys.stderr.write", "error.show"}
    found = [
        (str(path.relative_to(ROOT)), call)
        for folder in ("producer", "worker", "deploy", "gradcam_queue")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in calls_in(path)
        if call in direct
    ]
    assert [one for one in found if one[0] not in PRINTERS] == []
    assert ("producer/jobs/model/terminal.py", "click.echo") in found
