"""What programs outside of this repository import of the worker; these names and their arguments stay as they are.

| function  | in               | out                                                                      |
|-----------|------------------|--------------------------------------------------------------------------|
| `load`    | name, weights    | a `Network`: model, layer, input size, mean and standard deviation       |
| `explain` | model, layer, batch of inputs | an `Explanation`: logits, classes, maps, guided gradients   |
| `render`  | picture, map, guided gradient | the four pictures by their kind                             |

docs/visualizations.md has an example.
"""

from __future__ import annotations

from worker.engine.explain import explain
from worker.models.networks import load
from worker.pictures.render import render

__all__ = ["explain", "load", "render"]
