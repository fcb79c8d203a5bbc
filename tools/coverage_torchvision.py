"""Every torchvision model: classification, segmentation, video, optical flow, and the backbones of detection."""

from functools import partial
from typing import Any

import torch
from coverage_case import Built, Case, matching
from torch import nn
from torchvision import models

SIZE = 64
"""Pixels: small, and still enough for most models."""

SHAPES = {
    "inception_v3": (3, 96, 96),
    "maxvit_*": (3, 224, 224),
    "mvit_*": (3, 16, 224, 224),
    "raft_*": (3, 128, 128),
    "s3d": (3, 16, 224, 224),
    "ssd300_*": (3, 300, 300),
    "swin3d_*": (3, 8, SIZE, SIZE),
    "vit_*": (3, 224, 224),
    "mc3_18": (3, 8, SIZE, SIZE),
    "r2plus1d_18": (3, 8, SIZE, SIZE),
    "r3d_18": (3, 8, SIZE, SIZE),
}
"""Inputs of models that need other than (3, SIZE, SIZE): films, a fixed number of patches, many poolings."""

OPTIONS: dict[str, dict[str, Any]] = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
"""What leaves out an initialisation of minutes."""


def cases() -> list[Case]:
    """All builders that torchvision lists, detection by its backbones. Quantized models have a list of their own."""
    plain = [name for module in (models, models.video, models.optical_flow) for name in models.list_models(module)]
    segmenting = models.list_models(models.segmentation)
    detecting = models.list_models(models.detection)
    return [
        *(Case("torchvision", name, partial(_whole, name, OPTIONS.get(name, {}))) for name in plain),
        *(Case("torchvision", name, partial(_whole, name, {"weights_backbone": None})) for name in segmenting),
        *(Case("torchvision", f"{name}.backbone", partial(_backbone, name)) for name in detecting),
    ]


def _whole(name: str, options: dict[str, Any]) -> Built:
    model = models.get_model(name, weights=None, **options)
    shape = matching(SHAPES, name) or (3, SIZE, SIZE)
    images = 2 if name.startswith("raft_") else 1  # optical flow is from one image to the next
    return model, tuple(torch.randn(2, *shape) for _ in range(images))


def _backbone(name: str) -> Built:
    detector: Any = models.get_model(name, weights=None, weights_backbone=None)
    backbone: nn.Module = detector.backbone
    return backbone, (torch.randn(2, *(matching(SHAPES, name) or (3, SIZE, SIZE))),)
