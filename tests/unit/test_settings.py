from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from producer.jobs.model.errors import SettingsError
from producer.jobs.model.settings import Connections, read, read_both
from worker.settings import WorkerSettings

GOOD = {"GRADCAM_REDIS_URL": "redis://:word@localhost:6379/0", "GRADCAM_S3_BUCKET": "pictures"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("GRADCAM_"):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_good_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**GOOD, "GRADCAM_S3_PREFIX": "/deep/down/"})
    settings = read(Connections)
    assert settings.redis_address == "localhost:6379"
    assert settings.s3_prefix == "deep/down"
    assert settings.s3_endpoint_url is None


def test_missing_wrong_and_misspelt_settings_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        {"GRADCAM_REDIS_URL": "localhost", "GRADCAM_S3_BUKET": "x", "GRADCAM_WORKER_BATCHSIZE": "3"},
    )
    with pytest.raises(SettingsError) as caught:
        read_both(Connections, WorkerSettings)
    text = str(caught.value)
    assert "GRADCAM_REDIS_URL must look like redis://" in text
    assert "GRADCAM_S3_BUCKET is missing" in text
    assert "GRADCAM_S3_BUKET is not a setting (did you mean GRADCAM_S3_BUCKET?)" in text
    assert "GRADCAM_WORKER_BATCHSIZE is not a setting (did you mean GRADCAM_WORKER_BATCH_SIZE?)" in text


def test_only_who_has_no_servers_is_told_how_to_start_some(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**GOOD, "GRADCAM_WORKER_BATCH_SIZE": "many"})
    with pytest.raises(SettingsError) as wrong:
        read_both(Connections, WorkerSettings)
    assert "gradcam up" not in str(wrong.value)
    monkeypatch.delenv("GRADCAM_S3_BUCKET")
    with pytest.raises(SettingsError, match="For a stack on this machine run `gradcam up`"):
        read_both(Connections, WorkerSettings)


def test_no_message_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"GRADCAM_REDIS_URL": "http://:hunter2@localhost", "GRADCAM_S3_BUCKET": "pictures"})
    with pytest.raises(SettingsError) as caught:
        read(Connections)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("GRADCAM_REDIS_URL", "redis://:hunter2@localhost:6379/0")
    assert "hunter2" not in repr(read(Connections))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADCAM_REDIS_URL", "redis://localhost:notaport/0"),
        ("GRADCAM_S3_ENDPOINT_URL", "localhost:9000"),
        ("GRADCAM_S3_ENDPOINT_URL", "http://user:word@localhost:9000"),
        ("GRADCAM_S3_PUBLIC_ENDPOINT_URL", "pictures.example.org"),
        ("GRADCAM_S3_BUCKET", "UPPER"),
        ("GRADCAM_S3_PREFIX", "a b"),
        ("GRADCAM_JOB_LIFETIME_DAYS", "-1"),
        ("GRADCAM_LOG", "xml"),
        ("GRADCAM_TRACES", "jaeger"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    set_all(monkeypatch, {**GOOD, name: value})
    with pytest.raises(SettingsError, match=name):
        read(Connections)


@pytest.mark.parametrize(("value", "format"), [("json", "json"), ("text", "text"), ("", "text")])
def test_a_log_is_text_or_json(monkeypatch: pytest.MonkeyPatch, value: str, format: str) -> None:
    set_all(monkeypatch, {**GOOD, "GRADCAM_LOG": value})
    assert read(Connections).log == format


@pytest.mark.parametrize(("value", "export"), [("otlp", "otlp"), ("off", "off"), ("", "off")])
def test_traces_are_off_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch, value: str, export: str) -> None:
    set_all(monkeypatch, {**GOOD, "GRADCAM_TRACES": value})
    assert read(Connections).traces == export


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADCAM_WORKER_ALLOW_HOSTS", "images.internal, 10.0.0.0/8")
    monkeypatch.setenv("GRADCAM_WORKER_FILE_ROOTS", "/data,/more")
    policy = read(WorkerSettings).fetch_policy
    assert policy.allow_hosts == ("images.internal", "10.0.0.0/8")
    assert [str(root) for root in policy.file_roots] == ["/data", "/more"]


