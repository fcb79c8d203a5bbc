"""Steps that join values and take them apart: sums, products, concatenation, split, views."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from fitact_fx.testing.step import Step, among, inplace
from fitact_fx.testing.writing import LARGEST, Shape, Writer

_MOST_DIMENSIONS = 4  # channels and three more


@dataclass(frozen=True, repr=False)
class Sum(Step):
    """A residual sum of two values of one shape, out of place or as `+=` and `add_`."""

    other: int = among(*range(4))
    method: bool = among(False, True)
    inplace: bool = inplace()
    weight: ClassVar[int] = 2

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        y = writer.pick_like(self.other, x)
        doubles = writer.may_double()
        # Torch refuses to add to memory what is another view of it.
        if not self.inplace or (x.memory == y.memory and x is not y) or not doubles:
            text = f"{x.name}.add({y.name})" if self.method else f"{x.name} + {y.name}"
            writer.let(text if doubles else f"({text}) / 2", x.shape)
            return
        x = writer.own(x)
        if self.method:
            writer.let(f"{x.name}.add_({y.name})", x.shape, x.memory)
            return
        writer.line(f"{x.name} += {y.name}")
        if x not in writer.values:
            writer.values.append(x)


@dataclass(frozen=True, repr=False)
class Gate(Step):
    """A product with a gate between 0 and 1."""

    other: int = among(*range(4))

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        y = writer.pick_like(self.other, x)
        writer.let(f"{x.name} * torch.softmax({y.name}, dim=-1)", x.shape)


@dataclass(frozen=True, repr=False)
class Concat(Step):
    """Two values side by side: along the channels, or flattened where their shapes differ."""

    other: int = among(*range(6))
    stacked: bool = among(False, True)

    def emit(self, writer: Writer) -> None:
        x, y = writer.pick(self.reads), writer.pick(self.other)
        total = prod(x.shape) + prod(y.shape)
        if total > LARGEST:
            writer.let(f"{x.name}.neg()", x.shape)
        elif self.stacked and x.shape == y.shape and len(x.shape) < _MOST_DIMENSIONS:
            writer.let(f"torch.stack(({x.name}, {y.name}), dim=1)", (2, *x.shape))
        elif x.shape[1:] == y.shape[1:]:
            writer.let(f"torch.cat(({x.name}, {y.name}), dim=1)", (x.shape[0] + y.shape[0], *x.shape[1:]))
        else:
            writer.let(f"torch.cat(({x.name}.flatten(1), {y.name}.flatten(1)), dim=1)", (total,))


@dataclass(frozen=True, repr=False)
class Split(Step):
    """A value taken apart along its channels; a copy of it where there is one channel only."""

    spelling: str = among("chunk", "split", "torch.chunk", "torch.split", "unbind")

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        channels, *sizes = x.shape
        if channels < 2:
            writer.let(f"{x.name}.clone()", x.shape)
            return
        half = (channels + 1) // 2
        text = {
            "chunk": f"{x.name}.chunk(2, dim=1)",
            "split": f"{x.name}.split({half}, dim=1)",
            "torch.chunk": f"torch.chunk({x.name}, 2, dim=1)",
            "torch.split": f"torch.split({x.name}, [{half}, {channels - half}], dim=1)",
            "unbind": f"{x.name}[:, :2].unbind(1)",
        }[self.spelling]
        shapes: tuple[Shape, ...] = ((half, *sizes), (channels - half, *sizes))
        if self.spelling == "unbind":
            shapes = (tuple(sizes), tuple(sizes)) if sizes else ((1,), (1,))
            text = text if sizes else f"{x.name}[:, :2].unsqueeze(2).unbind(1)"
        first, second = (writer.add(writer.name(), shape, x.memory) for shape in shapes)
        writer.line(f"{first.name}, {second.name} = {text}")
        writer.book.split.add(x.memory)


def _half(size: int) -> int:
    return (size + 1) // 2


# Each: the text behind the value's name, and the shape it gives. None where it does not fit the shape.
VIEWS: dict[str, Callable[[Shape], tuple[str, Shape] | None]] = {
    "flatten": lambda s: (".flatten(1)", (prod(s),)),
    "reshape": lambda s: (f".reshape(-1, {prod(s)})", (prod(s),)),
    "view": lambda s: (f".contiguous().view(-1, {prod(s)})", (prod(s),)),
    "slice": lambda s: (f"[:, :{_half(s[0])}]", (_half(s[0]), *s[1:])),
    "last slice": lambda s: (f"[..., {s[-1] // 2}:]", (*s[:-1], s[-1] - s[-1] // 2)),
    "stride": lambda s: ("[..., ::2]", (*s[:-1], _half(s[-1]))),
    "narrow": lambda s: (f".narrow(1, 0, {_half(s[0])})", (_half(s[0]), *s[1:])),
    "select": lambda s: ("[:, 0]", s[1:]) if len(s) > 1 else None,
    "transpose": lambda s: (".transpose(1, -1)", (s[-1], *s[1:-1], s[0])) if len(s) > 1 else None,
    "permute": lambda s: (".permute(0, 2, 1)", (s[1], s[0])) if len(s) == 2 else None,
    "unsqueeze": lambda s: (".unsqueeze(1)", (1, *s)) if len(s) < _MOST_DIMENSIONS else None,
    "squeeze": lambda s: (".squeeze(1)", s[1:]) if len(s) > 1 and s[0] == 1 else None,
    "unflatten": lambda s: (f".unflatten(1, (-1, {s[0]}))", (1, *s)) if len(s) < _MOST_DIMENSIONS else None,
    "detach": lambda s: (".detach()", s),
}


@dataclass(frozen=True, repr=False)
class View(Step):
    """A view of a value, which shares its memory (a copy, where `reshape` cannot avoid one)."""

    kind: str = among(*VIEWS)
    weight: ClassVar[int] = 4

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        text, shape = VIEWS[self.kind](x.shape) or (".flatten(1)", (prod(x.shape),))
        writer.let(x.name + text, shape, x.memory)


@dataclass(frozen=True, repr=False)
class Reduction(Step):
    """The last dimension averaged away, or its largest element taken."""

    spelling: str = among("mean", "amax")

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        kept = x.shape[:-1] or (1,)
        keepdim = "" if x.shape[:-1] else ", keepdim=True"
        writer.let(f"{x.name}.{self.spelling}(-1{keepdim})", kept)
