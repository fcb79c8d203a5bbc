"""Steps about who owns what: modules called twice, containers, nested modules, tied and bare weights, buffers."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fitact_fx.testing.step import Layer, Made, Step, among, several
from fitact_fx.testing.writing import Call, Shape, Writer


@dataclass(frozen=True, repr=False)
class Again(Step):
    """An earlier module called once more, `renamed` under a second name; a ReLU called twice if there is none."""

    which: int = among(*range(4))
    renamed: bool = among(False, True)
    weight: ClassVar[int] = 2

    def emit(self, writer: Writer) -> None:
        shapes = {value.shape for value in writer.values}
        calls = [call for call in writer.calls if call.takes is None or call.takes in shapes]
        if not calls:
            part = writer.part("relu", "nn.ReLU()")
            calls = [Call(f"{part}({{x}})", None, None)]
            writer.call(calls[0], writer.pick(self.reads))
        call = calls[-1 - self.which % len(calls)]
        fitting = [value for value in writer.values if call.takes in (None, value.shape)]
        x = fitting[-1 - self.reads % len(fitting)]
        if call.splits:
            x = writer.let(f"{x.name}.clone()", x.shape)
        if call.overwrites:
            x = writer.own(x)
        if self.renamed and call.text.count("self.") == 1 and call.text.endswith("({x})"):
            part = writer.part("again", call.text.removesuffix("({x})"))
            call = Call(f"{part}({{x}})", call.takes, call.gives, call.keeps, call.overwrites, call.splits)
        writer.call(call, x)


@dataclass(frozen=True, repr=False)
class Container(Layer):
    """Layers one behind the other in a container; inside another container it is a Sequential."""

    layers: tuple[Layer, ...] = several(lambda: Layer, most=4)
    kind: str = among("Sequential", "ModuleList", "ModuleDict")
    stem: ClassVar[str] = "chain"

    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        constructors, whole = self._chain(shape, dtype)
        return Made(f"nn.Sequential({', '.join(constructors)})", whole.shape, whole.keeps, whole.overwrites)

    def _chain(self, shape: Shape, dtype: torch.dtype) -> tuple[list[str], Made]:
        """The layers' constructors, and what they do together."""
        constructors, keeps, overwrites = [], True, False
        for layer in self.layers:
            made = layer.made(shape, dtype)
            constructors.append(made.constructor)
            overwrites = overwrites or (keeps and made.overwrites)
            keeps = keeps and (made.keeps or made.overwrites)
            shape = made.shape
        return constructors, Made("", shape, keeps, overwrites)

    def emit(self, writer: Writer) -> None:
        if self.kind == "Sequential" or not self.layers:
            super().emit(writer)
            return
        x = writer.pick(self.reads)
        constructors, whole = self._chain(x.shape, writer.book.rules.dtype)
        if whole.overwrites:
            x = writer.own(x)
        memory = x.memory if whole.keeps or whole.overwrites else None
        if self.kind == "ModuleList":
            part = writer.part(self.stem, f"nn.ModuleList([{', '.join(constructors)}])")
            result = writer.add(writer.name(), whole.shape, memory)
            for line in (
                f"{result.name} = {x.name}",
                f"for layer in {part}:",
                f"    {result.name} = layer({result.name})",
            ):
                writer.line(line)
            return
        named = {chr(ord("a") + place): each for place, each in enumerate(constructors)}
        inside = ", ".join(f'"{name}": {each}' for name, each in named.items())
        part = writer.part(self.stem, f"nn.ModuleDict({{{inside}}})")
        text = "{x}"
        for name in named:
            text = f'{part}["{name}"]({text})'
        writer.call(Call(text, x.shape, whole.shape, whole.keeps, whole.overwrites), x)


@dataclass(frozen=True, repr=False)
class Block(Step):
    """A nested module of its own class, with steps of any kind inside."""

    steps: tuple[Step, ...] = several(lambda: Step, most=4)
    weight: ClassVar[int] = 2

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        inner = writer.inside(x)
        before = set(writer.book.split)
        for step in self.steps:
            step.emit(inner)
        result = inner.values[-1]
        part = writer.part("block", f"{writer.nested_class('Block', inner)}()")
        splits = x.memory in writer.book.split - before
        overwrites = x.memory in writer.book.overwritten
        keeps = result.memory == x.memory
        value = writer.call(Call(f"{part}({{x}})", x.shape, result.shape, keeps, overwrites, splits), x)
        if result.memory in writer.book.split:
            writer.book.split.add(value.memory)


@dataclass(frozen=True, repr=False)
class Tied(Step):
    """Two linear layers that are one: the same weight under two names, or its transpose on the way back."""

    transposed: bool = among(False, True)

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        size = x.shape[-1]
        one = writer.part("linear", f"nn.Linear({size}, {size})")
        y = writer.let(f"{one}({x.name})", x.shape)
        if self.transposed:
            writer.let(f"F.linear({y.name}, {one}.weight.t())", x.shape)
            return
        other = writer.part("tied", f"nn.Linear({size}, {size})")
        writer.init_line(f"{other}.weight = {one}.weight")
        writer.let(f"{other}({y.name})", x.shape)


@dataclass(frozen=True, repr=False)
class FunctionalWeight(Step):
    """A weight of the model's own, used through a function."""

    spelling: str = among("linear", "matmul", "conv")

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        channels, *sizes = x.shape
        if self.spelling == "conv" and sizes:
            shape = (channels, 1, *(1 for _ in sizes))
            weight = writer.part("weight", f"nn.Parameter(torch.randn({shape}))")
            writer.let(f"F.conv{len(sizes)}d({x.name}, {weight}, groups={channels})", x.shape)
            return
        size = x.shape[-1]
        weight = writer.part("weight", f"nn.Parameter(torch.randn({size}, {size}) / {size})")
        text = f"{x.name} @ {weight}" if self.spelling == "matmul" else f"F.linear({x.name}, {weight})"
        writer.let(text, x.shape)


@dataclass(frozen=True, repr=False)
class Buffered(Step):
    """A buffer read in forward, saved with the model or not."""

    operator: str = among("+", "*")
    persistent: bool = among(True, False)

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        shape = (x.shape[0], *(1 for _ in x.shape[1:]))
        told = "" if self.persistent else ", persistent=False"
        buffer = writer.part("buffer", f"nn.Buffer(torch.rand({shape}){told})")
        writer.let(f"{x.name} {self.operator} {buffer}", x.shape)


@dataclass(frozen=True, repr=False)
class FunctionalDropout(Step):
    """Dropout as a function that reads the module's mode."""

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        writer.let(f"F.dropout({x.name}, 0.25, self.training)", x.shape, x.memory)
