"""The sentences with which a picture is refused: it is too large, it is broken, or nobody here reads its kind."""

from __future__ import annotations

from producer.jobs.model.errors import ImageError


def too_large(format: str, max_pixels: int) -> ImageError:
    """Of a picture that would fill the memory."""
    return ImageError(f"the {format} picture has more than {max_pixels} pixels")


def too_deep(format: str, max_bytes: int) -> ImageError:
    """Of a picture with few enough pixels, each of which takes much memory while it is decoded."""
    limit = f"{max_bytes // 10**6} MB"
    return ImageError(f"the {format} picture takes more than {limit} to decode; save it smaller, or as 8 bit RGB")


def broken(format: str, why: str = "") -> ImageError:
    """Of bytes that begin as the format does, and go on otherwise, or not far enough."""
    return ImageError(f"the {format} picture is broken or truncated" + (f": {why}" if why else ""))


def not_read(format: str, kind: str, instead: str) -> ImageError:
    """Of a picture that is whole, and that we cannot show as it is meant.

    Args:
        format: Such as TIFF.
        kind: What is special about it, such as "signed numbers".
        instead: What the user can do, beginning with a verb.
    """
    return ImageError(f"the {format} picture is of a kind that is not read: {kind}; {instead}")
