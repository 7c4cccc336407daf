"""What a job may name, and what a list or a folder may give away: each setting, and what is told of a refusal."""

from __future__ import annotations

import io
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from producer.input.sources import ReadOptions, open_sources
from producer.jobs.fetch.addresses import S3Address
from producer.jobs.fetch.fetcher import Fetcher
from producer.jobs.fetch.policy import FetchPolicy, check_object, checked_addresses
from producer.jobs.model.errors import FetchError, SettingsError, UsageError
from producer.jobs.model.settings import read
from worker import logs
from worker.logs import RefusalLog
from worker.settings import WorkerSettings

PUBLIC, INNER = "8.8.8.8", "10.1.2.3"
DIGEST = "ab" * 32


def leads_to(*addresses: str) -> Callable[[str, int], list[tuple[object, ...]]]:
    return lambda _host, port: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def nowhere(_host: str, _port: int) -> list[tuple[object, ...]]:
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


def is_open(host: str, address: str, port: int, *allowed: str) -> bool:
    try:
        return checked_addresses(host, port, FetchPolicy(allow_hosts=allowed), leads_to(address)) == [address]
    except FetchError:
        return False


# --- ports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "host", "address", "ports"),
    [
        ("", "name.test", PUBLIC, {80, 443}),
        ("name.test:8080", "name.test", PUBLIC, {80, 443, 8080}),
        ("*.test:8080", "name.test", PUBLIC, {80, 443, 8080}),
        ("8.8.0.0/16:8080", "name.test", PUBLIC, {80, 443, 8080}),
        ("name.test:*", "name.test", PUBLIC, {22, 80, 443, 6379, 8080}),
        ("other.test:8080", "name.test", PUBLIC, {80, 443}),
        ("name.test", "name.test", INNER, {80, 443}),
        ("10.0.0.0/8", "name.test", INNER, {80, 443}),
        ("name.test:8080", "name.test", INNER, {8080}),
        ("10.0.0.0/8:8080", "name.test", INNER, {8080}),
        ("10.0.0.0/8:8080,name.test", "name.test", INNER, {80, 443, 8080}),
        ("10.0.0.0/8:*", "name.test", INNER, {22, 80, 443, 6379, 8080}),
        ("[::1]:8080", "[::1]", "::1", {8080}),
        ("[::1]", "[::1]", "::1", {80, 443}),
        ("fd00::/8:8080", "name.test", "fd00::1", {8080}),
        ("[fd00::/8]:8080", "name.test", "fd00::1", {8080}),
        ("::1:8080", "[::1]", "::1", set()),  # without brackets it is another address
        ("localhost:8080", "localhost", "127.0.0.1", {8080}),
        ("127.0.0.1:8080", "name.test", "127.0.0.1", {8080}),
    ],
)
def test_ports_beside_those_of_the_web_are_open_where_an_entry_names_them(
    allowed: str, host: str, address: str, ports: set[int]
) -> None:
    """Else whoever may submit a job knocks at each port of whatever host a worker can reach."""
    entries = tuple(filter(None, allowed.split(",")))
    assert {port for port in (22, 80, 443, 6379, 8080) if is_open(host, address, port, *entries)} == ports


def test_a_port_that_nothing_opens_is_refused_before_the_name_is_looked_up() -> None:
    with pytest.raises(FetchError) as caught:
        checked_addresses("name.test", 6379, FetchPolicy(), leads_to())
    assert caught.value.why == "the host name.test: port 6379 is neither 80 nor 443, and no entry names it"


def test_entries_of_hosts_have_one_form() -> None:
    typed = (" Name.Test.:8080", "[::1]:9000", "[FD00::]", "fd00::/8:80", "10.0.0.0/8:*", "*.Straße.test", "::1")
    assert FetchPolicy(allow_hosts=typed).allow_hosts == (
        *("name.test:8080", "[::1/128]:9000", "fd00::/128", "[fd00::/8]:80", "10.0.0.0/8:*"),
        *("*.xn--strae-oqa.test", "::1/128"),
    )
    again = FetchPolicy(allow_hosts=typed).allow_hosts
    assert FetchPolicy(allow_hosts=again).allow_hosts == again


# --- what is told ----------------------------------------------------------------------------------------------------


