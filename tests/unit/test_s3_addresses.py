"""Where object data goes on AWS; nothing is sent."""

from __future__ import annotations

import pytest

from producer.jobs.model.settings import Connections
from producer.jobs.store.bucket import Storage
from producer.jobs.store.object_data import ObjectData


def object_data(monkeypatch: pytest.MonkeyPatch, region: str, bucket: str) -> ObjectData:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_DEFAULT_REGION": region,
        "GRADCAM_REDIS_URL": "redis://nowhere",
        "GRADCAM_S3_BUCKET": bucket,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GRADCAM_S3_ENDPOINT_URL", raising=False)
    found = Storage.from_settings(Connections()).object_data
    assert found is not None
    return found


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "eu-central-2"])
@pytest.mark.parametrize(
    ("bucket", "address"),
    [
        ("pictures", "https://pictures.s3.{region}.amazonaws.com"),
        ("with.dots", "https://s3.{region}.amazonaws.com/with.dots"),
    ],
)
def test_it_goes_to_the_buckets_region(monkeypatch: pytest.MonkeyPatch, region: str, bucket: str, address: str) -> None:
    way = object_data(monkeypatch, region, bucket)._way_to(bucket, "key")
    assert way is not None
    for store in (way.objects, way.files):
        assert (store.config["endpoint"], store.config["region"]) == (address.format(region=region), region)
        assert not store.client_options or store.client_options.get("allow_http") is None


def test_images_in_many_buckets_keep_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    data = object_data(monkeypatch, "us-east-1", "pictures")
    first = data._way_to("pictures", "key")
    for number in range(20):
        assert data._way_to(f"pictures-{number}", "key") is not None
        assert data._way_to("pictures", "key") is first
    assert len(data._buckets) == 16


def test_what_holds_credentials_does_not_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    way = object_data(monkeypatch, "us-east-1", "pictures")._way_to("pictures", "key")
    assert "example" not in repr(way).lower()
