"""torch's transformer layers, whose activation hides in a fused operator in evaluation mode.

A hardened layer never takes that fast path: it calls no activation, so nothing could be bounded there. The
layers are recorded like a user's own code, along the slow path; their attention stays one call, and takes
the slow path as well. Masks may be given or left out when the graph runs.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import transformer
from torch.nn.utils import rnn

from fitact_fx.ambience import slow_path

ON_SEQUENCES = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence)
"""Functions that are one call of the graph, by whatever name they are imported."""

LAYERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
"""Modules of torch that are looked into."""

# Functions that look at values, and take None for a mask that is not given.
_ON_VALUES = (
    *((rnn, function.__name__) for function in ON_SEQUENCES),
    (F, "_canonical_mask"),
    (F, "_none_or_dtype"),
    (transformer, "_get_seq_len"),
    (transformer, "_detect_is_causal_mask"),
)


class SlowAttention(nn.MultiheadAttention):
    """Attention that computes what nn.MultiheadAttention does in training, in every mode."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        swapped = self.batch_first and query.dim() == 3
        if swapped:  # what is the same tensor stays the same: then one product gives all three projections
            same_key, same_value = key is query, value is key
            query, key_ = query.transpose(1, 0), key.transpose(1, 0)
            key = query if same_key else key_
            value = key if same_value else value.transpose(1, 0)
        dtype = query.dtype
        padding = F._canonical_mask(  # noqa: SLF001  as in the module this stands for
            key_padding_mask,
            "key_padding_mask",
            F._none_or_dtype(attn_mask),  # noqa: SLF001
            "attn_mask",
            dtype,
        )
        mask = F._canonical_mask(attn_mask, "attn_mask", None, "", dtype, check_other=False)  # noqa: SLF001
        separate = not self._qkv_same_embed_dim
        attended, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=padding,
            need_weights=need_weights,
            attn_mask=mask,
            use_separate_proj_weight=separate,
            q_proj_weight=self.q_proj_weight if separate else None,
            k_proj_weight=self.k_proj_weight if separate else None,
            v_proj_weight=self.v_proj_weight if separate else None,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return attended.transpose(1, 0) if swapped else attended, weights


class UncheckedTransformer(nn.Transformer):
    """nn.Transformer without its checks of shapes, which a stand-in cannot answer; attention makes them again."""

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Any:
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )


def along_the_slow_path(root: nn.Module) -> nn.Module:
    """`root`, a copy, with every transformer and the attention in its layers replaced by what can be recorded."""
    for module in list(root.modules()):
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention and isinstance(module, LAYERS):
                setattr(module, name, _as(SlowAttention, child))
            if type(child) is nn.Transformer:
                setattr(module, name, _as(UncheckedTransformer, child))
    return _as(UncheckedTransformer, root) if type(root) is nn.Transformer else root


def _as(cls: type[nn.Module], module: nn.Module) -> nn.Module:
    """The same module, with the same Parameters, hooks and mode, and the code of another class."""
    other = cls.__new__(cls)
    vars(other).update(vars(module))
    return other


@contextmanager
def recorded_along_the_slow_path() -> Iterator[None]:
    """Inside, transformer layers compute step by step, and what they do to a stand-in for a mask is recorded."""
    plain = [(module, name, getattr(module, name)) for module, name in _ON_VALUES]
    with slow_path():
        try:
            for module, name, function in plain:
                setattr(module, name, _recordable(function))
            yield
        finally:
            for module, name, function in plain:
                setattr(module, name, function)


def _recordable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, as one call of the graph where it gets a stand-in."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        first = next(iter((*args, *kwargs.values())), None)
        stand_in = next((each for each in (*args, *kwargs.values()) if isinstance(each, Proxy)), None)
        # No mask is nothing to look at, whatever else is given.
        if stand_in is None or first is None:
            return function(*args, **kwargs)
        return stand_in.tracer.create_proxy("call_function", function, args, kwargs)

    return call
