"""What an activation is: one row of `KINDS` per kind. The only file to touch for a new one.

How a call in a graph is recognised as one of them, in any spelling, is told in `spellings`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREE = -torch.inf


@dataclass(frozen=True)
class Kind:
    """One kind of activation: how it is spelled, and the least value it gives (`FREE`: two-sided).

    The first function is the one that leaves its input alone. `aten` are the names of its operators in an
    exported graph, beside the kind's own name.
    """

    name: str
    module: type[nn.Module]
    functions: tuple[Callable[..., Tensor], ...]
    methods: tuple[str, ...] = ()
    minimum: float = FREE
    aten: tuple[str, ...] = ()


_SOFTMAXES = (F.softmax, torch.softmax, torch.special.softmax)
_SIGMOIDS = (F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.special.expit)

KINDS = (
    Kind("relu", nn.ReLU, (F.relu, F.relu_, torch.relu, torch.relu_), ("relu", "relu_"), minimum=0.0),
    Kind("relu6", nn.ReLU6, (F.relu6,), minimum=0.0),
    Kind("leaky_relu", nn.LeakyReLU, (F.leaky_relu, F.leaky_relu_)),
    Kind("prelu", nn.PReLU, (F.prelu, torch.prelu), ("prelu",)),
    Kind("elu", nn.ELU, (F.elu, F.elu_)),
    Kind("selu", nn.SELU, (F.selu, F.selu_, torch.selu, torch.selu_)),
    Kind("celu", nn.CELU, (F.celu, F.celu_, torch.celu, torch.celu_)),
    Kind("gelu", nn.GELU, (F.gelu,)),
    Kind("silu", nn.SiLU, (F.silu,)),
    Kind("mish", nn.Mish, (F.mish,)),
    Kind("hardswish", nn.Hardswish, (F.hardswish,)),
    Kind("hardsigmoid", nn.Hardsigmoid, (F.hardsigmoid,), minimum=0.0),
    Kind("hardtanh", nn.Hardtanh, (F.hardtanh, F.hardtanh_)),
    Kind("sigmoid", nn.Sigmoid, _SIGMOIDS, ("sigmoid", "sigmoid_"), 0.0, ("special_expit",)),
    Kind("tanh", nn.Tanh, (F.tanh, torch.tanh, torch.tanh_), ("tanh", "tanh_")),
    Kind("softplus", nn.Softplus, (F.softplus,), minimum=0.0),
    Kind("softsign", nn.Softsign, (F.softsign,)),
    Kind("threshold", nn.Threshold, (F.threshold, F.threshold_, torch.threshold)),  # type: ignore[attr-defined]
    Kind("glu", nn.GLU, (F.glu,)),
    Kind(
        "softmax",
        nn.Softmax,
        (F.softmax, torch.softmax, torch.special.softmax),
        ("softmax",),
        0.0,
        ("special_softmax",),
    ),
    Kind("softmax", nn.Softmax2d, (), minimum=0.0),
    Kind("softmin", nn.Softmin, (F.softmin,), minimum=0.0),
    Kind(
        "log_softmax",
        nn.LogSoftmax,
        (F.log_softmax, torch.log_softmax, torch.special.log_softmax),
        ("log_softmax",),
        aten=("special_log_softmax",),
    ),
    Kind("logsigmoid", nn.LogSigmoid, (F.logsigmoid,), aten=("log_sigmoid",)),
    Kind("rrelu", nn.RReLU, (F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_)),
    Kind("hardshrink", nn.Hardshrink, (F.hardshrink, torch.hardshrink), ("hardshrink",)),
    Kind("softshrink", nn.Softshrink, (F.softshrink,)),
    Kind("tanhshrink", nn.Tanhshrink, (F.tanhshrink,)),
)

# Recurrent layers: what they give is what their own activations made. An LSTM's and a GRU's lies within (-1, 1), its
# cell state does not.
RECURRENT = (
    Kind("lstm", nn.LSTM, (), aten=("lstm",)),
    Kind("gru", nn.GRU, (), aten=("gru",)),
    Kind("rnn", nn.RNN, (), aten=("rnn_tanh", "rnn_relu")),
    Kind("lstm_cell", nn.LSTMCell, ()),
    Kind("gru_cell", nn.GRUCell, ()),
    Kind("rnn_cell", nn.RNNCell, (), aten=("rnn_tanh_cell", "rnn_relu_cell")),
)

SELF_GATED = Kind("self_gated", nn.Module, ())
"""A product of a value with a gate made from it alone: SiLU, GELU or Mish written out, as in x * sigmoid(1.702 * x)."""

BY_NAME = {kind.name: kind for kind in KINDS}
BY_FUNCTION: dict[object, Kind] = {function: kind for kind in KINDS for function in kind.functions}
BY_METHOD: dict[object, Kind] = {method: kind for kind in KINDS for method in kind.methods}
BY_ATEN = {name: kind for kind in (*KINDS, *RECURRENT) for name in (kind.name, *kind.aten)}
_BY_MODULE = {kind.module: kind for kind in KINDS}


def module_kind(module: nn.Module) -> Kind | None:
    """The kind of activation that a module is, subclasses included, or None."""
    return next((_BY_MODULE[cls] for cls in type(module).__mro__ if cls in _BY_MODULE), None)


def is_known_activation(module: nn.Module) -> bool:
    """Whether a module is an activation and computes just that: nobody gave it another `forward`."""
    kind = module_kind(module)
    return kind is not None and type(module).forward is kind.module.forward and "forward" not in vars(module)
