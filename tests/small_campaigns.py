"""A small network, its data and its hardened variant, for tests of campaigns."""

from dataclasses import replace

import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Row

RATES = [1e-4, 1e-3]


class Small(nn.Module):
    """Two convolutions and a residual: enough for suffixes to have something to leave out."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.norm(self.second(y)) + y)
        return self.last(y.mean((2, 3)))


def campaign_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.linspace(-4, 4, 40)[:, None, None, None] + torch.randn(40, 1, 6, 6, generator=generator)
    return images, torch.randint(0, 5, (40,), generator=generator)


def campaign_variants(data: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.last.bias.sub_(model(data[0]).mean(0))
    labels = model(data[0]).argmax(1)
    assert len(labels.unique()) > 2
    data[1][:30] = labels[:30]  # three in four are right
    hard = fitact_fx.harden(model, "layer")
    fitact_fx.calibrate(hard, [data[0]])
    return {"plain": model, "hard": hard}


def batches(data: tuple[Tensor, Tensor], size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def untimed(result: CampaignResult) -> list[Row]:
    """The rows without what may differ from run to run."""
    return [replace(row, seconds=0.0) for row in result.rows]


def values(result: CampaignResult) -> list[Row]:
    """The rows without how they were found, too."""
    return [replace(row, way="") for row in untimed(result)]
