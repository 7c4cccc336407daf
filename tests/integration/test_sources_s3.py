"""Prefixes, and lists that lie elsewhere, on real servers: what they give, and whose fault it is when it is nothing."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3_servers import proxied

from producer.client.client import Client
from producer.input.sources import ReadOptions, Source, Sources, open_sources
from producer.jobs.model.errors import ServiceError, UsageError
from producer.jobs.model.settings import Connections, read
from producer.jobs.store.bucket import Storage

if TYPE_CHECKING:
    from deploy.stack import Stack

A, B = "s3://bucket/a.jpg", "https://example.org/b.jpg"
#: More than one page of a listing, which has a thousand.
MANY = 1203


def put(storage: Storage, *keys: str, body: bytes = b"x") -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.client.put_object(Bucket=storage.bucket, Key=key, Body=body), keys))


@pytest.fixture(scope="module")
def storage(stack: Stack) -> Storage:
    made = Client.from_env().storage
    put(made, "set/train/", body=b"")  # as consoles make a folder
    put(
        made,
        *("set/train/b.jpg", "set/train/a.PNG", "set/train/notes.txt", "set/val/ä c.jpg", "set/mask"),
        *("set/z.jpg/x", "sets/other.jpg", "empty/notes.md", f"{made.prefix}/job/images/0/a-cam.jpg"),
        *(f"many/{n:05}.jpg" for n in range(MANY)),
    )
    return made


@pytest.fixture
def opened(storage: Storage) -> Callable[..., Sources]:
    def opened(*arguments: str | Source, reading: ReadOptions | None = None) -> Sources:
        return open_sources(arguments, reading or ReadOptions(), storage=lambda: storage)

    return opened


def uris(storage: Storage, *keys: str) -> list[str]:
    return [f"s3://{storage.bucket}/{key}" for key in keys]


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_a_prefix_gives_its_images_in_the_order_of_their_keys(storage: Storage, opened: Callable[..., Sources]) -> None:
    with opened(f"s3://{storage.bucket}/set/") as sources:
        expected = uris(storage, "set/train/a.PNG", "set/train/b.jpg", "set/val/ä c.jpg")
        for _ in range(2):
            assert [source.uri for source in sources] == expected
        assert sources.count == 3


def test_what_is_no_image_below_a_prefix_is_counted_by_suffix(storage: Storage, opened: Callable[..., Sources]) -> None:
    with opened(f"s3://{storage.bucket}/set/", A) as sources:
        next(iter(sources))
        for _ in range(2):
            assert len(list(sources)) == 4
            assert sources.left_out == {".txt": 1, "without a suffix": 2}
    with pytest.raises(UsageError, match=r"no images under .*/empty/: looked for \.apng, .*; left out: 1 \.md"):
        opened(f"s3://{storage.bucket}/empty/")


def test_patterns_choose_from_the_keys_below_a_prefix(storage: Storage, opened: Callable[..., Sources]) -> None:
    prefix = f"s3://{storage.bucket}/set/"
    chosen = opened(prefix, reading=ReadOptions(include=("train/*", "mask"), exclude=("*.txt",)))
    assert [source.uri for source in chosen] == uris(storage, "set/mask", "set/train/a.PNG", "set/train/b.jpg")
    chosen = opened(prefix, reading=ReadOptions(exclude=("train/*",)))
    assert [source.uri for source in chosen] == uris(storage, "set/val/ä c.jpg")


def test_a_long_listing_is_a_stream_whose_end_is_known_afterwards(
    storage: Storage, opened: Callable[..., Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(f"s3://{storage.bucket}/many/", A) as sources:
        assert [sources.count] == [None]
        broken_off = iter(sources)
        assert next(broken_off).uri == f"s3://{storage.bucket}/many/00000.jpg"
        assert [sources.count] == [None]
        found = [source.uri for source in sources]
        assert found == [*uris(storage, *(f"many/{n:05}.jpg" for n in range(MANY))), A]
        assert sources.count == MANY + 1
        assert next(broken_off).uri == found[1]


def test_a_listing_is_the_same_the_next_time_whatever_was_added(
    storage: Storage, opened: Callable[..., Sources]
) -> None:
    put(storage, "growing/b.jpg")
    with opened(f"s3://{storage.bucket}/growing/") as sources:
        first = list(sources)
        put(storage, "growing/a.jpg")
        assert list(sources) == first
    assert len(list(opened(f"s3://{storage.bucket}/growing/"))) == 2


def test_a_sample_of_a_listing_is_the_same_each_time(storage: Storage, opened: Callable[..., Sources]) -> None:
    with opened(f"s3://{storage.bucket}/many/", A, reading=ReadOptions(sample=100, seed=4)) as sources:
        assert sources.count == 100
        drawn = list(sources)
        assert len(drawn) == 100
        assert list(sources) == drawn
        assert drawn == sorted(drawn)
    with opened(f"s3://{storage.bucket}/many/", A, reading=ReadOptions(limit=5)) as sources:
        assert len(list(sources)) == 5


def test_what_is_said_of_a_prefix_is_said_of_each_image(storage: Storage, opened: Callable[..., Sources]) -> None:
    with opened(Source(uri=f"s3://{storage.bucket}/set/val/", class_name="cat")) as sources:
        assert list(sources) == [Source(f"s3://{storage.bucket}/set/val/ä c.jpg", class_name="cat")]


def test_a_whole_bucket_is_a_prefix_too_without_what_we_put_there(
    storage: Storage, opened: Callable[..., Sources]
) -> None:
    """Pictures that are made meanwhile would be listed and explained, for ever."""
    found = [str(source.uri) for source in opened(f"s3://{storage.bucket}/")]
    assert f"s3://{storage.bucket}/sets/other.jpg" in found
    assert not [uri for uri in found if uri.startswith(f"s3://{storage.bucket}/{storage.prefix}/")]
    # Asked for by name they are what was meant.
    assert [source.uri for source in opened(f"s3://{storage.bucket}/{storage.prefix}/job/")] == uris(
        storage, f"{storage.prefix}/job/images/0/a-cam.jpg"
    )


def test_a_prefix_without_images_is_told(storage: Storage, opened: Callable[..., Sources]) -> None:
    for prefix in ("empty/", "nothing/"):
        with pytest.raises(UsageError, match=rf"no images under s3://{storage.bucket}/{prefix}: looked for \.apng"):
            opened(f"s3://{storage.bucket}/{prefix}")


def test_a_bucket_that_is_not_there_is_told(opened: Callable[..., Sources]) -> None:
    with pytest.raises(UsageError, match=r"s3://not-there-at-all/a/ cannot be listed: there is no bucket not-"):
        opened("s3://not-there-at-all/a/")


def test_credentials_and_stores_that_cannot_be_used_are_nobodys_images_fault(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened() -> Sources:
        return open_sources([f"s3://{storage.bucket}/set/"], storage=lambda: Storage.from_settings(read(Connections)))

    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
        with pytest.raises(ServiceError, match="refuses the credentials") as caught:
            opened()
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="cannot be reached"):
        opened()


def test_what_was_typed_wrong_is_told_before_anything_is_listed() -> None:
    def never() -> Storage:
        raise AssertionError("nobody should have asked")

    with pytest.raises(UsageError, match="nonsense"):
        open_sources(["s3://bucket/set/", "s3://bucket/list.csv", "nonsense"], storage=never)


# --- lists in the store ----------------------------------------------------------------------------------------------


def test_a_list_in_the_store_is_read_like_one_here(storage: Storage, opened: Callable[..., Sources]) -> None:
    put(storage, "lists/list.csv", body=f"uri,label\n{A},cat\n{B},7\n".encode())
    put(storage, "lists/list.TXT.gz", body=gzip.compress(f"{B}\n{A}\n".encode()))
    listed = uris(storage, "lists/list.csv", "lists/list.TXT.gz")
    with opened(*listed, reading=ReadOptions(class_column="label")) as sources:
        assert sources.count == 4
        for _ in range(2):
            assert list(sources) == [Source(A, class_name="cat"), Source(B, class_id=7), Source(B), Source(A)]


def test_a_list_from_elsewhere_cannot_name_files_here(storage: Storage, opened: Callable[..., Sources]) -> None:
    """Who writes the list would else choose what is uploaded from this machine."""
    put(storage, "lists/local.txt", body=f"{A}\n/etc/passwd\n".encode())
    with pytest.raises(UsageError, match=r"local\.txt line 2: '/etc/passwd' is no address .* not on this machine"):
        opened(f"s3://{storage.bucket}/lists/local.txt")


def test_what_is_wrong_with_a_list_in_the_store_is_told(storage: Storage, opened: Callable[..., Sources]) -> None:
    put(storage, "lists/bad.csv", body=f"uri\n{A}\nftp://x\n".encode())
    put(storage, "lists/empty.csv", body=b"")
    for key, words in {
        "lists/bad.csv": r"lists/bad\.csv line 3: ftp://x is refused",
        "lists/empty.csv": "the list cannot be read: s3://.*/lists/empty.csv is empty",
        "lists/gone.csv": "the list cannot be read: there is no object s3://.*/lists/gone.csv",
    }.items():
        with pytest.raises(UsageError, match=words):
            opened(f"s3://{storage.bucket}/{key}")
    with pytest.raises(UsageError, match="there is no bucket not-there-at-all"):
        opened("s3://not-there-at-all/list.csv")


def test_a_list_that_breaks_off_is_fetched_again(
    stack: Stack, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"s3://bucket/{n}.jpg\n" for n in range(20_000))
    put(storage, "lists/long.txt", body=lines.encode())
    with proxied(stack.s3) as proxy:
        monkeypatch.setenv("GRADCAM_S3_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        through = Storage.from_settings(read(Connections))
        proxy.break_bodies(1)
        with open_sources([f"s3://{storage.bucket}/lists/long.txt"], storage=lambda: through) as sources:
            assert sources.count == 20_000
        assert proxy.counts["break_bodies"] == 1


# --- lists on web servers --------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes | int]]]:
    """A web server on this machine; what it answers by path, a number being a status or the length that it claims."""
    answers: dict[str, bytes | int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path, 404)
            body = b"" if isinstance(answer, int) else answer
            status, length = 200, len(body)
            if isinstance(answer, int):
                status, length = (answer, 0) if answer < 1000 else (200, answer)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()
        thread.join()


def test_a_list_on_a_web_server_is_read_like_one_here(web: tuple[str, dict[str, bytes | int]]) -> None:
    base, answers = web
    answers["/list.jsonl.gz?token=hunter2"] = gzip.compress(f'{{"uri":"{A}"}}\n{{"uri":"{B}"}}\n'.encode())
    answers["/list.csv"] = f"url\n{A}\n".encode()
    with open_sources([f"{base}/list.jsonl.gz?token=hunter2", f"{base}/list.csv#x"]) as sources:
        assert sources.count == 3
        for _ in range(2):
            assert [source.uri for source in sources] == [A, B, A]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (404, "list.csv cannot be fetched: the server answered 404 Not Found"),
        (b"", "list.csv is empty"),
        (b"<html>gone</html>", "list.csv has no column uri"),
        (f"uri\n{A}\nphotos/a.jpg\n".encode(), "list.csv line 3: 'photos/a.jpg' is no address"),
    ],
)
def test_what_is_wrong_with_a_list_on_a_web_server_is_told(
    web: tuple[str, dict[str, bytes | int]], answer: bytes | int, words: str
) -> None:
    base, answers = web
    answers["/list.csv"] = answer
    with pytest.raises(UsageError, match=words) as caught:
        open_sources([f"{base}/list.csv"])
    assert "\n" not in str(caught.value)


def test_a_web_server_that_is_away_is_told_and_no_secret_with_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"read: http://127.0.0.1:9/list.csv\?\*\*\* cannot be") as caught:
        open_sources(["http://127.0.0.1:9/list.csv?token=hunter2"])
    assert "hunter2" not in str(caught.value)


def test_a_list_that_is_too_large_is_told(web: tuple[str, dict[str, bytes | int]]) -> None:
    base, answers = web
    answers["/list.txt"] = 9 * 2**30
    with pytest.raises(UsageError, match="is refused: it is larger than 8,589,934,592 bytes"):
        open_sources([f"{base}/list.txt"])
