"""The scans of a JPEG: how many there are, whether they are all there, and what they cost.

Each goes over the whole picture, so many nearly empty ones cost hours; and for each picture of several scans libjpeg
holds all coefficients.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from worker.pictures.formats import opencv, refused

#: Encoders write about 10.
MAX_SCANS: Final = 200
#: Of a picture of most pixels, so many; of smaller ones more. A pixel of a scan costs about 2 ns.
_SCANS_OF_LARGEST: Final = 24
_SOS, _EOI = 0xDA, 0xD9
#: The next marker in or behind a scan; 00 and RST0 to RST7 belong to it, FF fills up.
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
#: Bytes of a coefficient.
_COEFFICIENT: Final = 2


def coefficient_bytes(components: bytes) -> float:
    """Bytes a pixel of all coefficients.

    Args:
        components: Identifier, sampling, table of each (T.81, B.2.2).
    """
    samplings = [(byte >> 4 or 1, byte & 15 or 1) for byte in components[1::3]]
    most = max((across for across, _ in samplings), default=1) * max((down for _, down in samplings), default=1)
    return sum(_COEFFICIENT * across * down / most for across, down in samplings)


def check(data: bytes, first: int, components: bytes, pixels: int) -> None:
    """Refuse a picture in several scans that lacks some, or has too many.

    Args:
        data: The file.
        first: Where the first scan's marker is.
        components: The components' identifiers.
        pixels: How many it has.

    Raises:
        ImageError: So it is.
    """
    # Of each component the 64 coefficients that have not come to their last bit.
    missing = dict.fromkeys(components, 2**64 - 1)
    most = min(MAX_SCANS, max(1, _SCANS_OF_LARGEST * opencv.MAX_PIXELS // max(pixels, 1)))
    for number, at in enumerate(_scans(data, first), 1):
        if number > most:
            raise refused.broken("JPEG", f"it has more than {most} scans")
        count = data[at + 4]
        low, high, bits = data[at + 5 + 2 * count : at + 8 + 2 * count].ljust(3, b"\0")
        for component in data[at + 5 : at + 5 + 2 * count : 2]:
            # Each scan has one bit more of its coefficients, and the last has bit 0 (T.81, G.1.1.1).
            if component in missing and not bits & 15:
                missing[component] &= ~(2 ** (high + 1) - 2**low)
    if any(missing.values()):
        raise refused.broken("JPEG", "its last scans are missing")


def _scans(data: bytes, at: int) -> Iterator[int]:
    """Where each scan's marker is; what looks like a marker within another segment is none."""
    while at + 10 <= len(data):
        if data[at + 1] == _SOS:
            yield at
        elif data[at + 1] == _EOI:
            return
        behind = _MARKER.search(data, at + 2 + int.from_bytes(data[at + 2 : at + 4]))
        if behind is None:
            return
        at = behind.start()
