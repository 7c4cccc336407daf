"""Redis addresses as users write them: read whole or refused in a sentence, and nothing of a password is shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producer.jobs.broker import celery_app
from producer.jobs.model.errors import SettingsError
from producer.jobs.model.redis_url import RedisUrl
from producer.jobs.model.settings import Connections, read
from producer.jobs.table.redis_scripts import make_redis_client

#: Its parts are found nowhere else in a sentence of ours.
LEFT, RIGHT = "hunter", "7rabbit"


def connections(url: str) -> Connections:
    return Connections(redis_url=url, s3_bucket="pictures")


@pytest.mark.parametrize("sign", ["@", "#", "/", "?", "@/", "/@", "#@", "?@", " ", "\t"])
@pytest.mark.parametrize("user", ["", "app"])
def test_a_password_with_an_unquoted_sign_is_refused_and_nothing_of_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, sign: str, user: str
) -> None:
    for left in (LEFT, "6379", ""):
        monkeypatch.setenv("GRADCAM_REDIS_URL", f"redis://{user}:{left}{sign}{RIGHT}@redis.internal:6379/0")
        monkeypatch.setenv("GRADCAM_S3_BUCKET", "pictures")
        with pytest.raises(SettingsError, match=r"%40 %23 %2F %3F") as caught:
            read(Connections)
        assert LEFT not in str(caught.value)
        assert RIGHT not in str(caught.value)


@given(st.text(alphabet="ab1:@#/?&=% []+~é", min_size=1, max_size=12), st.sampled_from(["", "app"]))
@example("12?34", "app")
@example("12/34", "app")
@example("1#", "")
def test_whatever_a_password_holds_no_part_of_it_is_taken_for_the_host(password: str, user: str) -> None:
    try:
        url = RedisUrl.read(f"redis://{user}:{password}@redis.internal:7000/2")
    except ValueError:
        return
    assert (url.host, url.port, url.database, url.address) == ("redis.internal", 7000, 2, "redis.internal:7000")


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_a_quoted_password_reaches_both_clients_as_it_is(password: str) -> None:
    text = f"redis://app:{quote(password, safe='')}@redis.internal:6380/3"
    url = RedisUrl.read(text)
    assert (url.user, url.password) == ("app", password)
    kwargs = make_redis_client(connections(text)).get_connection_kwargs()
    assert (kwargs["host"], kwargs["port"], kwargs["db"]) == ("redis.internal", 6380, 3)
    assert (kwargs["username"], kwargs["password"]) == ("app", password)
    broker = celery_app.make_app(text).connection_for_read()
    assert (broker.hostname, broker.port, broker.userid, broker.password) == ("redis.internal", 6380, "app", password)


def test_parameters_of_an_address_reach_both_clients() -> None:
    text = "redis://:word@redis.internal?socket_timeout=7.5&health_check_interval=3&client_name=team&db=4"
    kwargs = make_redis_client(connections(text)).get_connection_kwargs()
    assert (kwargs["socket_timeout"], kwargs["health_check_interval"]) == (7.5, 3)
    assert (kwargs["client_name"], kwargs["db"], kwargs["socket_connect_timeout"]) == ("team", 4, 5)
    broker = celery_app.make_app(text).connection_for_read()
    assert broker.as_uri() == "redis://:**@redis.internal:6379/4"
    assert broker.transport_options is not None
    assert broker.transport_options["socket_timeout"] == 7.5
    assert broker.transport_options["client_name"] == "team"
    assert broker.transport_options["socket_connect_timeout"] == 5


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h/0?socket_timeout=abc", "socket_timeout, which must be a number of seconds"),
        ("redis://h/0?socket_timeout=nan", "socket_timeout, which must be a number of seconds"),
        ("redis://h/0?socket_timeout=1", "3 or more"),
        ("redis://h/0?max_connections=1", "a parameter that is not read; those that are: db, socket_timeout"),
        ("redis://h/0?password=x", "a parameter that is not read"),
        ("redis://h/0?retry_on_timeout", "a parameter that is not read"),
        ("redis://h/0?db=1&db=2", "db twice"),
        ("redis://h/3?db=2", "two databases"),
        ("redis://h/0?ssl_cert_reqs=none", "goes with rediss://"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://h/0?ssl_ca_certs=/not/there.pem", "ssl_ca_certs, which names a file that is not there"),
        ("sentinel://h:26379/0", "a Sentinel, which is not read: give the primary's own address"),
        ("redis+sentinel://h:26379/mymaster/0", "a Sentinel"),
        ("sentinel://a:26379;sentinel://b:26379", "a Sentinel"),
        ("unix:///run/redis.sock", "a Unix socket, which is not read"),
        ("redis+socket:///run/redis.sock", "a Unix socket"),
        ("redis://a:1,b:2/0", "several hosts"),
        ("redis://h:65536/0", "must look like redis://"),
        ("redis://h:0/0", "must look like redis://"),
        ("redis://h/mymaster", "the database behind the host is a number"),
        ("redis://", "must look like redis://"),
        ("h:6379", "must look like redis://"),
        ("redis://[::1/0", "must look like redis://"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_before_anything_connects(url: str, says: str) -> None:
    with pytest.raises(ValueError, match="redis_url") as caught:
        connections(url)
    assert says in str(caught.value)


def test_tls_is_checked_unless_the_address_says_otherwise(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    url = RedisUrl.read(f"rediss://:word@[::1]:7000/0?ssl_ca_certs={authority}&ssl_check_hostname=false")
    assert (url.tls, url.host, url.address) == (True, "::1", "[::1]:7000")
    assert url.ssl == {"ssl_ca_certs": str(authority), "ssl_check_hostname": False}
    assert RedisUrl.read("rediss://h?ssl_cert_reqs=CERT_NONE").ssl["ssl_cert_reqs"].name == "CERT_NONE"
    assert "word" not in repr(url)
