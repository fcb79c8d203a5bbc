"""Attention, written by hand, through torch's function, or as torch's module; torch's transformer layers."""

from dataclasses import dataclass

from fitact_fx.testing.step import Step, among, arguments
from fitact_fx.testing.writing import Call, Shape, Writer, tokens


@dataclass(frozen=True, repr=False)
class Attention(Step):
    """Self-attention behind a layer norm (which also keeps the products of half types finite)."""

    kind: str = among("softmax", "scaled_dot_product", "MultiheadAttention", "MultiheadAttention with weights")

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        text, (count, features) = tokens(x.name, x.shape)
        norm = writer.part("norm", f"nn.LayerNorm({features})")
        normed = writer.name()
        writer.line(f"{normed} = {norm}({text})")
        if self.kind.startswith("Multihead"):
            self._emit_module(writer, normed, (count, features))
            return
        mixed = writer.part("qkv", f"nn.Linear({features}, {3 * features})")
        project = writer.part("project", f"nn.Linear({features}, {features})")
        writer.line(f"q, k, v = {mixed}({normed}).chunk(3, dim=-1)")
        if self.kind == "softmax":
            writer.line(f"scores = q @ k.transpose(-2, -1) * {features**-0.5:.4f}")
            writer.let(f"{project}(scores.softmax(dim=-1) @ v)", (count, features))
        else:
            writer.let(f"{project}(F.scaled_dot_product_attention(q, k, v))", (count, features))

    def _emit_module(self, writer: Writer, normed: str, shape: Shape) -> None:
        count, features = shape
        heads = 1 if features % 2 else 2
        module = writer.part("attention", f"nn.MultiheadAttention({features}, {heads}, batch_first=True)")
        if self.kind == "MultiheadAttention":
            result = writer.add(writer.name(), shape)
            writer.line(f"{result.name}, _ = {module}({normed}, {normed}, {normed}, need_weights=False)")
            return
        weights, result = writer.add(writer.name(), (count, count)), writer.add(writer.name(), shape)
        writer.line(f"{result.name}, {weights.name} = {module}({normed}, {normed}, {normed})")


@dataclass(frozen=True, repr=False)
class Transformer(Step):
    """A transformer layer, or a stack of two; a decoder also looks at another value of that shape."""

    kind: str = among("EncoderLayer", "Encoder", "DecoderLayer", "Decoder")
    other: int = among(*range(4))
    activation: str = among("relu", "gelu")
    norm_first: bool = among(False, True)
    batch_first: bool = among(True, False)
    masked: bool = among(False, True)

    def emit(self, writer: Writer) -> None:
        x = writer.pick(self.reads)
        text, (count, features) = tokens("{x}", x.shape)
        seen = tokens(writer.pick_like(self.other, x).name, x.shape)[0]
        turned = "" if self.batch_first else ".transpose(0, 1)"
        given = text + turned
        if self.kind.startswith("Decoder"):
            given += f", {seen}{turned}"
        if self.masked:
            mask = writer.part("mask", f"nn.Buffer(nn.Transformer.generate_square_subsequent_mask({count}))")
            given += f", {mask}"
        module = writer.part("transformer", self._constructor(features))
        writer.call(Call(f"{module}({given}){turned}", x.shape, (count, features)), x)

    def _constructor(self, features: int) -> str:
        told = arguments(
            features,
            1 if features % 2 else 2,
            2 * features,
            activation=(f'"{self.activation}"', '"relu"'),
            norm_first=(self.norm_first, False),
            batch_first=(self.batch_first, False),
        )
        layer = f"nn.Transformer{self.kind.removesuffix('Layer')}Layer({told})"
        if self.kind.endswith("Layer"):
            return layer
        # Nested tensors are for padding masks, and torch warns where it cannot use them.
        nested = ", enable_nested_tensor=False" if self.kind == "Encoder" else ""
        return f"nn.Transformer{self.kind}({layer}, 2{nested})"
