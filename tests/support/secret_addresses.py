"""Addresses with a secret in each, in every place that addresses have."""

from __future__ import annotations

from typing import Final

#: In each of them, and nowhere else.
SECRET: Final = "Zq7sesame"


def addresses(pages: str) -> dict[str, str]:
    """Address → what becomes of it."""
    done = [
        f"{pages}/a.jpg?token={SECRET}",
        f"{pages}/b.jpg?w=20&X-Amz-Credential=x%2F{SECRET}&X-Amz-Signature={SECRET}",
        f"{pages}/c.jpg?{SECRET}=1",
        f"{pages}/d;key={SECRET}.jpg",
        f"{pages}/e%3Fkey%3D{SECRET}",
        f"{pages}/f&sig={SECRET}",
        f"{pages}/token={SECRET}/g.jpg",
        f"{pages}/h.jpg?id=7&x={SECRET}#{SECRET}",
    ]
    gone = [
        f"{pages}/gone.jpg?sig={SECRET}",
        f"{pages}/gone;sig={SECRET}",
        f"{pages}/to-a-secret?{SECRET}",
        f"s3://gradcam-tests/nothing.jpg?token={SECRET}",
        f"s3://gradcam-tests/nothing;token={SECRET}",
    ]
    other = [f"{pages}/to-a-user?{SECRET}", f"{pages}/broken.jpg?{SECRET}"]
    return {**dict.fromkeys(done, "done"), **dict.fromkeys(gone, "gone"), **dict.fromkeys(other, "failed")}
