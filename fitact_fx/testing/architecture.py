"""An architecture is a value: inputs, steps, dtype. Its Python source is written from that, and is the model."""

import functools
import linecache
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fitact_fx.testing.step import Step
from fitact_fx.testing.writing import Book, Rules, Shape, Value, Writer

_INPUTS = "xyz"
_FORMS: dict[str, Callable[[list[str]], str]] = {
    "tensor": lambda names: names[-1],
    "tuple": lambda names: f"({', '.join(names)}{',' if len(names) == 1 else ''})",
    "list": lambda names: f"[{', '.join(names)}]",
    "dict": lambda names: "{" + ", ".join(f'"{name}": {name}' for name in names) + "}",
}
_SOURCE = '''\
import torch
import torch.nn.functional as F
from torch import nn


{classes}

def build():
    """The model in evaluation mode, always with the same weights; the global generator stays as it is."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed({seed})
        model = Model()
{statistics}    return model.to({dtype}).eval()


def inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
{inputs}    )
'''
_STATISTICS = """\
        for name, tensor in model.state_dict().items():
            if "running_" in name:
                tensor.uniform_(0.5, 1.5)
"""


@dataclass(frozen=True, repr=False)
class Architecture:
    """A small network: the shapes it takes (without the batch), its steps, and what it returns.

    `print(architecture)` gives Python source that runs on its own: `build()` makes the module, `inputs()`
    makes inputs. The module here is made from that very source. Two equal architectures are the same
    model, bit for bit; `seed` chooses other weights.

    `outputs`: the `form` holds the newest so many values. `channels_last` is the memory format of
    inputs with two or three dimensions behind the channels. `aliasing` and `gradients` are explained at
    `fitact_fx.testing.architectures`.
    """

    takes: tuple[Shape, ...] = ((1,),)
    steps: tuple[Step, ...] = ()
    dtype: torch.dtype = torch.float32
    form: str = "tensor"
    outputs: int = 1
    channels_last: bool = False
    seed: int = 0
    aliasing: bool = True
    gradients: bool = True

    def module(self) -> nn.Module:
        """A new module in evaluation mode. Its source lines are known to tracebacks and to `inspect`."""
        model: nn.Module = _namespace(self.source)["build"]()
        return model

    def inputs(self, batch: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Normally distributed inputs, the same for the same seed. `batch` is 2 by default: batch norms that
        train refuse a single value."""
        made: tuple[Tensor, ...] = _namespace(self.source)["inputs"](2 if batch is None else batch, seed)
        return made

    @functools.cached_property
    def source(self) -> str:
        """Python source with `Model`, `build` and `inputs`."""
        book = Book(Rules(self.dtype, self.aliasing, self.gradients))
        names = _INPUTS[: len(self.takes)]
        given = tuple(Value(name, shape, next(book.memories)) for name, shape in zip(names, self.takes, strict=True))
        writer = Writer(given, book)
        for step in self.steps:
            step.emit(writer)
        returned = _FORMS[self.form]([value.name for value in writer.values[-self.outputs :]])
        classes = "\n\n".join([*book.classes, writer.class_text("Model", returned)])
        return _SOURCE.format(
            classes=classes,
            seed=self.seed,
            statistics=_STATISTICS if "nn.BatchNorm" in classes else "",
            dtype=self.dtype,
            inputs="".join(f"        {self._input(shape)},\n" for shape in self.takes),
        )

    def _input(self, shape: Shape) -> str:
        sizes = ", ".join(map(str, ("batch", *shape)))
        text = f"torch.randn({sizes}, generator=generator).to({self.dtype})"
        formats = {3: "torch.channels_last", 4: "torch.channels_last_3d"}
        if self.channels_last and len(shape) in formats:
            text += f".contiguous(memory_format={formats[len(shape)]})"
        return text

    def __str__(self) -> str:
        return self.source

    def __repr__(self) -> str:
        """A call that builds it, without what is as by default."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        told = (f"{each.name}={given[each.name]!r}" for each in fields(self) if given[each.name] != each.default)
        return f"Architecture({', '.join(told)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis shows a falsifying example: the call that builds it, and the code behind it."""
        printer.text(repr(self))
        for line in self.source.splitlines():
            printer.break_()
            printer.text(f"# {line}".rstrip())


@functools.lru_cache(maxsize=256)
def _namespace(source: str) -> dict[str, Any]:
    """What the source defines, run as a file of its own that tracebacks can read."""
    file = f"<architecture {zlib.crc32(source.encode()):08x}>"
    namespace: dict[str, Any] = {"__name__": "architecture"}
    exec(compile(source, file, "exec"), namespace)  # noqa: S102  the text was written above, from a value
    # A size and no time: linecache keeps such an entry although no file of that name exists.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    weakref.finalize(namespace["Model"], linecache.cache.pop, file, None)
    return namespace
