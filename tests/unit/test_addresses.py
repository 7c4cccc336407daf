"""Which addresses are read, refused, shown and opened."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from pydantic import ValidationError

from producer.jobs.fetch.addresses import FileAddress, HttpAddress, S3Address, parse, stem
from producer.jobs.fetch.policy import FetchPolicy, checked_addresses, checked_file
from producer.jobs.model.errors import FetchError


class Names:
    """A resolver with fixed answers that counts its questions."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[tuple[object, ...]]:
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


def nobody_asks(host: str, port: int) -> list[tuple[object, ...]]:
    raise AssertionError(f"{host} was looked up")


# --- parse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket/cat.jpg", "bucket", "cat.jpg"),
        ("S3://bucket/folder/a%20b?.jpg#1", "bucket", "folder/a%20b?.jpg#1"),
        ("s3://my.bucket-1/räksmörgås @home.jpg", "my.bucket-1", "räksmörgås @home.jpg"),
        ("s3://bucket//a", "bucket", "/a"),
    ],
)
def test_an_object_key_is_taken_literally(uri: str, bucket: str, key: str) -> None:
    address = parse(uri)
    assert isinstance(address, S3Address)
    assert (address.scheme, address.bucket, address.key) == ("s3", bucket, key)


@pytest.mark.parametrize(
    ("uri", "host", "port", "target"),
    [
        ("http://host/a.jpg", "host", 80, "/a.jpg"),
        ("https://host", "host", 443, "/"),
        ("https://host?x=1", "host", 443, "/?x=1"),
        ("HTTPS://Host.Example.:8443/A", "host.example", 8443, "/A"),
        ("http://host:/a", "host", 80, "/a"),
        ("http://bücher.example/ä b.jpg?q=ö#top", "xn--bcher-kva.example", 80, "/%C3%A4%20b.jpg?q=%C3%B6"),
        ("http://straße.example/a", "xn--strae-oqa.example", 80, "/a"),
        ("http://STRASSE.Straße.example/a", "strasse.xn--strae-oqa.example", 80, "/a"),
        ("http://βόλος.example/a", "xn--nxasmm1c.example", 80, "/a"),
        ("http://faß.de/a", "xn--fa-hia.de", 80, "/a"),
        ("http://nic.\u0dc1\u0dca\u200d\u0dbb\u0dd3.example/a", "nic.xn--10cl1a0b660p.example", 80, "/a"),
        ("http://r3---sn-ä.example/a", "xn--r3---sn--7za.example", 80, "/a"),
        ("http://☕.example/a", "xn--53h.example", 80, "/a"),
        ("http://i❤.example/a", "xn--i-7iq.example", 80, "/a"),
        ("http://日本語\u3002\uff2a\uff30/a", "xn--wgv71a119e.jp", 80, "/a"),
        ("http://bu\u0308cher.ex\u00adample/a", "xn--bcher-kva.example", 80, "/a"),
        ("http://host/%20?a=%2F", "host", 80, "/%20?a=%2F"),
        ("http://host/@user/a.jpg", "host", 80, "/@user/a.jpg"),
        ("http://my_service/a", "my_service", 80, "/a"),
        ("http://192.0.2.1./a", "192.0.2.1", 80, "/a"),
        ("http://[2001:DB8:0::1]:81/a", "2001:db8::1", 81, "/a"),
    ],
)
def test_a_web_address_is_read_into_one_form(uri: str, host: str, port: int, target: str) -> None:
    address = parse(uri)
    assert isinstance(address, HttpAddress)
    assert (address.host, address.port, address.target) == (host, port, target)


