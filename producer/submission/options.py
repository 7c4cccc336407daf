"""What can be typed of a submission, beside what a job computes (`JobSpec`) and how lists are read (`ReadOptions`)."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from producer.jobs.model.frozen import Frozen
from producer.jobs.model.options import Option
from producer.jobs.model.spec import MAX_CHUNK_SIZE, ChunkSize

#: A file here, by its path.
PathLike = str | os.PathLike[str]


class SubmitOptions(Frozen):
    """What belongs to submitting alone."""

    any_network: Annotated[bool, Option()] = Field(
        default=False, description="Do not look the network up: the workers know newer ones."
    )
    weight_path: Annotated[
        PathLike | None,
        Option(
            must_be="a file, an address, or a name of weights", absent="torchvision's own, which the worker downloads"
        ),
    ] = Field(
        default=None,
        description="Weights: a .pth, .pt or .safetensors file (uploaded once), its address, a torchvision weights "
        "name, or `random`; with `--network hf` a folder, or an address that ends with a slash. With `#sha256=` and 64 "
        "digits behind an address other weights are refused.",
    )
    labels: Annotated[PathLike | None, Option(must_be="a file with one class name a line")] = Field(
        default=None, description="A file of class names, one a line, for weights with classes of their own."
    )
    chunk_size: Annotated[ChunkSize | None, Option(must_be=f"1 to {MAX_CHUNK_SIZE}", auto=True)] = Field(
        default=None, description="Images a worker takes at once, 1 to 512; auto makes it about ten seconds of work."
    )
    name: Annotated[str | None, Option()] = Field(
        default=None,
        description="Name of the job; submitting the same again under it continues instead of doubling.",
    )
