"""Activations: every kind that `fitact_fx.kinds` knows, in every spelling, derived from its table."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fitact_fx.kinds import KINDS, Kind
from fitact_fx.testing.step import Choice, Layer, Made, Step, among, chosen
from fitact_fx.testing.writing import Shape, Value, Writer

# What a kind's functions are given beyond the input, in each way that counts; what its module is given; and a part
# that `__init__` makes for the functions. The channels are in dimension 1.
_OVER = ("dim=-1", "dim=1")
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "prelu": ("{part}",),
    "threshold": ("0.1, 0.0",),
    "glu": ("", "dim=1"),
    "softmax": _OVER,
    "softmin": _OVER,
    "log_softmax": _OVER,
    "rrelu": ("", "training=self.training"),
}
_MODULE_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Threshold: ("0.1, 0.0",),
    nn.GLU: ("", "dim=1"),
    nn.Softmax: _OVER,
    nn.Softmin: _OVER,
    nn.LogSoftmax: _OVER,
}
_PARTS = {"prelu": "nn.Parameter(torch.full((1,), 0.25))"}

_NAMESPACES = {"F": F, "torch": torch, "torch.special": torch.special}

# A clamp at zero is a relu; the second text of each is the same in place.
_CLAMPS = {
    "relu": (
        ("torch.clamp({x}, min=0)", "torch.clamp_({x}, min=0)"),
        ("{x}.clamp(min=0)", "{x}.clamp_(min=0)"),
        ("torch.clip({x}, 0.0)", "torch.clip_({x}, 0.0)"),
        ("{x}.clip(0)", "{x}.clip_(0)"),
        ("torch.clamp_min({x}, 0)", "torch.clamp_min_({x}, 0)"),
        ("{x}.clamp_min(0)", "{x}.clamp_min_(0)"),
        ("torch.maximum({x}, torch.zeros_like({x}))", ""),
        ("torch.maximum({part}, {x})", ""),
        ("torch.max({x}, torch.zeros(()))", ""),
        ("{x}.maximum({x}.new_zeros(()))", ""),
        ("{x}.max(torch.zeros_like({x}))", ""),
    ),
    "relu6": (("torch.clamp({x}, 0, 6)", "torch.clamp_({x}, 0, 6)"), ("{x}.clip(0, 6)", "{x}.clip_(0, 6)")),
    "hardtanh": (("torch.clip({x}, -1, 1)", "torch.clip_({x}, -1, 1)"), ("{x}.clamp(-0.5, 1)", "{x}.clamp_(-0.5, 1)")),
}
_ZERO = "nn.Buffer(torch.zeros(()))"


@dataclass(frozen=True)
class Spelling:
    """One way to write an activation: text with `{x}`, and `{part}` for what `__init__` makes by `part`."""

    kind: str
    text: str
    inplace: bool
    part: str = ""

    @property
    def name(self) -> str:
        """`F.relu(x)`: how steps and users write it."""
        return self.text.format(x="x", part="p")

    @property
    def halved(self) -> int | None:
        """Which dimension of a value, its batch left out, becomes half as long; None for none."""
        return (0 if "dim=1" in self.text else -1) if self.kind == "glu" else None


def _of_kind(kind: Kind) -> Iterator[Spelling]:
    """Functions under each public name, with the `inplace` argument where there is one, methods, clamps."""
    part = _PARTS.get(kind.name, "")
    for told in _ARGUMENTS.get(kind.name, ("",)):
        rest = f", {told}" if told else ""
        for function in kind.functions:
            for name in _public_names(function):
                yield Spelling(kind.name, f"{name}({{x}}{rest})", name.endswith("_"), part)
                if _takes_inplace(function):
                    yield Spelling(kind.name, f"{name}({{x}}{rest}, inplace=True)", True, part)
        for method in kind.methods:
            yield Spelling(kind.name, f"{{x}}.{method}({told})", method.endswith("_"), part)
    for plain, inplace in _CLAMPS.get(kind.name, ()):
        yield Spelling(kind.name, plain, False, _ZERO if "{part}" in plain else "")
        if inplace:
            yield Spelling(kind.name, inplace, True)


def _public_names(function: object) -> list[str]:
    """`F.relu_` and `torch.relu_`: the names under which one function is found."""
    return [
        f"{namespace}.{name}"
        for namespace, module in _NAMESPACES.items()
        for name, found in vars(module).items()
        if found is function and not name.startswith("_")
    ]


def _takes_inplace(function: object) -> bool:
    try:
        return callable(function) and "inplace" in inspect.signature(function).parameters
    except ValueError:  # written in C, without a signature: these never take it
        return False


def _module_spellings(kind: Kind) -> Iterator[Spelling]:
    for told in _MODULE_ARGUMENTS.get(kind.module, ("",)):
        yield Spelling(kind.name, f"nn.{kind.module.__name__}({told})", False)
        if _takes_inplace(kind.module):
            told = ", ".join(filter(None, (told, "inplace=True")))
            yield Spelling(kind.name, f"nn.{kind.module.__name__}({told})", True)


def _plain_first(spellings: Iterator[Spelling]) -> dict[str, Spelling]:
    """By name, those out of place first: examples shrink towards the first."""
    return {each.name: each for each in sorted(spellings, key=lambda each: each.inplace)}


FUNCTIONS = _plain_first(each for kind in KINDS for each in _of_kind(kind))
MODULES = _plain_first(each for kind in KINDS for each in _module_spellings(kind))


def _allowed(spellings: dict[str, Spelling], choice: Choice) -> tuple[str, ...]:
    return tuple(
        name
        for name, each in spellings.items()
        if (choice.kinds is None or each.kind in choice.kinds) and (choice.inplace or not each.inplace)
    )


@dataclass(frozen=True, repr=False)
class Activation(Step):
    """An activation as a function or a tensor method; `dropped` throws the result of one in place away."""

    spelling: str = chosen(lambda choice: _allowed(FUNCTIONS, choice))
    dropped: bool = among(False, True)
    weight: ClassVar[int] = 6

    def emit(self, writer: Writer) -> None:
        spelling = _that_runs(FUNCTIONS, self.spelling, writer.book.rules.dtype)
        x = writer.pick(self.reads)
        if spelling.inplace:
            x = writer.own(x)
        part = writer.part("constant", spelling.part) if spelling.part else ""
        whole, shape = x.name, x.shape
        if spelling.halved is not None:
            whole, shape = _halved(x, spelling.halved)
        text = spelling.text.format(x=whole, part=part)
        if spelling.inplace and self.dropped and writer.book.rules.aliasing:
            writer.line(text)
        else:
            writer.let(text, shape, x.memory if spelling.inplace else None)


def _that_runs(spellings: dict[str, Spelling], name: str, dtype: torch.dtype) -> Spelling:
    """The spelling of that name, or its fixed counterpart: torch has no random ReLU in float16 on a CPU."""
    chosen = spellings[name]
    if chosen.kind != "rrelu" or dtype != torch.float16:
        return chosen
    return next(each for each in spellings.values() if (each.kind, each.inplace) == ("leaky_relu", chosen.inplace))


def _halved(value: Value, place: int) -> tuple[str, Shape]:
    """What to hand to a gated unit, and the shape that it gives: an odd size is doubled first."""
    if value.shape[place] % 2:
        dim = "-1" if place else "1"
        return f"torch.cat(({value.name}, {value.name}), dim={dim})", value.shape
    return value.name, _with_half(value.shape, place)


def _with_half(shape: Shape, place: int) -> Shape:
    sizes = list(shape)
    sizes[place] //= 2
    return tuple(sizes)


@dataclass(frozen=True, repr=False)
class ActivationModule(Layer):
    """An activation as a module."""

    spelling: str = chosen(lambda choice: _allowed(MODULES, choice))
    stem: ClassVar[str] = "act"
    weight: ClassVar[int] = 3

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        spelling = _that_runs(MODULES, self.spelling, dtype)
        if self.spelling == "nn.Softmax2d()" and len(shape) != 3:
            return Made("nn.Softmax(dim=1)", shape)
        if spelling.halved is None:
            return Made(spelling.name, shape, overwrites=spelling.inplace)
        if shape[spelling.halved] % 2:
            size = shape[-1]
            return Made(f"nn.Sequential(nn.Linear({size}, {2 * size}), nn.GLU())", shape)
        return Made(spelling.name, _with_half(shape, spelling.halved))


@dataclass(frozen=True, repr=False)
class SelfGated(Step):
    """A value times a gate made from it alone: SiLU, GELU or Mish written out."""

    text: str = among(
        "{x} * torch.sigmoid({x})",
        "{x} * (1.702 * {x}).sigmoid()",
        "{x} * torch.tanh(F.softplus({x}))",
        "{x} * (F.relu6({x} + 3) / 6)",
    )

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        writer.let(self.text.format(x=x.name), x.shape)
