"""A small vision transformer for CIFAR-10: (N, 3, 32, 32) float32 in, logits (N, 10) out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    """Multi-head self-attention whose four projections are linear layers of their own: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(each(x)) for each in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.project(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return heads


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden = F.gelu(self.fc1(self.norm2(x)))
        return x + self.fc2(hidden)  # type: ignore[no-any-return]


class CifarTransformer(nn.Module):
    """64 tokens of `width`, `depth` blocks.

    The stem is two convolutions of stride 2 and not one of stride 4: a transformer learns from few images with
    them (Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881).
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.stem1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width // 2)
        self.stem2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10)."""
        x = self.stem2(F.gelu(self.norm(self.stem1(x))))
        x = self.blocks(x.flatten(2).transpose(1, 2) + self.position)
        return self.head(self.last_norm(x).mean(dim=1))  # type: ignore[no-any-return]


def vit_tiny_cifar() -> nn.Module:
    """A vision transformer of 4 blocks, 96 wide, 3 heads: 0.35 M weights."""
    return CifarTransformer(width=96, depth=4, heads=3).eval()
