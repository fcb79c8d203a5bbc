"""Common Hugging Face encoders, with small random configurations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from coverage_case import Built, Case
from torch import Tensor

VOCABULARY, LENGTH, PIXELS, SAMPLES = 100, 12, 32, 1600

WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT: dict[str, Any] = {**WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
IMAGE: dict[str, Any] = {**WIDTH, "image_size": PIXELS, "patch_size": 8}
SOUND: dict[str, Any] = {
    **WIDTH,
    "vocab_size": VOCABULARY,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def words() -> tuple[Tensor, ...]:
    """Two sentences, and a mask that says that the second one is shorter."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, -3:] = 0
    return torch.randint(2, VOCABULARY, (2, LENGTH)), mask


def images() -> tuple[Tensor, ...]:
    """Two small images."""
    return (torch.randn(2, 3, PIXELS, PIXELS),)


def sounds() -> tuple[Tensor, ...]:
    """A tenth of a second of noise, twice."""
    return (torch.randn(2, SAMPLES),)


ENCODERS: dict[str, tuple[dict[str, Any], Callable[[], tuple[Tensor, ...]]]] = {
    "Albert": ({**TEXT, "embedding_size": 16}, words),
    "Beit": (IMAGE, images),
    "Bert": (TEXT, words),
    "CLIPText": (TEXT, words),
    "CLIPVision": (IMAGE, images),
    "DebertaV2": (
        {**TEXT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        words,
    ),
    "DeiT": (IMAGE, images),
    "Dinov2": (IMAGE, images),
    "DistilBert": (
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 64,
        },
        words,
    ),
    "Electra": ({**TEXT, "embedding_size": 16}, words),
    "Hubert": (SOUND, sounds),
    "MPNet": (TEXT, words),
    "ModernBert": (
        {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
        words,
    ),
    "Roberta": (TEXT, words),
    "Segformer": (
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4]},
        images,
    ),
    "Swin": (
        {
            "image_size": PIXELS,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        images,
    ),
    "ViT": (IMAGE, images),
    "Wav2Vec2": (SOUND, sounds),
}
"""`<name>Model` and `<name>Config` in transformers: the options of a small one, and what it takes."""


def cases() -> list[Case]:
    """One case per encoder."""
    return [Case("huggingface", f"{name}Model", partial(_build, name)) for name in ENCODERS]


def _build(name: str) -> Built:
    options, inputs = ENCODERS[name]
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")(config), inputs()
