"""Networks that hold their parameters in many ways, for tests of the guard."""

import torch
from torch import nn

from fitact_fx.ambience import slow_path


class Net(nn.Module):
    """Convolutions of both kinds, BatchNorm, a PReLU that is called twice, a Parameter of its own, tied layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU()
        self.back = nn.ConvTranspose2d(8, 6, 3)
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.back(x) * self.scale).mean((2, 3))
        return self.two(self.one(x).relu())


class Sequences(nn.Module):
    """Layers that hold their weights in other ways."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.lstm, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.out = nn.Linear(8, 11)

    def forward(self, words):
        x = self.lstm(self.words(words) + self.places)[0]
        x = x + self.attention(x, x, x)[0]
        return self.out(self.normed(x).relu() + self.cell(x[:, 0]).unsqueeze(1))


def net(kind=Net):
    torch.manual_seed(0)
    return kind().eval()


def inputs(kind=Net):
    generator = torch.Generator().manual_seed(1)
    if kind is Net:
        return torch.randn(4, 3, 8, 8, generator=generator)
    return torch.randint(0, 11, (3, 5), generator=generator)


def run(model, *given):
    with torch.no_grad(), slow_path():
        return model(*given)
