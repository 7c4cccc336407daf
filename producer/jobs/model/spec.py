"""What a job computes: a frozen, versioned message. What is defined here is not defined anywhere else.

Each field that a user can set has its default, its choices or limits, its help and its `Option` here; the lists of
choices are those that the worker's tables are tested against.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from producer.jobs.model.activations import Activation
from producer.jobs.model.errors import UsageError
from producer.jobs.model.frozen import Frozen
from producer.jobs.model.keys import OLD_WEIGHTS
from producer.jobs.model.limits import MAX_CLASS_ID
from producer.jobs.model.names import is_job_name
from producer.jobs.model.options import Option, parameters
from producer.jobs.model.text import quoted

#: Items in one Lua call at most; a commit of 512 keeps the server busy for about 2 ms.
MAX_CHUNK_SIZE = 512

#: The pictures that can be made of an image.
Output = Literal["heatmap", "cam", "gb", "cam_gb", "mask"]
#: The four that each network has.
OUTPUTS: tuple[Output, ...] = ("heatmap", "cam", "gb", "cam_gb")
#: The pixels of a class, of networks that tell the class of each pixel.
MASK: Output = "mask"
#: The priorities, the most urgent first.
Queue = Literal["high", "default", "low"]
PRIORITIES: tuple[Queue, ...] = get_args(Queue)
#: Which class is explained of an image with a label.
Explain = Literal["predicted", "label", "both"]
#: What is explained of an output: what raises it, or what lowers it.
Direction = Literal["up", "down"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
#: How a map is made of activations and gradients.
Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"]
#: In what the network is computed: `tf32` rounds the factors of float32 products, the halves run where they may.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
#: How a picture is brought to the network's size.
Fit = Literal["squash", "crop", "pad"]
#: How it is resized there; `own` as the weights' own preprocessing does.
ResizeFilter = Literal["bilinear", "bilinear-antialias", "bicubic-antialias", "own"]
RESIZE_FILTERS: tuple[str, ...] = tuple(name for name in get_args(ResizeFilter) if name != "own")
#: The size of the pictures that are made.
OutputSize = Literal["input", "original"]
PictureFormat = Literal["jpg", "png"]
Pack = Literal["none", "tar"]
#: Images a chunk: what one message points to and one claim hands out.
ChunkSize = Annotated[int, Field(ge=1, le=MAX_CHUNK_SIZE)]
#: A side of the network's input in px, and a number of its normalization. Those of bytes (123.675, 58.395) are out of
#: range, that of 1/255, for networks that read 0 to 255, is not.
Side = Annotated[int, Field(ge=8, le=2048)]
Mean = Annotated[float, Field(ge=0, le=1)]
Std = Annotated[float, Field(ge=0.001, le=10)]
#: Of classes above a threshold so many are explained at most, where `top_k` says nothing.
ABOVE_TOP_K = 5
_ABOVE = "above:"
_THREE = "such as {} or one for all three; divide by 255 those of bytes"


class JobSpec(Frozen):
    """What to compute, the same for every image of a job."""

    version: Literal[1] = Field(default=1, description="Version of this message; another one is refused.")
    network: Annotated[
        str,
        Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_./-]+$"),
        Option(must_be="the name of a network, such as resnet50"),
    ] = Field(default="resnet50", description="resnet50, vgg16, timm/NAME, …; `gradcam-worker networks` lists them.")
    weights: Annotated[
        str,
        Field(min_length=1, max_length=8192),
        Option(name="weight_path", must_be="a file, an address, or a name of weights", computed=True),
    ] = Field(default="DEFAULT", description="A torchvision weights name, `random`, or the URI of a state dict.")
    weights_sha256: Annotated[
        Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None, Option(name="weight_path", computed=True)
    ] = Field(default=None, description="SHA-256 of the weights file where the producer knows it.")
    weight_key: Annotated[
        Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.-]+$")] | None,
        Option(must_be="a name in the weights file, such as model_ema", absent="the plain weights"),
    ] = Field(default=None, description="Which weights of a file that holds several, as model_ema.")
    layer: Annotated[
        str,
        Field(min_length=1, max_length=1000, pattern=r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$"),
        Option(
            name="layer_name",
            must_be="last-conv, last-features or dotted names of modules, such as layer4.2.conv3,layer3",
        ),
    ] = Field(
        default="last-conv",
        description="`last-conv`, `last-features`, or any module by its name; several by commas are averaged.",
    )
    class_id: Annotated[
        Annotated[int, Field(ge=0, le=MAX_CLASS_ID)] | None,
        Option(must_be=f"a whole number, 0 to {MAX_CLASS_ID:,}", absent="the predicted one"),
    ] = Field(default=None, description="Class to explain.")
    class_name: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)] | None,
        Option(must_be="the name of a class, such as tabby"),
    ] = Field(default=None, description="The same by its name, such as `tabby`.")
    top_k: Annotated[int, Field(ge=1, le=100), Option(must_be="1 to 100")] = Field(
        default=1, description="Explain so many most likely classes."
    )
    classes: Annotated[
        Annotated[str, Field(max_length=40, pattern=rf"^{_ABOVE}-?(\d+(\.\d*)?|\.\d+)$")] | None,
        Option(must_be="above: and a number, such as above:0.5"),
    ] = Field(
        default=None,
        description="above:0.5 explains each class that is more likely, and at least the most likely; at most "
        f"{ABOVE_TOP_K}, or as many as a --top-k above 1 says.",
    )
    activation: Annotated[Activation | None, Option(absent="the network's; sigmoid for one output, else softmax")] = (
        Field(default=None, description="What makes a probability of an output; none tells the output itself.")
    )
    direction: Annotated[Direction, Option()] = Field(
        default="up", description="Explain what raises a class's output, or what lowers it."
    )
    explain: Annotated[Explain, Option()] = Field(
        default="predicted", description="Of an image with a label: the predicted class, the label's, or both."
    )
    labels: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)] | None,
        Option(must_be="a file with one class name a line", computed=True),
    ] = Field(default=None, description="The name of each class, in place of those that come with the weights.")
    mask_class: Annotated[
        Annotated[str, Field(min_length=1, max_length=200)] | None,
        Option(must_be="the name or the number of a class, such as cat", absent="those of the class explained"),
    ] = Field(default=None, description="Of segmentation networks: the class whose pixels are summed.")
    max_boxes: Annotated[int, Field(ge=1, le=100), Option(must_be="1 to 100")] = Field(
        default=5, description="Of networks that detect: explain so many boxes an image, those that score most."
    )
    min_score: Annotated[float, Field(ge=0, le=1), Option(must_be="a number from 0 to 1")] = Field(
        default=0.5, description="Leave out boxes that score less."
    )
    method: Annotated[Method, Option()] = Field(default="gradcam", description="How maps are made.")
    precision: Annotated[Precision, Option()] = Field(
        default="fp32",
        description="bf16 is about twice as fast where the hardware has it; fp16 needs a GPU, tf32 one of Ampere or "
        "later.",
    )
    input_size: Annotated[
        tuple[Side, Side] | None,
        Option(
            must_be="8 to 2048 pixels, as 320, or HEIGHTxWIDTH, as 224x320", absent="those that belong to the network"
        ),
    ] = Field(default=None, description="Pixels that the network reads: 320, or HEIGHTxWIDTH.")
    mean: Annotated[
        tuple[Mean, Mean, Mean] | None,
        Option(must_be=f"three numbers from 0 to 1, {_THREE.format('0.485,0.456,0.406,')}", absent="the network's"),
    ] = Field(default=None, description="What is subtracted from red, green and blue in [0, 1], as 0.485,0.456,0.406.")
    std: Annotated[
        tuple[Std, Std, Std] | None,
        Option(
            must_be=f"three numbers from 0.001 to 10, {_THREE.format('0.229,0.224,0.225,')}", absent="the network's"
        ),
    ] = Field(default=None, description="What they are divided by then, as 0.229,0.224,0.225.")
    fit: Annotated[Fit, Option()] = Field(
        default="squash", description="How a picture is brought to the network's size."
    )
    resize_filter: Annotated[ResizeFilter | None, Option(absent="bilinear; with `--network hf` as its folder says")] = (
        Field(default=None, description="How pictures are resized; own: as the weights' own preprocessing does.")
    )
    output_size: Annotated[OutputSize, Option()] = Field(
        default="input", description="Pictures of the network's size, or of the original's."
    )
    raw: Annotated[bool, Option()] = Field(
        default=False, description="Also store the map and the guided gradient as numbers (.npz)."
    )
    outputs: Annotated[
        tuple[Output, ...], Field(min_length=1), Option(must_be=f"some of {','.join(get_args(Output))}", by_commas=True)
    ] = Field(default=OUTPUTS, description="Which pictures, by commas. Segmentation has mask, too.")
    format: Annotated[PictureFormat, Option()] = Field(default="jpg", description="Picture format.")
    pack: Annotated[Pack, Option()] = Field(
        default="none", description="tar: the pictures of a chunk in one webdataset shard; for millions of images."
    )
    chunk_size: Annotated[ChunkSize, Option(must_be=f"1 to {MAX_CHUNK_SIZE}", computed=True)] = Field(
        default=64, description="Images a chunk: what one message points to and one claim hands out."
    )
    queue: Annotated[Queue, Option()] = Field(default="default", description="Priority: more urgent jobs go first.")
    store: Annotated[str, Field(max_length=512)] = Field(
        default="",
        description="Where the producer looks for the pictures, as bucket/prefix; workers that write elsewhere refuse "
        "the job.",
    )

    @property
    def threshold(self) -> float | None:
        """What a class's probability must be above to be explained; none where that does not matter."""
        return None if self.classes is None else float(self.classes.removeprefix(_ABOVE))

    def differing(self, other: JobSpec) -> str:
        """The parameters in which two specs differ, as the command line calls them."""
        flags = {
            each.field: each.flag
            for computed in (False, True)
            for each in parameters(JobSpec, computed=computed).values()
        }
        flags["store"] = "GRADCAM_S3_BUCKET or GRADCAM_S3_PREFIX"
        names = (name for name in JobSpec.model_fields if getattr(self, name) != getattr(other, name))
        return ", ".join(dict.fromkeys(flags[name] for name in names))