def test_refused_and_not_known_are_told_in_the_same_words() -> None:
    """Else a list of guessed names is a map of the inner network."""
    policy = FetchPolicy(allow_hosts=("open.test", "10.0.0.0/8:8080"))
    told, why = set(), set()
    for resolve in (nowhere, leads_to(), *map(leads_to, (INNER, "127.0.0.1", "169.254.169.254", "fd00::1", "0.0.0.0"))):
        for port in (80, 22):
            with pytest.raises(FetchError) as caught:
                checked_addresses("name.test", port, policy, resolve)
            told.add(str(caught.value))
            why.add(caught.value.why)
    assert len(told) == 1
    assert len(why) == 7


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose queue is full: it answers nothing, as behind a filter."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        yield server.getsockname()[1]
        for client in waiting:
            client.close()


def test_a_closed_port_of_the_inner_network_is_told_like_a_filtered_one(full: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
    policy = FetchPolicy(allow_hosts=("127.0.0.1:*",), total_timeout_s=0.4)
    reasons: list[str] = []
    fetcher = Fetcher(policy, None, refused=lambda why, _job: reasons.append(why))
    told = set()
    for scheme in ("http", "https"):
        for port in (closed, full):
            with pytest.raises(FetchError) as caught:
                fetcher.fetch(f"{scheme}://127.0.0.1:{port}/a.jpg", job="cats")
            told.add((type(caught.value), str(caught.value).replace(str(port), "N").replace(scheme, "S")))
    assert told == {(type(caught.value), "S://127.0.0.1:N/a.jpg cannot be fetched: its host cannot be reached")}
    assert [why.partition("reached: ")[2] for why in reasons] == ["connection refused", "no answer in time"] * 2


def test_the_log_says_why_and_the_job_is_told_only_that_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    policy = FetchPolicy(allow_buckets=("photos",))
    fetcher = Fetcher(policy, None, leads_to(INNER), refused=RefusalLog().tell)
    with caplog.at_level(logging.WARNING, "worker.logs"):
        with pytest.raises(FetchError, match="intranet is not known, or is refused") as caught:
            fetcher.fetch("http://intranet/a.jpg?token=hunter2", job="cats")
        for uri in ("s3://secrets/a.jpg", "file:///etc/passwd"):
            with pytest.raises(FetchError, match="is refused"):
                fetcher.fetch(uri)
    assert INNER not in str(caught.value)
    assert [record.getMessage() for record in caplog.records] == [
        "action=fetch_refused job=cats Refused: the host intranet: its address 10.1.2.3 is private.",
        "action=fetch_refused Refused: s3://secrets/a.jpg is refused: GRADCAM_WORKER_ALLOW_BUCKETS of the workers does "
        "not name its bucket or prefix.",
        "action=fetch_refused Refused: the file /etc/passwd is refused: this worker reads no files, as "
        "GRADCAM_WORKER_FILE_ROOTS is not set.",
    ]


def test_a_million_refusals_are_thirty_lines_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = RefusalLog()
    with caplog.at_level(logging.WARNING, "worker.logs"):
        for number in range(10_000):
            told.tell(f"host {number // 2}", "cats")
        assert len(caplog.records) == 30
        monkeypatch.setattr(logs, "_MINUTE_S", 0.0)
        told.tell("host x", "cats")
    assert caplog.records[-1].getMessage().endswith("host x (9,970 more were not told in the minute before).")


# --- buckets ---------------------------------------------------------------------------------------------------------


def may_read(entries: str, place: str, job: str | None = "cats", own: tuple[str, str] = ("ours", "gradcam")) -> bool:
    policy = FetchPolicy(allow_buckets=tuple(filter(None, entries.split(","))), own_place=own)
    bucket, _, key = place.partition("/")
    try:
        check_object(S3Address(bucket, key, f"s3://{place}"), policy, job)
    except FetchError:
        return False
    return True


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ("", "anything/a.jpg"),
        ("", "ours/gradcam/dogs/images/00000000/a.jpg"),
        ("photos", "photos/a.jpg"),
        ("photos/", "photos/a.jpg"),
        ("photos,more", "more/deep/a.jpg"),
        ("photos/2026/", "photos/2026/a.jpg"),
        ("photos/2026", "photos/2026/deep/a.jpg"),
        ("team-*", "team-a/a.jpg"),
        ("team-*/raw/", "team-a/raw/a.jpg"),
        ("*", "anything/a.jpg"),
        ("photos", "photos//a.jpg"),
        # What the job uploaded itself, and uploaded weights, whatever is set.
        ("photos", "ours/gradcam/cats/inputs/00000000/a.jpg"),
        ("photos", f"ours/gradcam/weights/{DIGEST}"),
        ("photos", f"ours/gradcam/.shared/weights/{DIGEST}"),
        # Other images in the bucket of the service; other jobs' objects where it is said.
        ("ours", "ours/images/a.jpg"),
        ("ours/gradcam/", "ours/gradcam/dogs/images/00000000/a.jpg"),
        ("ours/gradcam/dogs/inputs/", "ours/gradcam/dogs/inputs/00000000/a.jpg"),
    ],
)
def test_a_job_reads_what_the_buckets_of_the_setting_hold(entries: str, place: str) -> None:
    assert may_read(entries, place)


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ("photos", "secrets/a.jpg"),
        ("photos", "photos2/a.jpg"),
        ("photos", "Photos/a.jpg"),
        ("photos/2026/", "photos/2025/a.jpg"),
        ("photos/2026", "photos/2026-private/a.jpg"),
        ("photos/2026", "photos/2026"),
        ("photos/2026/", "photos/2026/../2025/a.jpg"),
        ("photos/2026/", "photos/./2025/a.jpg"),
        ("photos/2026/", "photos//2026/a.jpg"),
        ("photos", "photos/../secrets/a.jpg"),
        ("team-*", "team/a.jpg"),
        ("team-*/raw/", "team-a/cooked/a.jpg"),
        # What other jobs were given and made.
        ("photos", "ours/gradcam/dogs/inputs/00000000/a.jpg"),
        ("ours", "ours/gradcam/dogs/images/00000000/a.jpg"),
        ("ours/", "ours/gradcam/dogs/images/00000000/a.jpg"),
        ("*", "ours/gradcam/dogs/job.json"),
        ("ours", "ours//gradcam/dogs/job.json"),
        ("ours", "ours/gradcam/./dogs/job.json"),
        ("photos", "ours/gradcam/cats2/inputs/00000000/a.jpg"),
        ("photos", "ours/gradcam/cats/../dogs/inputs/00000000/a.jpg"),
        ("photos", "ours/gradcam/weights/.probe"),
        ("photos", f"theirs/gradcam/weights/{DIGEST}"),
    ],
)
def test_a_job_reads_nothing_else_of_any_bucket(entries: str, place: str) -> None:
    assert not may_read(entries, place)


