"""How a step writes code: the values a `forward` holds so far, the memory they share, the lines that compute them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from math import prod

import torch

Shape = tuple[int, ...]  # without the batch dimension, which every value has in front

LARGEST = 2048  # elements of one sample's value: a forward pass stays in the milliseconds
_MOST_DOUBLINGS = 8  # float16 ends at 65504


def tokens(name: str, shape: Shape) -> tuple[str, Shape]:
    """An expression with a value as (batch, tokens, features), whatever its rank."""
    if len(shape) == 1:
        return f"{name}.unsqueeze(1)", (1, *shape)
    if len(shape) == 2:
        return name, shape
    return f"{name}.flatten(2).transpose(1, 2)", (prod(shape[1:]), shape[0])


@dataclass(frozen=True)
class Value:
    """A tensor that `forward` has a name for. Two values with the same `memory` may be views of one another."""

    name: str
    shape: Shape
    memory: int


@dataclass(frozen=True)
class Call:
    """A call of a module that may be made again: its text with `{x}` for the argument, and what it does to that.

    `takes` None: any shape; `gives` None: the shape that came in. `keeps`: the result may be the argument,
    or a view of it; `overwrites` and `splits`: what becomes of the argument's memory.
    """

    text: str
    takes: Shape | None
    gives: Shape | None
    keeps: bool = False
    overwrites: bool = False
    splits: bool = False


@dataclass(frozen=True)
class Rules:
    """What the code must run with, and whether it may overwrite memory that other names still read."""

    dtype: torch.dtype = torch.float32
    aliasing: bool = True
    gradients: bool = True


@dataclass
class Book:
    """What all classes of one source have in common."""

    rules: Rules
    classes: list[str] = field(default_factory=list)
    memories: "count[int]" = field(default_factory=count)
    split: set[int] = field(default_factory=set)
    overwritten: set[int] = field(default_factory=set)
    doublings: int = 0


class Writer:
    """Writes one class: steps pick values, ask for parts in `__init__`, and let new values be computed in `forward`."""

    def __init__(self, inputs: tuple[Value, ...], book: Book) -> None:
        self.inputs, self.book = inputs, book
        self.values = list(inputs)
        self.calls: list[Call] = []
        self._init: list[str] = []
        self._forward: list[str] = []
        self._stems: Counter[str] = Counter()

    def pick(self, index: int) -> Value:
        """The value `index` steps back from the newest, counted around."""
        return self.values[-1 - index % len(self.values)]

    def pick_like(self, index: int, value: Value) -> Value:
        """A value of the same shape: a different one if there is one."""
        alike = [other for other in self.values if other.shape == value.shape and other is not value] or [value]
        return alike[-1 - index % len(alike)]

    def part(self, stem: str, constructor: str) -> str:
        """A line of `__init__`; returns how `forward` writes that part."""
        self._stems[stem] += 1
        name = f"self.{stem}{self._stems[stem]}"
        self.init_line(f"{name} = {constructor}")
        return name

    def init_line(self, text: str) -> None:
        self._init.append(text)

    def line(self, text: str) -> None:
        self._forward.append(text)

    def name(self) -> str:
        """A fresh name for a value."""
        self._stems["h"] += 1
        return f"h{self._stems['h']}"

    def let(self, expression: str, shape: Shape, memory: int | None = None) -> Value:
        """`h3 = expression`, in the given memory or in new memory."""
        value = self.add(self.name(), shape, memory)
        self.line(f"{value.name} = {expression}")
        return value

    def add(self, name: str, shape: Shape, memory: int | None = None) -> Value:
        """A value that a line of the step's own assigns."""
        value = Value(name, shape, next(self.book.memories) if memory is None else memory)
        self.values.append(value)
        return value

    def call(self, call: Call, x: Value) -> Value:
        """`h3 = self.part(x)`, and remember the call."""
        if call not in self.calls:
            self.calls.append(call)
        if call.splits:
            self.book.split.add(x.memory)
        shared = x.memory if call.keeps or call.overwrites else None
        return self.let(call.text.format(x=x.name), call.gives or x.shape, shared)

    def own(self, value: Value) -> Value:
        """The value, or a clone of it where the rules do not let its memory be overwritten."""
        rules = self.book.rules
        # Autograd refuses to write into, or beneath, what split and chunk return.
        refused = rules.gradients and value.memory in self.book.split
        readers = sum(other.memory == value.memory for other in self.values)
        if refused or not (rules.aliasing or (readers == 1 and value not in self.inputs)):
            value = self.let(f"{value.name}.clone()", value.shape)
        if not rules.aliasing:
            self.values.remove(value)  # whoever overwrites it gives it a new name
        self.book.overwritten.add(value.memory)
        return value

    def may_double(self) -> bool:
        """Whether a value may still grow to twice its size: a bound on these keeps half types finite."""
        self.book.doublings += 1
        return self.book.doublings <= _MOST_DOUBLINGS

    def inside(self, value: Value) -> "Writer":
        """The writer of a nested class whose `forward` takes this value."""
        return Writer((Value("x", value.shape, value.memory),), self.book)

    def nested_class(self, stem: str, inner: "Writer") -> str:
        """Put what `inner` wrote into a class that returns its newest value; its name."""
        name = f"{stem}{len(self.book.classes) + 1}"
        self.book.classes.append(inner.class_text(name, inner.values[-1].name))
        return name

    def class_text(self, name: str, returned: str) -> str:
        """The finished class."""
        arguments = ", ".join(["self", *(each.name for each in self.inputs)])
        init = "".join(f"        {line}\n" for line in ("super().__init__()", *self._init))
        forward = "".join(f"        {line}\n" for line in (*self._forward, f"return {returned}"))
        return f"class {name}(nn.Module):\n    def __init__(self):\n{init}\n    def forward({arguments}):\n{forward}"