@pytest.mark.parametrize(
    ("uri", "netloc"),
    [
        ("http://Host:80/a", "host"),
        ("https://host:80/a", "host:80"),
        ("http://[::1]/a", "[::1]"),
        ("http://[::1]:81/a", "[::1]:81"),
    ],
)
def test_the_host_header_names_the_port_only_where_it_is_unusual(uri: str, netloc: str) -> None:
    address = parse(uri)
    assert isinstance(address, HttpAddress)
    assert address.netloc == netloc
    assert address.url == f"{address.scheme}://{netloc}/a"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/a.jpg", "/data/a.jpg"),
        ("file://localhost/data/a.jpg", "/data/a.jpg"),
        ("file:///data/a%20b%23.jpg", "/data/a b#.jpg"),
        ("file:///data/a?#.jpg", "/data/a?#.jpg"),
        ("file:///data/%FF.jpg", "/data/\udcff.jpg"),
    ],
)
def test_a_file_address_is_percent_decoded(uri: str, path: str) -> None:
    address = parse(uri)
    assert isinstance(address, FileAddress)
    assert address.path == Path(path)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a.jpg", "s3://, http://, https:// or file://"),
        ("/data/a.jpg", "s3://, http://, https:// or file://"),
        (r"C:\a.jpg", "s3://, http://, https:// or file://"),
        ("http:/host/a.jpg", "s3://, http://, https:// or file://"),
        ("ftp://host/a.jpg", "s3://, http://, https:// or file://"),
        ("gopher://host/a.jpg", "s3://, http://, https:// or file://"),
        ("data:image/png;base64,AAAA", "s3://, http://, https:// or file://"),
        ("javascript:alert(1)", "s3://, http://, https:// or file://"),
        (" http://host/a.jpg", "s3://, http://, https:// or file://"),
        ("s3://", "no bucket"),
        ("s3:///key", "no bucket"),
        ("s3://bucket", "no key"),
        ("s3://bucket/", "no key"),
        ("s3://a/key", "bucket's name"),
        ("s3://b cket/key", "bucket's name"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name/key", "bucket's name"),
        ("s3://bucket/" + "ä" * 513, "longer than 1,024 bytes"),
        ("http:///a.jpg", "no host"),
        ("http://?a", "no host"),
        ("http://:80/a.jpg", "no host"),
        ("http://./a.jpg", "no host"),
        ("http://host:0/", "port"),
        ("http://host:65536/", "port"),
        ("http://host:80a/", "host or port"),
        ("http://host:-1/", "host or port"),
        ("http://host:80:80/", "IPv6|host or port"),
        ("http://[::1/", "host or port"),
        ("http://[host]/", "no IPv6 address"),
        ("http://[fe80::1%eth0]/", "zone"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("http://ho st/", "no name"),
        ("http://ho%73t/", "no name"),
        ("http://host\\@other/", "user name"),
        ("http://host\\other/", "no name"),
        ("http://a..b/", "no name"),
        ("http://-a/", "no name"),
        (f"http://{'a' * 64}/", "no name"),
        (f"http://{'a.' * 127}a/", "no name"),
        (f"http://{'ä' * 64}/", "no name"),
        (f"http://{'ä' * 8000}/", "no name"),
        ("http://a\u200db.example/", "no name"),
        ("http://\u0301ä.example/", "no name"),
        ("http://ä\u05d0.example/", "no name"),
        ("http://a\u2260b.ex\U000e0041mple/", "no name"),
        ("http://ä\u2025b.example/", "no name"),
        ("http://ä\uff0fb.example/", "no name"),
        ("http://ä\uff20b.example/", "no name"),
        ("http://ä\uff1a80/", "no name"),
        ("http://user@host/a.jpg", "user name or a password"),
        ("http://user:word@host/a.jpg", "user name or a password"),
        ("http://@host/a.jpg", "user name or a password"),
        ("file://", "no file"),
        ("file:///", "no file"),
        ("file://host/a.jpg", "another machine"),
        ("file://../a.jpg", "another machine"),
        ("file:a.jpg", "s3://, http://, https:// or file://"),
        ("file:///a%00.jpg", "control"),
        ("file:///a%0a.jpg", "control"),
        ("s3://bucket/a\nb", "control"),
        ("http://host/a\tb", "control"),
        ("http://host/\x00", "control"),
        ("http://host/\x7f", "control"),
        ("http://host/\u2028", "control"),
        ("http://host/\ud800", "control"),
    ],
)
def test_what_can_never_be_fetched_is_refused_with_its_reason(uri: str, why: str) -> None:
    with pytest.raises(FetchError, match=why) as caught:
        parse(uri)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0X7F.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.01",
        "127.0.0.1.1",
        "127.0.0.256",
        "0x7f.0.0.0x1",
        "0x",
        "host.1",
        "2130706433.",
        "\uff11\uff12\uff17.1",
        "\u2460\uff12\uff17.1",
        "127\u30021",
    ],
)
def test_numbers_that_are_no_plain_ipv4_are_refused_unresolved(host: str) -> None:
    with pytest.raises(FetchError, match="no plain IPv4"):
        parse(f"http://{host}/a.jpg")
    with pytest.raises(FetchError, match="no plain IPv4"):
        checked_addresses(host, 80, FetchPolicy(), nobody_asks)


