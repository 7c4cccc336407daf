r"""No secret of an address is ever shown, however it is spelled; what is harmless is shown as it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.input.sources import open_sources
from producer.jobs.model.errors import UsageError
from producer.jobs.model.redaction import hides, redact, redact_text

#: Found nowhere else in an address; looks like no number, size, format or way to fit.
secrets = st.text("abcxyzABCXYZ0189", min_size=6, max_size=40).map(lambda text: f"Zq{text}")
names = st.sampled_from(
    ["token", "sig", "X-Amz-Signature", "w", "size", "format", "v", "id", "a b", "", "%74oken", "key[]", "ключ"]
)
_AT = ["@", "%40", "%2540", "\uff20", "\ufe6b", "%EF%BC%A0", "%efbca0".replace("efbca0", "ef%bc%a0")]


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/a.jpg?size=2&page=3",
        "https://host:8443/a.jpg?w=200&h=150&dpr=2.5&fm=webp&fit=crop&v=1699999999&id=42",
        "https://host/a.jpg?width=640px&size=640x480&quality=80&version=1.2.3",
        "https://host/a.jpg?size=large&format=JPEG",
        "https://host/@a.jpg",
        "https://host/photos/12345@N00/img@2x.png",
        "https://host/AT%26T.jpg",
        "https://host/what%3F.jpg",
        "https://host/scan%20%231.jpg",
        "https://host/year=2024/month=01/day=2024-01-31/a.jpg",
        "https://host/cdn-cgi/image/width=80,quality=75/a.jpg",
        "https://host/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08.jpg",
        "https://host/550e8400-e29b-41d4-a716-446655440000/VGhpcyBpcw==",
        "https://☕.example/räksmörgås.jpg",
        "http://[2001:db8::1]:81/a.jpg",
        "http://[fe80::1%25eth0]/",
        "s3://bucket/folder/year=2024/a b%20c (1).jpg",
        "s3://bucket/scan #1.jpg",
        "s3://bucket/what?.jpg",
        "s3://bucket/a@b;c&d.jpg",
        "file:///data/räk@home/a.jpg",
        "/home/me@work/a.jpg",
        "photos/a.jpg",
        "IMAGENET1K_V1",
        "",
    ],
)
def test_what_is_harmless_is_shown_as_it_is(uri: str) -> None:
    assert redact(uri) == uri
    assert not hides(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:word@host/a.jpg", "http://***@host/a.jpg"),
        ("http://user:wo@rd@host/@a.jpg", "http://***@host/@a.jpg"),
        ("http://user:wo/rd@host/a.jpg", "http://***@host/a.jpg"),
        ("http://user:wo?rd@host/a.jpg", "http://***@host/a.jpg"),
        ("http://sesame\\@host/a.jpg", "http://***@host/a.jpg"),
        ("http:sesame@host/a.jpg", "http:***@host/a.jpg"),
        ("http:\\\\sesame@host/a.jpg", "http:\\\\***@host/a.jpg"),
        ("http:/\t/ses\name@host/a.jpg", "http://***@host/a.jpg"),
        ("http://user%3Asesame%40host/a.jpg", "http://***@host/a.jpg"),
        ("http://user:sesame", "http://user:***"),
        ("http://ses%61me/a.jpg", "http://***/a.jpg"),
        ("ftp://user:word@host/a.jpg", "ftp://***@host/a.jpg"),
        ("user:word@host/a.jpg", "***@host/a.jpg"),
        ("//user:word@host/a.jpg", "//***@host/a.jpg"),
        (" http://user:word@host/a.jpg", "http://***@host/a.jpg"),
        ("s3://id:secret@bucket/key", "s3://***@bucket/key"),
        ("s3://bucket/a@b#c", "s3://bucket/a@b#c"),
        ("s3://bucket/a.jpg?token=sesame", "s3://bucket/a.jpg?***"),
        ("data:image/png;base64,c2VzYW1l", "data:***"),
        ("https://proxy/https://user:sesame@host/a.jpg", "https://proxy/https://***@host/a.jpg"),
        ("https://proxy/https%3A%2F%2Fsesame%40host%2Fa.jpg", "https://proxy/***@host%2Fa.jpg"),
        ("https://proxy/aHR0cHM6Ly91OnBAaG9zdC8/a.jpg", "https://proxy/***/a.jpg"),
        ("https://h/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sesame/a.jpg", "https://h/***/a.jpg"),
        ("https://h/hdnts=exp=1~acl=/*~hmac=sesame/a.jpg", "https://h/***/***/a.jpg"),
        ("https://h/a?token=abc==", "https://h/a?***"),
        ("https://h/a?w=1&token=a&sig=b;h=2&c", "https://h/a?w=1&***&h=2&***"),
        ("https://h/a?W=1", "https://h/a?W=1"),
        ("https://h/a?w=1%26token=abc", "https://h/a?***"),
        ("https://h/a?url=https%3A%2F%2Fb%2F%3Ftoken%3Dabc", "https://h/a?***"),
        ("https://h/a?", "https://h/a?"),
        ("https://h/a;jsessionid=sesame/b.jpg;v=2", "https://h/a;***/b.jpg;v=2"),
        ("https://h/a%3Ftoken%3Dsesame%26w%3D1", "https://h/a%3F***"),
        ("https://h/a#access_token=abc", "https://h/a"),
        ("http://h/a\nb\u202eg\ud800", "http://h/ab\ufffdg\ufffd"),
    ],
)  # fmt: skip
def test_secrets_are_never_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert hides(redact(uri)) == ("***" in shown)


#: As their makers' documentation has them; the values are made up.
PRESIGNED = {
    "S3, signature 4": "https://b.s3.eu-west-1.amazonaws.com/a.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=ZqAKIAEXAMPLE%2F20260301%2Feu-west-1%2Fs3%2Faws4_request&X-Amz-Date=20260301T000000Z"
    "&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Security-Token=ZqIQoJb3Jp&X-Amz-Signature=Zqbf2d8e5a",
    "S3, signature 2": "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=ZqAKIAEXAMPLE&Expires=1772323200&Signature=Zqx%2Fy%3D",
    "Google, version 4": "https://storage.googleapis.com/b/a.jpg?X-Goog-Algorithm=GOOG4-RSA-SHA256"
    "&X-Goog-Credential=Zqme%40p.iam.gserviceaccount.com%2F20260301%2Fauto%2Fstorage%2Fgoog4_request"
    "&X-Goog-Date=20260301T000000Z&X-Goog-Expires=900&X-Goog-SignedHeaders=host&X-Goog-Signature=Zq9a8b",
    "Google, version 2": "https://storage.googleapis.com/b/a.jpg?GoogleAccessId=Zqme%40p&Expires=1772323200&Signature=Zqx%2B",
    "Azure": "https://acc.blob.core.windows.net/c/a.jpg?sv=2024-11-04&st=2026-03-01T00%3A00%3A00Z&se=2026-03-02T00%3A00%3A00Z"
    "&sr=b&sp=r&skoid=Zq-1&sktid=Zq-2&sig=Zqv%2FqDk%3D",
    "CloudFront": "https://d1.cloudfront.net/a.jpg?Expires=1772323200&Signature=Zq__&Key-Pair-Id=ZqK2",
    "Akamai": "https://h/a.jpg?hdnts=exp=1772323200~acl=/*~hmac=Zqff",
    "Alibaba": "https://b.oss-cn-x.aliyuncs.com/a.jpg?OSSAccessKeyId=ZqLTAI&Expires=1&Signature=Zq%3D",
}  # fmt: skip


@pytest.mark.parametrize("kind", PRESIGNED)
def test_of_a_presigned_address_no_parameter_is_shown(kind: str) -> None:
    uri = PRESIGNED[kind]
    assert redact(uri) == uri.partition("?")[0] + "?***"


@given(
    secrets,
    st.sampled_from(["http", "https", "HTTP", "ftp", "s3", "redis"]),
    st.sampled_from([":", "\uff1a", "%3A"]),
    st.sampled_from(["//", "/", "", "///", "\\\\", "\\/", "\uff0f\uff0f", "%2F%2F", "/\t/", "\u2044/"]),
    st.sampled_from(["{}", "user:{}", "{}:", "user%3A{}", "user:{}\\", "u\\{}", "{}%2F", "user:{}/x", "user:a?{}"])
    | st.sampled_from(["{}\t", "a@{}", "{};"]),
    st.sampled_from(_AT),
    st.sampled_from(["host/a.jpg", "host", "host:80/@b?w=1", "", "[::1]/a"]),
)  # fmt: skip
def test_a_user_or_password_is_never_shown_however_it_is_spelled(
    secret: str, scheme: str, colon: str, slashes: str, spelled: str, at: str, place: str
) -> None:
    shown = redact(f"{scheme}{colon}{slashes}{spelled.format(secret)}{at}{place}")
    assert secret not in shown
    assert "***" in shown


@given(
    secrets,
    names,
    st.sampled_from(["{n}={s}", "{s}={n}", "{s}", "{n}=1{s}", "{n}[{s}]=1", "url=https://u:{s}@host/", "{n}=a={s}"]),
    st.sampled_from(["w=1", "id=2&h=3", "x", ""]),
    st.sampled_from(["&", ";", "&amp;", "%26", "%3B", "?", "&&"]),
    st.sampled_from(["https://host/a.jpg?", "http://u:p@h/?", "https://host?", "a.jpg?", "https://h/a%3F", "https://h/a\uff1f"]),
)  # fmt: skip
def test_a_parameter_of_a_query_is_never_shown_unless_it_is_harmless(
    secret: str, name: str, spelled: str, before: str, between: str, begin: str
) -> None:
    assert secret not in redact(begin + before + between + spelled.format(n=name, s=secret))


@given(
    secrets,
    names,
    st.sampled_from(["https://host/a", "http://host:81/x/y.jpg", "s3://bucket/key", "file:///data/a", "photos/a"]),
    st.sampled_from([";", "%3B", "%253B", "%3b", "\uff1b", "?", "%3F", "%253F", "&", "%26", "\uff06", "#", "%23"]),
    st.sampled_from(["=", "%3D", "%253D", "\uff1d"]),
    st.sampled_from(["", "/b.jpg", ";v=2", "?w=1"]),
)
def test_a_parameter_within_a_path_or_behind_a_key_is_never_shown(
    secret: str, name: str, begin: str, sign: str, equals: str, behind: str
) -> None:
    assert secret not in redact(f"{begin}{sign}{name}{equals}{secret}{behind}")


@given(
    secrets, st.sampled_from(["http://host/a#", "https://host#", "HTTPS://h/a?w=1#", "ftp://h/a#", "https://h/a\uff03"])
)
def test_a_fragment_of_a_web_address_is_never_shown(secret: str, begin: str) -> None:
    assert secret not in redact(begin + secret)
    assert secret not in redact(f"{begin}?x;{secret}@y")


@given(st.text("htps:/@?#;&=%40a1.\\ ", max_size=40) | st.text(max_size=40))
def test_what_was_redacted_stays_as_it_is(text: str) -> None:
    """Old records are redacted again when they are read, and compared with new ones."""
    assert redact(redact(text)) == redact(text)
    redact_text(text).encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Failed to parse: https://u:sesame@h/a", "Failed to parse: https://***@h/a"),
        ("(url='https://h/a?token=sesame')", "(url='https://h/a?***"),
        ("<https://h/a;key=sesame>,", "<https://h/a;***"),
        ("exceeded with url: /a.jpg?token=sesame (Caused by", "exceeded with url: /a.jpg?*** (Caused by"),
        ("resnet50=https://u:sesame@h/w.pth failed", "resnet50=https://***@h/w.pth failed"),
        ("redis://:sesame@h:6379/0: refused", "redis://***@h:6379/0: refused"),
        ("unknown 'AUTH', with args beginning with: 'app' 'ses ame' ", "unknown 'AUTH', with args beginning with: ***"),
        *((text, text) for text in ('File "/a/b.py", line 3, in c\n    @property\nwhy? a=b; x=y', "job=cats s3://b/a.jpg")),
    ],
)  # fmt: skip
def test_addresses_within_a_text_are_redacted_and_all_else_stays(text: str, shown: str) -> None:
    assert redact_text(text) == shown


@pytest.mark.parametrize(
    "half",
    [
        "http:sesame@h/a.jpg",
        "user:sesame@h/a.jpg",
        "h/a.jpg?token=sesame",
        "h/a.jpg;token=sesame",
        "http:/h/a?*=sesame",
    ],
)
def test_half_an_address_that_is_typed_or_listed_is_refused_without_its_secret(half: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{half}\n")
    for typed in (half, str(tmp_path / "list.txt")):
        with pytest.raises(UsageError) as caught, open_sources([typed]) as sources:
            list(sources)
        assert "nor an address" in str(caught.value)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("piece", ["a", ":", "@", "%25", "%2540", ";a=b", "&", "?", "x:/", "%"])
@pytest.mark.parametrize("begin", ["", "http://h/", "s3://b/"])
def test_a_long_address_costs_no_time(begin: str, piece: str) -> None:
    text = begin + piece * ((2**16 - 20) // len(piece))
    started = time.process_time()
    redact(text)
    redact_text(text)
    assert time.process_time() - started < 1


def test_what_is_longer_than_any_address_is_hidden_whole() -> None:
    started = time.process_time()
    assert redact("http://h/?" * 100_000) == "***"
    assert redact_text("a " + "http://h/?" * 100_000 + " b") == "a *** b"
    assert redact_text("word " * 200_000) == "word " * 200_000
    assert time.process_time() - started < 1
