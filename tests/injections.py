"""Small networks with injection nodes, for the tests of injection."""

import torch
from torch import nn

import fitact_fx
from fitact_fx.faults import BitFlip

HIGH = BitFlip(rate=0.02)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def images(count=8, seed=1):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def hardened():
    hard = fitact_fx.harden(network())
    fitact_fx.calibrate(hard, [images()])
    return hard


def bits_of(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(bits_of(one), bits_of(other))


def activations(faulty):
    """The faults of a trial as they are loaded at first."""
    return HIGH.draw(faulty, "float32", targets=["activations"])


class Reader(nn.Module):
    """Gives what it gets; the graph keeps it as a value of its own."""

    def forward(self, values):
        return values
