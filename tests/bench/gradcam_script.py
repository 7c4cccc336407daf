"""A straightforward script with pytorch-grad-cam, as its README shows it: image after image, four files each to S3."""

from __future__ import annotations

import os
import time
import warnings
from typing import Any

import boto3
import cv2
import numpy as np
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
    from pytorch_grad_cam.utils.image import deprocess_image, preprocess_image, show_cam_on_image


def load(name: str, weights: str | None) -> Any:
    """The network as torchvision or timm gives it: not folded, and its parameters ask for gradients."""
    from worker.models import networks

    network = networks.load(name, weights, prepared=False)
    network.model.requires_grad_(True)
    return network


class Script:
    """The script's loop."""

    def __init__(self, name: str, weights: str | None) -> None:
        self.network = load(name, weights)
        self.bucket = os.environ["GRADCAM_S3_BUCKET"]
        self.s3 = boto3.client("s3", endpoint_url=os.environ["GRADCAM_S3_ENDPOINT_URL"])

    def explain(self, key: str, prefix: str) -> None:
        """Explain one image."""
        network = self.network
        data = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert bgr is not None
        rgb = cv2.cvtColor(cv2.resize(bgr, network.size[::-1]), cv2.COLOR_BGR2RGB)
        base = np.float32(rgb) / 255
        inputs = preprocess_image(base, mean=network.mean, std=network.std)
        with GradCAM(model=network.model, target_layers=[network.layer]) as cam:
            mask = cam(input_tensor=inputs, targets=None)[0]
        guided = GuidedBackpropReLUModel(model=network.model, device="cpu")(inputs, target_category=None)
        pictures = {
            "heatmap": cv2.applyColorMap((255 * mask).astype(np.uint8), cv2.COLORMAP_JET),
            "cam": cv2.cvtColor(show_cam_on_image(base, mask, use_rgb=True), cv2.COLOR_RGB2BGR),
            "gb": cv2.cvtColor(deprocess_image(guided), cv2.COLOR_RGB2BGR),
            "cam_gb": cv2.cvtColor(deprocess_image(cv2.merge([mask] * 3) * guided), cv2.COLOR_RGB2BGR),
        }
        for kind, picture in pictures.items():
            file = cv2.imencode(".jpg", picture)[1].tobytes()
            self.s3.put_object(Bucket=self.bucket, Key=f"{prefix}/{kind}.jpg", Body=file)

    def run(self, photos: list[str], prefix: str) -> float:
        """Explain images one after the other; the seconds it took."""
        started = time.perf_counter()
        for index, key in enumerate(photos):
            self.explain(key, f"{prefix}/{index:08d}")
        return time.perf_counter() - started


def threads(count: int) -> None:
    """Let torch and OpenCV use so many threads."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