def test_without_a_prefix_the_whole_bucket_is_the_services_own() -> None:
    own = ("ours", "")
    assert may_read("photos", "ours/cats/inputs/00000000/a.jpg", own=own)
    assert may_read("photos", f"ours/weights/{DIGEST}", own=own)
    assert not may_read("photos", "ours/dogs/inputs/00000000/a.jpg", own=own)
    assert not may_read("*", "ours/dogs/inputs/00000000/a.jpg", own=own)
    assert may_read("ours", "ours/dogs/inputs/00000000/a.jpg", own=own)
    assert not may_read("photos", "ours/cats/inputs/00000000/a.jpg", None, own)  # weights belong to no job


def test_a_bucket_that_is_not_named_is_never_asked() -> None:
    """The client is asked for nothing, or it would raise AttributeError."""
    fetcher = Fetcher(FetchPolicy(allow_buckets=("photos",)), object())  # type: ignore[arg-type]
    for uri in ("s3://secrets/weights.pth", "s3://secrets/hf/config.json"):
        with pytest.raises(FetchError, match="GRADCAM_WORKER_ALLOW_BUCKETS"):
            fetcher.fetch(uri)


@pytest.mark.parametrize("entry", ["", "/", "/photos", "photos//a", "photos/../x", "s3://photos", "a b", "photos/./x"])
def test_an_entry_that_is_no_bucket_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError, match="must name buckets"):
        FetchPolicy(allow_buckets=(entry,))


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "root", ["/", "//", "/usr/..", "/proc", "/proc/self", "/sys/kernel", "/etc", "/etc/ssl", "/dev", "/boot", "data"]
)
def test_a_root_that_would_show_the_machine_is_refused(root: str) -> None:
    with pytest.raises(ValidationError, match=r"must not open|not an absolute path"):
        FetchPolicy(file_roots=(Path(root),))