def is_newer(error: ValidationError, outer: tuple[str, ...] = ()) -> bool:
    """Whether what cannot be read is whole, and says more than this version of the program knows.

    Args:
        error: What reading it raised.
        outer: Where in what was read the message stands.
    """
    # A line that is damaged elsewhere, too, is no line of a newer version.
    kinds = {(problem["type"], problem["loc"] == (*outer, "version")) for problem in error.errors(include_url=False)}
    return bool(kinds) and all(kind == "extra_forbidden" or version for kind, version in kinds)


def at_most(top_k: int, classes: str | None) -> int:
    """How many classes of an image are explained at most; 1 says nothing where those above a threshold are."""
    return ABOVE_TOP_K if classes is not None and top_k == 1 else top_k


def check_threshold(spec: JobSpec) -> None:
    """Refuse a threshold that no probability is above, or that all are above.

    Raises:
        UsageError: Says what can be given.
    """
    if spec.threshold is not None and spec.activation != "none" and not 0 <= spec.threshold < 1:
        raise UsageError(
            f"--classes {spec.classes}: a probability lies between 0 and 1, so give a number such as above:0.5; of "
            "outputs themselves any number can be given, with --activation none"
        )


def new_job_id() -> str:
    """Make a job id that sorts by time and cannot be guessed."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(5)}"


def checked_name(name: str) -> str:
    """Give the name back if a new job may have it.

    Raises:
        UsageError: It has characters that object keys and Redis keys should not have, or is taken.
    """
    if not is_job_name(name):
        raise UsageError(
            f"{quoted(name)} cannot name a job: use up to 63 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )
    if name == OLD_WEIGHTS:
        raise UsageError(
            f"{quoted(name)} cannot name a job: earlier releases put uploaded weights under it, which all jobs share"
        )
    return name