@pytest.mark.parametrize("host", ["\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u246027.0.0.1"])
def test_wide_digits_and_dots_are_the_address_they_look_like(host: str) -> None:
    address = parse(f"http://{host}/")
    assert isinstance(address, HttpAddress)
    assert address.host == "127.0.0.1"


def test_the_longest_address_has_8192_characters() -> None:
    assert parse("http://host/".ljust(8192, "a"))
    with pytest.raises(FetchError, match="8,193 characters") as caught:
        parse("http://user:word@".ljust(8193, "a"))
    assert "word" not in str(caught.value)


def test_a_long_address_is_shortened_in_messages() -> None:
    assert len(parse("http://host/" + "a" * 8000).shown) == 200


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["http://user:sesame@host/", "ftp://user:sesame@h/", "user:sesame@h/", "http://h:99999/?token=sesame", "s3://user:sesame@b/k"],
)  # fmt: skip
def test_a_refusal_shows_no_secrets(uri: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse(uri)
    assert "sesame" not in str(caught.value)


# --- stem ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/cats/cat.jpg", "cat"),
        ("https://host/cats/My%20Cat.tar.gz?x=/y.png#/z", "My_Cat.tar"),
        ("file:///data/cat", "cat"),
        ("s3://bucket/what?.jpg", "what_"),
        ("photos/cat.jpg", "cat"),
        ("https://host/cats/", "cats"),
        ("https://host/кот.jpg", "кот"),
        ("https://host/%E7%8C%AB%E3%81%AE%E5%86%99%E7%9C%9F.jpg", "猫の写真"),
        ("https://host/%ff.jpg", "_"),
        ("s3://bucket/" + "猫" * 60 + ".jpg", "猫" * 40),
        ("s3://bucket/nul.jpg", "_nul"),
        ("https://host/..%2F..%2Fetc%2Fpasswd", "_.._etc_passwd"),
        ("https://host/a%00b.jpg", "a_b"),
        ("https://host/.jpg", "jpg"),
        ("https://host/a..jpg", "a"),
        ("https://host/" + "a" * 300 + ".jpg", "a" * 100),
        ("https://example.com", "image"),
        ("https://host/..", "image"),
        ("https://host/%2e%2e", "image"),
        ("https://host/?a/b.jpg", "image"),
        ("https://host/cat;key=sesame.jpg", "cat"),
        ("https://host/cat%3Fkey%3Dsesame", "cat"),
        ("https://host/cat.jpg%253Fkey%253Dsesame", "cat"),
        ("https://host/key=sesame", "image"),
        ("s3://bucket/cat?key=sesame", "cat"),
        ("s3://bucket", "image"),
        ("", "image"),
    ],
)
def test_a_stem_is_safe_in_every_file_name(uri: str, expected: str) -> None:
    assert stem(uri) == expected


# --- hosts -----------------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "::1": "loopback",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "fd00::1": "private",
    "fd00:ec2::254": "private",
    "100.64.0.1": "CGNAT",
    "100.127.255.255": "CGNAT",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fec0::1": "site-local",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
    "192.0.0.8": "reserved",
    "192.0.2.1": "reserved",
    "198.18.0.1": "reserved",
    "203.0.113.9": "reserved",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "2001:db8::1": "reserved",
    "3fff::1": "reserved",
    "4000::1": "reserved",
    "::ffff:127.0.0.1": "reserved",
    "::ffff:8.8.8.8": "reserved",
    "::7f00:1": "reserved",
    "::ffff:0:7f00:1": "reserved",
    "2002:7f00:1::": "reserved",
    "2001:0:7f00:1::": "reserved",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
    "64:ff9b:1::7f00:1": "reserved",
}