@pytest.mark.parametrize(
    ("most", "said"),
    [("2500", ["(50, 50, 3)", "more than 2500 pixels"]), ("70000000", ["(50, 50, 3)", "(8200, 8200, 3)"])],
)
def test_the_most_pixels_of_an_image_are_what_the_settings_say(
    monkeypatch: pytest.MonkeyPatch, most: str, said: list[str]
) -> None:
    """Phones take pictures of 108 and 200 million; OpenCV reads the limit once, when a process imports it."""
    set_all(monkeypatch, GOOD | {"GRADCAM_WORKER_MAX_PIXELS": most})
    program = (
        "import worker.main, numpy as np\n"
        "from worker.pictures.decode import decode\n"
        "import cv2\n"
        "for side in (50, 8200):\n"
        "    data = cv2.imencode('.png', np.zeros((side, side), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()\n"
        "    try:\n"
        "        print(decode(data).shape)\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    for line, words in zip(run.stdout.splitlines(), said, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MAX_PIXELS", "0", "greater than 0"),
        ("MAX_PIXELS", "2e9", "integer|less than"),
        ("ENGINE", "cudagraph", "GRADCAM_WORKER_ENGINE is wrong .*eager"),
        ("MAX_REDIRECTS", "-1", "greater than or equal to 0"),
        ("MAX_REDIRECTS", "21", "less than or equal to 20"),
        ("USER_AGENT", "a\nX-Forwarded-For: b", "GRADCAM_WORKER_USER_AGENT must be a line"),
    ],
)
def test_web_settings_that_cannot_be_are_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str) -> None:
    set_all(monkeypatch, {f"GRADCAM_WORKER_{name}": value})
    with pytest.raises(SettingsError, match=why):
        read(WorkerSettings)


def test_a_setting_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So secrets come into containers: neither `docker inspect` nor a list of processes shows them."""
    url, queues = tmp_path / "redis_url", tmp_path / "queues"
    url.write_text("redis://:hunter2@localhost:6379/0\n")
    queues.write_text("high,low\r\n")
    files = {"GRADCAM_REDIS_URL_FILE": str(url), "GRADCAM_WORKER_QUEUES_FILE": str(queues)}
    set_all(monkeypatch, {"GRADCAM_S3_BUCKET": "pictures", **files})
    connections, worker = read_both(Connections, WorkerSettings)
    assert connections.redis_url.get_secret_value() == "redis://:hunter2@localhost:6379/0"
    assert worker.queues == ("high", "low")


@pytest.mark.parametrize(
    ("content", "beside", "said"),
    [
        (None, {}, "GRADCAM_REDIS_URL_FILE cannot be read (No such file or directory)"),
        (b"\xff\xfe", {}, "GRADCAM_REDIS_URL_FILE cannot be read (it is no text)"),
        (b"redis://:hunter2@x" + b"y" * 65536, {}, "GRADCAM_REDIS_URL_FILE is longer than 65536 bytes"),
        (b"hunter2", {}, "GRADCAM_REDIS_URL must look like redis://"),
        (b"redis://x", {"GRADCAM_REDIS_URL": "redis://y"}, "GRADCAM_REDIS_URL and GRADCAM_REDIS_URL_FILE are both set"),
    ],
)
def test_a_file_that_holds_no_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, beside: dict[str, str], said: str
) -> None:
    path = tmp_path / "redis_url"
    if content is not None:
        path.write_bytes(content)
    set_all(monkeypatch, {"GRADCAM_S3_BUCKET": "pictures", "GRADCAM_REDIS_URL_FILE": str(path), **beside})
    with pytest.raises(SettingsError) as caught:
        read(Connections)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
