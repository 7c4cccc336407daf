"""How a layer's output and its gradient become a map, in five ways.

In every way A is the layer's output and G the gradient of one image's class score, the logit, with respect to it, both
(N, C, h, w) in float32 or float64. A map is (N, h, w), >= 0, neither normalized nor resized. A may be negative: a
convolution's output precedes its ReLU, and then the papers' sums over A are sums of both signs.
"""

# ruff: noqa: N803 - A and G are the papers' names

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

GRADCAM: Final = "gradcam"


def gradcam(A: Tensor, G: Tensor) -> Tensor:
    """Weigh the channels by their mean gradient: equations 1 and 2 of arXiv:1610.02391."""
    weights = G.mean(dim=(2, 3), keepdim=True)  # eq. 1: (N, C, 1, 1)
    return (weights * A).sum(dim=1).relu_()  # eq. 2: (N, h, w)


def gradcam_plus_plus(A: Tensor, G: Tensor) -> Tensor:
    """Weigh the channels by their positive gradients, each by its alpha: equation 19 of arXiv:1710.11063.

    With Y = exp(logit) the equation is alpha = G^2 / (2 G^2 + G^3 sum(A)), which is 1 / (2 + G sum(A)) wherever G is
    not 0. A channel weighs sum(alpha relu(dY/dA)), of which the factor exp(logit) is left out: it scales a whole map,
    and would overflow.

    Others differ: pytorch-grad-cam adds 1e-6 to the denominator, which is far more than G^2 of most networks;
    torchcam takes G into the sum over A, which is the same only where G is constant in a channel.
    """
    total = A.sum(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    denominator = 2 + G * total  # (N, C, h, w)
    alpha = denominator.reciprocal().masked_fill_(denominator == 0, 0)
    weights = (alpha * G.relu()).sum(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    return (weights * A).sum(dim=1).relu_()  # (N, h, w)


def hirescam(A: Tensor, G: Tensor) -> Tensor:
    """Multiply gradient and output place by place, arXiv:2011.08891; after ReLU, as the others."""
    return (G * A).sum(dim=1).relu_()  # (N, h, w)


def layercam(A: Tensor, G: Tensor) -> Tensor:
    """Weigh each place by its positive gradient: LayerCAM, IEEE TIP 2021, doi:10.1109/TIP.2021.3089943."""
    return (G.relu() * A).sum(dim=1).relu_()  # (N, h, w)


def xgradcam(A: Tensor, G: Tensor) -> Tensor:
    """Weigh the channels by sum(G A / sum(A)), the mean of the gradients in proportion to A: arXiv:2008.02312.

    A channel whose A sums to 0 has no such mean and weighs nothing; pytorch-grad-cam adds 1e-7 to the sum instead.
    """
    total = A.sum(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    weights = (G * A).sum(dim=(2, 3), keepdim=True) / total  # (N, C, 1, 1)
    return (weights.masked_fill_(total == 0, 0) * A).sum(dim=1).relu_()  # (N, h, w)


#: Each way by its name in a job.
METHODS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    GRADCAM: gradcam,
    "gradcam++": gradcam_plus_plus,
    "hirescam": hirescam,
    "layercam": layercam,
    "xgradcam": xgradcam,
}
