"""Random small models full of views and in-place operations, for comparison with what eager PyTorch does."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (3, 4)
Step = tuple[str, int, int, int]

# Each takes the model, a value, another of the same shape, and a choice of 0 or 1.
Operation = Callable[[Any, Tensor, Tensor, int], Tensor]
VIEWS: dict[str, Operation] = {
    "view": lambda m, v, w, k: v.view(-1),
    "reshape": lambda m, v, w, k: v.reshape(2, -1),
    "slice": lambda m, v, w, k: v[..., k:3],
    "chunk": lambda m, v, w, k: v.chunk(2)[k],
    "split": lambda m, v, w, k: v.split(1)[k],
    "transpose": lambda m, v, w, k: v.transpose(0, -1),
    "detach": lambda m, v, w, k: v.detach(),
    "unsqueeze": lambda m, v, w, k: v.unsqueeze(k),
    "squeeze": lambda m, v, w, k: v.squeeze(0),
    "identity": lambda m, v, w, k: m.identity(v),
    "dropout": lambda m, v, w, k: m.dropout(v),
}
ACTIVATIONS: dict[str, Operation] = {
    "relu": lambda m, v, w, k: F.relu(v),
    "tanh": lambda m, v, w, k: v.tanh(),
    "gelu": lambda m, v, w, k: F.gelu(v),
    "relu_": lambda m, v, w, k: v.relu_() if k else F.relu_(v),
    "leaky_relu_": lambda m, v, w, k: F.leaky_relu(v, 0.2, True) if k else F.leaky_relu_(v, 0.2),
    "sigmoid_": lambda m, v, w, k: v.sigmoid_() if k else torch.sigmoid_(v),
    "clamp_": lambda m, v, w, k: v.clamp_(min=0) if k else torch.clamp_min_(v, 0),
    "hardtanh_": lambda m, v, w, k: F.hardtanh(v, -0.5, 0.7, inplace=True) if k else F.hardtanh_(v, -0.5, 0.7),
    "shared relu": lambda m, v, w, k: m.relu(v),
    "shared leaky": lambda m, v, w, k: m.leaky(v),
}
OTHERS: dict[str, Operation] = {
    "add": lambda m, v, w, k: v + w,
    "where": lambda m, v, w, k: torch.where(v > 0, v, w),
    "mul_": lambda m, v, w, k: v.mul_(0.7),
    "add_": lambda m, v, w, k: v.add_(w),
    "dropout_": lambda m, v, w, k: m.dropout_(v),
    "linear": lambda m, v, w, k: m.linear(v),
    "buffer": lambda m, v, w, k: m.buffer,
    "constant": lambda m, v, w, k: torch.full(SHAPE, -0.5),
}
OPERATIONS = VIEWS | ACTIVATIONS | OTHERS
SILENT = ("thrown away", "+=", "set item")
_CHOICES = (*VIEWS, *(2 * tuple(ACTIVATIONS)), *OTHERS, *(2 * SILENT))


class Program(nn.Module):
    """Runs a random list of steps over a growing list of values, and returns all of them.

    With `limit`, every activation's own result is zeroed above it in place, in the same memory: what a
    bound there must look like to every reader.
    """

    def __init__(self, seed: int, limit: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        choice = random.Random(seed)
        self.limit = limit
        self.relu, self.leaky = nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)
        self.identity, self.dropout, self.dropout_ = nn.Identity(), nn.Dropout(0.3), nn.Dropout(0.3, inplace=True)
        self.linear = nn.Linear(SHAPE[1], SHAPE[1])
        self.register_buffer("buffer", torch.randn(SHAPE))
        self.keeps_inputs = choice.random() < 0.7
        self.steps: list[Step] = []
        values = [torch.zeros(SHAPE), torch.zeros(SHAPE)]
        for _ in range(choice.randint(4, 14)):
            place = choice.randrange(len(values))
            same = [other for other, value in enumerate(values) if value.shape == values[place].shape]
            step = (choice.choice(_CHOICES), place, choice.choice(same), choice.randrange(2))
            try:
                with torch.no_grad():
                    values = self.after(step, values)
            except (RuntimeError, IndexError):
                continue  # not with these shapes
            self.steps.append(step)

    def after(self, step: Step, values: list[Tensor]) -> list[Tensor]:
        name, place, other, choice = step
        value = values[place]
        if name == "+=":
            value += values[other]
            return [*values, value]
        if name == "set item":
            value[..., 0] = 0.25
            return values
        if name == "thrown away":
            self.bounded(F.relu_(value))
            return values
        result = OPERATIONS[name](self, value, values[other], choice)
        return [*values, self.bounded(result) if name in ACTIVATIONS else result]

    def bounded(self, result: Tensor) -> Tensor:
        if self.limit is not None:
            result.masked_fill_(result > self.limit, 0)
        return result

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        values = [a.clone(), b.clone()] if self.keeps_inputs else [a, b]
        for step in self.steps:
            values = self.after(step, values)
        return values

    def __repr__(self) -> str:
        return f"Program of {self.steps}"