@pytest.mark.parametrize(("address", "kind"), FORBIDDEN.items())
def test_addresses_outside_the_internet_are_refused(address: str, kind: str) -> None:
    for host, resolve in ((address, nobody_asks), ("name.test", Names(address))):
        with pytest.raises(FetchError, match=r"is refused.*GRADCAM_WORKER_ALLOW_HOSTS") as caught:
            checked_addresses(host, 80, FetchPolicy(), resolve)
        assert not re.search(rf"is {kind}|{kind} address|its address", str(caught.value))
        assert caught.value.why is not None
        assert f"its address {ip_address(address)} is " in caught.value.why
        assert kind in caught.value.why


def test_one_forbidden_address_refuses_the_whole_host() -> None:
    with pytest.raises(FetchError, match="is refused"):
        checked_addresses("name.test", 80, FetchPolicy(), Names("8.8.8.8", "10.0.0.1"))


def test_a_link_local_answer_with_a_zone_is_refused() -> None:
    with pytest.raises(FetchError, match="is refused"):
        checked_addresses("name.test", 80, FetchPolicy(), Names("fe80::1%2"))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.63.0.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_accepted(address: str) -> None:
    assert checked_addresses("name.test", 80, FetchPolicy(), Names(address)) == [address]
    assert checked_addresses(address, 80, FetchPolicy(), nobody_asks) == [address]


def test_a_name_is_looked_up_once_and_its_addresses_keep_their_order() -> None:
    names = Names("8.8.8.8", "8.8.4.4", "8.8.8.8")
    assert checked_addresses("name.test", 80, FetchPolicy(), names) == ["8.8.8.8", "8.8.4.4"]
    assert names.asked == 1


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_NONAME, "no"), TimeoutError(), UnicodeError()])
def test_a_name_that_cannot_be_looked_up_is_an_error(failure: Exception) -> None:
    def fail(host: str, port: int) -> list[tuple[object, ...]]:
        raise failure

    for resolve in (fail, Names()):
        with pytest.raises(FetchError, match=r"the host name\.test is not known") as caught:
            checked_addresses("name.test", 80, FetchPolicy(), resolve)
        assert caught.value.why == "the host name.test: the name is not known"


@pytest.mark.parametrize(
    ("allowed", "host", "address"),
    [
        ("10.0.0.0/8", "name.test", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.3"),
        ("[::1]", "[::1]", "::1"),
        ("fd00::/8", "name.test", "fd00::1"),
        ("name.test", "name.test", "10.1.2.3"),
        ("Name.Test.", "NAME.test.", "10.1.2.3"),
        ("localhost", "localhost", "127.0.0.1"),
        ("*.localhost", "pictures.localhost", "::1"),
        ("127.0.0.1", "name.test", "127.0.0.1"),
        ("127.0.0.0/8", "name.test", "127.1.2.3"),
        ("bücher.test", "xn--bcher-kva.test", "100.64.0.1"),
        ("*.test", "a.b.test", "192.168.0.1"),
        ("169.254.169.0/24", "name.test", "169.254.169.254"),
    ],
)
def test_the_allow_list_opens_private_hosts(allowed: str, host: str, address: str) -> None:
    policy = FetchPolicy(allow_hosts=(allowed,))
    assert checked_addresses(host, 80, policy, Names(address)) == [address]


@pytest.mark.parametrize(
    ("allowed", "host", "address"),
    [
        ("10.0.0.0/8", "name.test", "192.168.0.1"),
        ("10.0.0.0/8", "name.test", "::ffff:10.0.0.1"),
        ("10.0.0.0/8", "name.test", "64:ff9b::a00:1"),
        ("name.test", "other.test", "10.0.0.1"),
        ("name.test", "a.name.test", "10.0.0.1"),
        ("name.test", "10.0.0.1", "10.0.0.1"),
        ("*.name.test", "name.test", "10.0.0.1"),
        ("*.name.test", "evilname.test", "10.0.0.1"),
        ("name.test", "name.test", "0.0.0.0"),
        ("name.test", "name.test", "224.0.0.1"),
        ("name.test", "name.test", "64:ff9b::a00:1"),
        # What listens on the worker's machine for itself alone.
        ("name.test", "name.test", "127.0.0.1"),
        ("*.test", "name.test", "::1"),
        ("localhost", "name.test", "127.0.0.1"),
        ("localhost", "localhost.test", "127.0.0.1"),
        # Cloud metadata: the credentials of the machine itself.
        ("*.internal", "metadata.google.internal", "169.254.169.254"),
        ("*.internal", "metadata.google.internal", "fd20:ce::254"),
        ("name.test", "name.test", "fd00:ec2::254"),
        ("name.test", "name.test", "100.100.100.200"),
    ],
)
def test_the_allow_list_opens_nothing_else(allowed: str, host: str, address: str) -> None:
    policy = FetchPolicy(allow_hosts=(allowed,))
    with pytest.raises(FetchError, match="GRADCAM_WORKER_ALLOW_HOSTS"):
        checked_addresses(host, 80, policy, Names(address))


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.",
        "http://host",
        "host:",
        "host:0",
        "host:65536",
        "host:a",
        "*:80",
        "[::1",
        "10.0.0.5/8",
        "127.1",
        "a b",
        "*.*.test",
    ],
)
def test_an_allow_list_entry_that_can_never_match_is_refused(entry: str) -> None:
    with pytest.raises(ValidationError, match="is no host name"):
        FetchPolicy(allow_hosts=(entry,))


