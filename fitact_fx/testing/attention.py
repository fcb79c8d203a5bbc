"""Attention, written by hand, through torch's function, or as torch's module."""

from dataclasses import dataclass
from math import prod

from fitact_fx.testing.step import Step, among
from fitact_fx.testing.writing import Shape, Writer


def _tokens(name: str, shape: Shape) -> tuple[str, Shape]:
    """An expression with a value as (batch, tokens, features), whatever its rank."""
    if len(shape) == 1:
        return f"{name}.unsqueeze(1)", (1, *shape)
    if len(shape) == 2:
        return name, shape
    return f"{name}.flatten(2).transpose(1, 2)", (prod(shape[1:]), shape[0])


@dataclass(frozen=True, repr=False)
class Attention(Step):
    """Self-attention behind a layer norm (which also keeps the products of half types finite)."""

    kind: str = among("softmax", "scaled_dot_product", "MultiheadAttention", "MultiheadAttention with weights")

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        text, (count, features) = _tokens(x.name, x.shape)
        norm = writer.part("norm", f"nn.LayerNorm({features})")
        tokens = writer.name()
        writer.line(f"{tokens} = {norm}({text})")
        if self.kind.startswith("Multihead"):
            self._emit_module(writer, tokens, (count, features))
            return
        mixed = writer.part("qkv", f"nn.Linear({features}, {3 * features})")
        project = writer.part("project", f"nn.Linear({features}, {features})")
        writer.line(f"q, k, v = {mixed}({tokens}).chunk(3, dim=-1)")
        if self.kind == "softmax":
            writer.line(f"scores = q @ k.transpose(-2, -1) * {features**-0.5:.4f}")
            writer.let(f"{project}(scores.softmax(dim=-1) @ v)", (count, features))
        else:
            writer.let(f"{project}(F.scaled_dot_product_attention(q, k, v))", (count, features))

    def _emit_module(self, writer: Writer, tokens: str, shape: Shape) -> None:
        count, features = shape
        heads = 1 if features % 2 else 2
        module = writer.part("attention", f"nn.MultiheadAttention({features}, {heads}, batch_first=True)")
        if self.kind == "MultiheadAttention":
            result = writer.add(writer.name(), shape)
            writer.line(f"{result.name}, _ = {module}({tokens}, {tokens}, {tokens}, need_weights=False)")
            return
        weights, result = writer.add(writer.name(), (count, count)), writer.add(writer.name(), shape)
        writer.line(f"{result.name}, {weights.name} = {module}({tokens}, {tokens}, {tokens})")
