"""What a step of an architecture is: a small frozen dataclass whose fields are choices and whose `emit` writes code.

A new kind of step is one such class, in any of this package's modules that `strategies` collects from,
or in a test of your own and handed to `architectures(steps=...)`. Its `emit` must write valid code for
whatever values it finds, so that steps can be left out: shapes are adapted, never refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

import torch

from fitact_fx.testing.writing import Call, Shape, Writer


@dataclass(frozen=True)
class Choice:
    """What `architectures` was asked for: activation kinds (None: all), and whether steps may work in place."""

    kinds: tuple[str, ...] | None = None
    inplace: bool = True


def among(*options: Any) -> Any:
    """A field that holds one of these; the simplest comes first and is the default."""
    return field(default=options[0], metadata={"options": lambda choice: options})


def chosen(options: Callable[[Choice], tuple[Any, ...]]) -> Any:
    """A field whose options depend on what was asked for."""
    return field(default=options(Choice())[0], metadata={"options": options})


def inplace() -> Any:
    """Whether to work in place, where that was asked for."""
    return chosen(lambda choice: (False, True) if choice.inplace else (False,))


def several(kind: "Callable[[], type[Step]]", most: int) -> Any:
    """A field that holds a tuple of steps of this kind."""
    return field(default=(), metadata={"steps": kind, "most": most})


@dataclass(frozen=True, repr=False)
class Step(ABC):
    """One or a few lines of `forward`, and what they need in `__init__`. `reads`: which value, 0 for the newest."""

    reads: int = among(0, 0, 0, 0, 1, 2, 3, 5)  # the newest most often, so that chains appear
    weight: ClassVar[int] = 1  # how often this kind is drawn, beside the others

    @abstractmethod
    def emit(self, writer: Writer) -> None:
        """Write the step's lines."""

    def __repr__(self) -> str:
        """A call that builds it, without what is as by default."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        told = (f"{each.name}={given[each.name]!r}" for each in fields(self) if given[each.name] != each.default)
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True)
class Made:
    """A module that a layer decided on: how it is built, what shape it gives, what it does to its input."""

    constructor: str
    shape: Shape
    keeps: bool = False
    overwrites: bool = False


@dataclass(frozen=True, repr=False)
class Layer(Step):
    """A step that is one module called on one value, so it can also stand in a container."""

    stem: ClassVar[str] = "layer"

    @abstractmethod
    def made(self, shape: Shape, dtype: torch.dtype) -> Made:
        """The module for an input of this shape (without the batch)."""

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        made = self.made(x.shape, writer.book.rules.dtype)
        if made.overwrites:
            x = writer.own(x)
        part = writer.part(self.stem, made.constructor)
        writer.call(Call(f"{part}({{x}})", x.shape, made.shape, made.keeps, made.overwrites), x)


def arguments(*positional: object, **named: tuple[object, object]) -> str:
    """`3, 4, padding=1`: each named one is (value, default) and is left out where the two are equal."""
    told = (f"{name}={value}" for name, (value, default) in named.items() if value != default)
    return ", ".join([*map(str, positional), *told])


def options_of(each: "Field[Any]", choice: Choice) -> tuple[Any, ...]:
    """What a field made by `among` or `chosen` may hold."""
    options: tuple[Any, ...] = each.metadata["options"](choice)
    return options
