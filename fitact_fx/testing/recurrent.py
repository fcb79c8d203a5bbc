"""Recurrent layers over the tokens of a value, and their cells."""

from dataclasses import dataclass
from math import prod

from fitact_fx.testing.step import Step, among, arguments
from fitact_fx.testing.writing import Call, Value, Writer, tokens

_MOST_TOKENS = 16  # a recurrent layer takes its time over each


@dataclass(frozen=True, repr=False)
class Recurrent(Step):
    """A recurrent layer: its output alone, its output and its last state, or the state alone."""

    kind: str = among("LSTM", "GRU", "RNN", "RNN with relu")
    takes: str = among("output", "both", "state")
    width: int = among(2, 1, 3)
    depth: int = among(1, 2)
    bidirectional: bool = among(False, True)
    batch_first: bool = among(True, False)

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        text, (count, features) = tokens("{x}", x.shape)
        text = text if count <= _MOST_TOKENS else f"{text}[:, :{_MOST_TOKENS}]"
        turned = "" if self.batch_first else ".transpose(0, 1)"
        module = writer.part("recurrent", self._constructor(features))
        call = f"{module}({text}{turned})"
        directions = 2 if self.bidirectional else 1
        shape = (min(count, _MOST_TOKENS), directions * self.width)
        if self.takes == "output":
            writer.call(Call(f"{call}[0]{turned}", x.shape, shape), x)
            return
        output, state = writer.name(), writer.name()
        first = output if self.takes == "both" else "_"
        kept = f"({state}, _)" if self.kind == "LSTM" else state
        writer.line(f"{first}, {kept} = {call.format(x=x.name)}")
        if self.takes == "both":
            writer.let(f"{output}{turned}", shape) if turned else writer.add(output, shape)
        writer.let(f"{state}.transpose(0, 1)", (directions * self.depth, self.width))

    def _constructor(self, features: int) -> str:
        name, relu, _ = self.kind.partition(" with relu")
        told = arguments(
            features,
            self.width,
            num_layers=(self.depth, 1),
            nonlinearity=('"relu"' if relu else "", ""),
            bidirectional=(self.bidirectional, False),
            batch_first=(self.batch_first, False),
        )
        return f"nn.{name}({told})"


@dataclass(frozen=True, repr=False)
class Cell(Step):
    """A recurrent cell, called once or twice, the second time with the state of the first."""

    kind: str = among("LSTM", "GRU", "RNN")
    width: int = among(2, 1, 3)
    twice: bool = among(False, True)

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        cell = writer.part("cell", f"nn.{self.kind}Cell({prod(x.shape)}, {self.width})")
        flat = x.name if len(x.shape) == 1 else f"{x.name}.flatten(1)"
        state = self._emit_call(writer, f"{cell}({flat})")
        if self.twice:
            again = state[0].name if len(state) == 1 else f"({state[0].name}, {state[1].name})"
            self._emit_call(writer, f"{cell}({flat}, {again})")

    def _emit_call(self, writer: Writer, call: str) -> list[Value]:
        """What the cell gives: its output, and an LSTM's cell state behind that."""
        results = [writer.add(writer.name(), (self.width,)) for _ in range(2 if self.kind == "LSTM" else 1)]
        writer.line(f"{', '.join(each.name for each in results)} = {call}")
        return results