def test_a_policy_is_frozen_complete_and_in_range() -> None:
    policy = FetchPolicy()
    assert (policy.max_bytes, policy.total_timeout_s, policy.max_redirects) == (64 * 2**20, 60, 3)
    with pytest.raises(ValidationError):
        policy.max_bytes = 1  # type: ignore[misc]
    for wrong in ({"max_byte": 1}, {"max_bytes": 0}, {"total_timeout_s": float("inf")}, {"file_roots": ["data"]}):
        with pytest.raises(ValidationError):
            FetchPolicy.model_validate(wrong)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "root" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "root-secret").mkdir()
    (tmp_path / "root-secret" / "word").write_bytes(b"word")
    return tmp_path / "root"


def test_without_roots_the_refusal_names_the_setting(root: Path) -> None:
    with pytest.raises(FetchError, match="GRADCAM_WORKER_FILE_ROOTS is not set"):
        checked_file(root / "cat.jpg", FetchPolicy())


def test_a_file_under_a_root_is_accepted(root: Path) -> None:
    policy = FetchPolicy(file_roots=(Path("/nowhere"), root))
    assert checked_file(root / "cat.jpg", policy) == Path(os.path.realpath(root / "cat.jpg"))
    assert checked_file(root / "folder" / ".." / "cat.jpg", policy).name == "cat.jpg"


def test_a_root_may_be_a_link_and_a_link_may_stay_inside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (root / "folder" / "inside").symlink_to("../cat.jpg")
    policy = FetchPolicy(file_roots=(tmp_path / "link",))
    assert checked_file(tmp_path / "link" / "folder" / "inside", policy) == Path(os.path.realpath(root / "cat.jpg"))


@pytest.mark.parametrize(
    "name", ["../root-secret/word", "folder/../../root-secret/word", "link", "folders/word", "gone"]
)
def test_a_path_that_leads_outside_is_refused(root: Path, name: str) -> None:
    """Whether there is such a file is not told: `gone` leads to none."""
    (root / "link").symlink_to("../root-secret/word")
    (root / "folders").symlink_to("../root-secret")
    (root / "gone").symlink_to("../root-secret/none")
    with pytest.raises(FetchError, match="not under the folders of GRADCAM_WORKER_FILE_ROOTS"):
        checked_file(root / name, FetchPolicy(file_roots=(root,)))


def test_only_regular_files_are_accepted(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "folder", ""):
        with pytest.raises(FetchError, match="not a regular file"):
            checked_file(root / name, FetchPolicy(file_roots=(root,)))
    # No folder with devices can be a root; should there be one in another, it is refused all the same.
    with pytest.raises(FetchError, match="not a regular file"):
        checked_file(Path("/dev/null"), FetchPolicy.model_construct(file_roots=(Path("/dev"),)))


def test_a_missing_file_and_a_loop_of_links_are_errors(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    policy = FetchPolicy(file_roots=(root,))
    with pytest.raises(FetchError, match="there is no file"):
        checked_file(root / "none.jpg", policy)
    with pytest.raises(FetchError):
        checked_file(root / "loop", policy)
    with pytest.raises(FetchError):
        checked_file(root / ("a" * 300), policy)
