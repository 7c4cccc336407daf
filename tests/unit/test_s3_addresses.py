"""Where the short way to small objects leads on AWS; nothing is sent."""

from __future__ import annotations

import pytest

from producer.jobs.model.settings import Connections
from producer.jobs.store.bucket import Storage


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "eu-central-2"])
@pytest.mark.parametrize(
    ("bucket", "address"),
    [
        ("pictures", ("https://pictures.s3.{region}.amazonaws.com", "/")),
        ("with.dots", ("https://s3.{region}.amazonaws.com", "/with.dots/")),
    ],
)
def test_it_leads_to_the_buckets_region(
    monkeypatch: pytest.MonkeyPatch, region: str, bucket: str, address: tuple[str, str]
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_DEFAULT_REGION": region,
        "GRADCAM_REDIS_URL": "redis://nowhere",
        "GRADCAM_S3_BUCKET": bucket,
        "NO_PROXY": "*",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GRADCAM_S3_ENDPOINT_URL", raising=False)
    fast_path = Storage.from_settings(Connections()).fast_path
    assert fast_path is not None
    way = fast_path._way_to(bucket)
    assert way is not None
    assert (way.host, way.path) == (address[0].format(region=region), address[1])
