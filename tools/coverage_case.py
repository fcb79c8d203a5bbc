"""What tools/coverage_sweep.py hardens: a name, and how to build the model and its inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Built = tuple[nn.Module, tuple[Tensor, ...]]
"""A model and its positional inputs."""


@dataclass(frozen=True)
class Case:
    """One model of one suite."""

    suite: str
    name: str
    builder: Callable[[], Built]

    @property
    def path(self) -> str:
        """`suite/name`: one name for one model, since suites share some names."""
        return f"{self.suite}/{self.name}"

    def build(self) -> Built:
        """The model with random weights, always the same ones, in evaluation mode, and inputs for it."""
        torch.manual_seed(0)
        model, inputs = self.builder()
        for parameter in model.parameters():
            if not parameter.any():  # some start a branch or a classifier at zero, behind which nothing could differ
                nn.init.normal_(parameter, std=0.1)
        return model.eval(), inputs


def matching(by_glob: Mapping[str, T], name: str) -> T | None:
    """The entry of the first glob that matches the name, or None."""
    return next((value for glob, value in by_glob.items() if fnmatchcase(name, glob)), None)
