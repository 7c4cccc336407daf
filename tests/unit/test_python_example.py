"""The example of docs/visualizations.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import pytest
import skimage

PHOTO = Path(skimage.__file__).parent / "data" / "chelsea.png"
PAGE = Path(__file__).parents[2] / "docs" / "visualizations.md"


def test_the_example_in_the_documentation_draws_the_four_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "cat.png").write_bytes(PHOTO.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    drawn = {path.stem.removeprefix("cat-"): cv2.imread(str(path)) for path in tmp_path.glob("*.jpg")}
    assert set(drawn) == {"heatmap", "cam", "gb", "cam_gb"}
    for picture in drawn.values():
        assert picture is not None
        assert picture.shape == (224, 224, 3)
        assert picture.min() < picture.mean() < picture.max()
