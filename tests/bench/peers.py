"""How users of other libraries get map and guided gradient of a batch: pytorch-grad-cam and captum, on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

#: Maps after ReLU, (N, h, w), and guided gradients, (N, 3, H, W).
Answer = tuple[np.ndarray, np.ndarray]
Explain = Callable[[Tensor, Tensor], Answer]


def built(name: str) -> tuple[nn.Module, nn.Module]:
    """Build a network as its users have it, its parameters asking for gradients, and give its last convolution."""
    from torchvision.models import get_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        options = {"aux_logits": False} if name == "inception_v3" else {}
        model = get_model(name, weights=None, **options).eval()
    return model, [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]


def pytorch_grad_cam(name: str, device: str = "cpu") -> Explain:
    """Give the function that explains inputs of the host; raises ImportError where the library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, layer = built(name)
    model.to(device)

    def run(inputs: Tensor, classes: Tensor) -> Answer:
        with GradCAM(model=model, target_layers=[layer]) as cam:
            maps = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(c) for c in classes.tolist()])
        guided = GuidedBackpropReLUModel(model=model, device=torch.device(device))
        gradients = [guided(image[None], target_category=c) for image, c in zip(inputs, classes.tolist(), strict=True)]
        return maps, np.stack([g.transpose(2, 0, 1) for g in gradients])

    return run


def captum(name: str, device: str = "cpu") -> Explain:
    """Give the function that explains inputs of the host; raises ImportError where the library is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import GuidedBackprop, LayerGradCam

    model, layer = built(name)
    model.to(device)

    def run(inputs: Tensor, classes: Tensor) -> Answer:
        x, chosen = inputs.to(device), classes.to(device)
        maps = LayerGradCam(model, layer).attribute(x, chosen, relu_attributions=True)
        guided = GuidedBackprop(model).attribute(x.clone().requires_grad_(), chosen)
        return maps.detach().cpu().numpy()[:, 0], guided.detach().cpu().numpy()

    return run