def test_a_root_that_leads_to_such_a_folder_is_refused(tmp_path: Path) -> None:
    for name, target in {"all": "/", "etc": "/etc", "data": str(tmp_path)}.items():
        (tmp_path / name).symlink_to(target)
    for name in ("all", "etc", "all/proc"):
        with pytest.raises(ValidationError, match="must not open"):
            FetchPolicy(file_roots=(tmp_path / name,))
    good = (tmp_path, tmp_path / "data", Path("/dev/shm/images"), Path("/etcetera"), Path("/not/there/yet"))
    assert FetchPolicy(file_roots=good).file_roots == good


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "GRADCAM_WORKER_ALLOW_HOSTS",
            "images.internal:http",
            "must name hosts: 'images.internal:http' is no host name",
        ),
        ("GRADCAM_WORKER_ALLOW_BUCKETS", "s3://photos", "must name buckets: 's3://photos' is neither a bucket"),
        ("GRADCAM_WORKER_FILE_ROOTS", "/data,/", "must not open /: name a folder of images"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_told_when_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read(WorkerSettings)
    assert f"{name} {words}" in str(caught.value)


def test_what_is_left_open_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = WorkerSettings().fetch_policy.warnings()
    assert "Jobs may name any bucket" in warning
    for entries in ("*", "photos"):
        monkeypatch.setenv("GRADCAM_WORKER_ALLOW_BUCKETS", entries)
        assert WorkerSettings().fetch_policy.warnings() == ()
    for entries, count in {"169.254.0.0/16": 1, "0.0.0.0/0:8080": 1, "10.0.0.0/8, images.internal": 0}.items():
        monkeypatch.setenv("GRADCAM_WORKER_ALLOW_HOSTS", entries)
        assert len(WorkerSettings().fetch_policy.warnings()) == count


# --- links in folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with images, beside another one with a file that is nobody else's."""
    for name in ("set/a.jpg", "set/deep/b.jpg", "set/.hidden/c.jpg", "private/d.jpg", "private/id_rsa"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def paths(argument: str | Path, **reading: bool) -> list[Path | None]:
    with open_sources([argument], ReadOptions(**reading)) as sources:
        return [source.path for source in sources]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("x.jpg", "../private/id_rsa"),
        ("x.jpg", "/etc/hostname"),
        ("deep/x.jpg", "../../private/d.jpg"),
        ("x", "../private"),
        ("x", ".."),
        ("x", "/"),
        ("x", "../set-other"),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/**"])
def test_a_link_that_leads_outside_of_a_folder_is_not_taken_without_a_word(
    data: Path, link: str, target: str, pattern: str
) -> None:
    """Who puts a link into a shared folder would read what belongs to whoever submits it."""
    (data / "set-other").mkdir()
    (data / "set" / link).symlink_to(target)
    with pytest.raises(UsageError, match=rf"{link} is a link that leads outside of .*set: give --follow-links"):
        paths(f"{data}/set{pattern}")


def test_a_link_to_a_link_that_leads_outside_is_refused(data: Path) -> None:
    (data / "set/.one").symlink_to("../private")
    (data / "set/two.jpg").symlink_to(".one/id_rsa")
    with pytest.raises(UsageError, match="--follow-links"):
        paths(data / "set")


def test_links_outside_are_followed_where_it_is_asked_for_and_those_inside_always(data: Path) -> None:
    (data / "set/e.jpg").symlink_to("deep/b.jpg")
    (data / "set/more").symlink_to("deep")
    inside = paths(data / "set")
    assert {data / "set/e.jpg", data / "set/more/b.jpg"} < set(inside)
    (data / "link").symlink_to("set")
    assert len(paths(data / "link")) == len(inside)  # what was named may be a link itself
    (data / "set/x.jpg").symlink_to("../private/d.jpg")
    assert data / "set/x.jpg" in paths(data / "set", follow_links=True)


def test_a_link_outside_that_is_no_image_by_its_name_or_leads_nowhere_matters_to_nobody(data: Path) -> None:
    (data / "set/notes").symlink_to("../private/id_rsa")
    (data / "set/gone.jpg").symlink_to("../private/gone.jpg")
    assert len(paths(data / "set")) == 3


# --- files that lists name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["a.jpg", "deep/b.jpg", "./deep/../a.jpg", "{data}/set/a.jpg"])
@pytest.mark.parametrize("kind", ["list.txt", "list.csv", "list.jsonl"])
def test_a_list_names_files_that_lie_beside_it(data: Path, kind: str, cell: str) -> None:
    (data / "set" / kind).write_text(row_of(kind, cell.format(data=data)))
    (found,) = paths(data / "set" / kind)
    assert found is not None
    assert os.path.realpath(found) in {os.path.realpath(data / "set" / name) for name in ("a.jpg", "deep/b.jpg")}


def row_of(kind: str, cell: str) -> str:
    return {"list.txt": "{}\n", "list.csv": "uri\n{}\n", "list.jsonl": '{{"uri":"{}"}}\n'}[kind].format(cell)


@pytest.mark.parametrize(
    "cell",
    [
        "../private/id_rsa",
        "/etc/passwd",
        "{data}/private/d.jpg",
        "deep/../../private/d.jpg",
        "link.jpg",
        "folder/d.jpg",
        ".hidden/c.jpg",
        "~/.ssh/id_rsa",
        "../private/not-there.jpg",
        "../set-2/x.jpg",
    ],
)
@pytest.mark.parametrize("kind", ["list.txt", "list.csv", "list.jsonl"])
def test_a_list_names_no_other_file_of_this_machine_without_a_word(data: Path, kind: str, cell: str) -> None:
    """Whoever wrote the list may not be the one who submits it, whose files it would upload."""
    (data / "set/link.jpg").symlink_to("../private/d.jpg")
    (data / "set/folder").symlink_to("../private")
    (data / "set" / kind).write_text(row_of(kind, cell.format(data=data)))
    number = 2 if kind == "list.csv" else 1
    with pytest.raises(
        UsageError, match=rf"{kind} line {number}: .* is hidden, or lies outside .*: give --allow-local"
    ):
        paths(data / "set" / kind)


def test_files_elsewhere_are_taken_where_it_is_allowed(data: Path) -> None:
    (data / "set/list.txt").write_text("../private/d.jpg\n.hidden/c.jpg\n")
    assert len(paths(data / "set/list.txt", allow_local=True)) == 2


def test_such_a_row_is_a_bad_one_where_those_are_left_out(data: Path) -> None:
    (data / "set/list.txt").write_text("a.jpg\n../private/d.jpg\n")
    with open_sources([data / "set/list.txt"], ReadOptions(skip_bad=True)) as sources:
        assert [source.path for source in sources] == [data / "set/a.jpg"]
        assert ["--allow-local" in row.why for row in sources.bad_rows()] == [True]


@pytest.mark.parametrize("name", ["a.jpg", "/etc/passwd", "set/a.jpg", "gone.jpg"])
def test_standard_input_names_files_only_where_it_is_allowed(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What another program, or another machine, sends is no choice of whoever submits it."""
    monkeypatch.chdir(data / "set")
    with pytest.raises(UsageError, match=r"standard input line 1: .* file of this machine: give --allow-local"):
        open_sources(["-"], stdin=io.BytesIO(f"{name}\n".encode()))
    if name == "a.jpg":
        with open_sources(["-"], ReadOptions(allow_local=True), stdin=io.BytesIO(b"a.jpg\n")) as sources:
            assert [source.path for source in sources] == [Path("a.jpg")]
    with open_sources(["-"], stdin=io.BytesIO(b"s3://bucket/a.jpg\n")) as sources:
        assert sources.count == 1


def test_a_list_through_a_link_is_judged_by_where_it_was_named(data: Path) -> None:
    """A link among other files may lead to a list whose folder is another one."""
    (data / "private/list.txt").write_text("id_rsa\n")
    (data / "set/list.txt").symlink_to("../private/list.txt")
    with pytest.raises(UsageError, match="neither a file"):
        paths(data / "set/list.txt")
