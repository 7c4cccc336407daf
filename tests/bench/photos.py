"""Real photos in any number: seeded crops of those that scikit-image and scikit-learn have inside their packages."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import cv2
import numpy as np

#: Color photos of at least 300 px a side; nothing is downloaded.
SKIMAGE = (
    *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
SKLEARN = ("china.jpg", "flower.jpg")
#: Sides of a crop, in px; the aspect ratio is any between.
SMALLEST_PX, LARGEST_PX = 300, 600
JPEG_QUALITY = 90


def photos(folder: Path, count: int = 500, seed: int = 0) -> list[Path]:
    """Write `count` JPEGs, no two with the same content; the same ones for the same seed.

    Args:
        folder: Where they are written, as `photo-0000.jpg`, …; made when missing.
        count: How many.
        seed: Of the crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    sources = _sources()
    paths, seen = [], set()
    for number in range(count):
        data = _crop(sources[number % len(sources)], chance)
        seen.add(hashlib.sha256(data).digest())
        paths.append(folder / f"photo-{number:04d}.jpg")
        paths[-1].write_bytes(data)
    assert len(seen) == count, f"{count - len(seen)} of the photos are there twice"
    return paths


def _sources() -> list[np.ndarray]:
    import skimage
    import sklearn

    places = [Path(skimage.__file__).parent / "data" / name for name in SKIMAGE]
    places += [Path(sklearn.__file__).parent / "datasets" / "images" / name for name in SKLEARN]
    pictures = [cv2.imread(str(place), cv2.IMREAD_COLOR) for place in places]
    missing = [place.name for place, picture in zip(places, pictures, strict=True) if picture is None]
    assert not missing, f"not in the installed versions of scikit-image and scikit-learn: {', '.join(missing)}"
    return [picture for picture in pictures if picture is not None]


def _crop(picture: np.ndarray, chance: random.Random) -> bytes:
    rows, columns = (chance.randint(SMALLEST_PX, min(LARGEST_PX, side)) for side in picture.shape[:2])
    top = chance.randint(0, picture.shape[0] - rows)
    left = chance.randint(0, picture.shape[1] - columns)
    cut = np.ascontiguousarray(picture[top : top + rows, left : left + columns])  # (rows, columns, 3) BGR
    written, data = cv2.imencode(".jpg", cut, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert written
    return data.tobytes()
