"""What an activation is: the only file that knows. One row of `KINDS` per kind of activation.

An activation is called in any spelling: a module, a function, a tensor method, an ATen operator of an
exported graph, in place or not, or a clamp at zero under another name.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node

from fitact_fx.nodes import argument, called_module, called_name, inplace_position, operator_name, owning_module

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
    Kind("sigmoid", nn.Sigmoid, _SIGMOIDS, ("sigmoid", "sigmoid_"), minimum=0.0),
    Kind("tanh", nn.Tanh, (F.tanh, torch.tanh, torch.tanh_), ("tanh", "tanh_")),
    Kind("softplus", nn.Softplus, (F.softplus,), minimum=0.0),
    Kind("softsign", nn.Softsign, (F.softsign,)),
    Kind("threshold", nn.Threshold, (F.threshold, F.threshold_, torch.threshold)),  # type: ignore[attr-defined]
    Kind("glu", nn.GLU, (F.glu,)),
    Kind("softmax", nn.Softmax, (F.softmax, torch.softmax, torch.special.softmax), ("softmax",), 0.0, ("_softmax",)),
    Kind("softmax", nn.Softmax2d, (), minimum=0.0),
    Kind("softmin", nn.Softmin, (F.softmin,), minimum=0.0),
    Kind(
        "log_softmax",
        nn.LogSoftmax,
        (F.log_softmax, torch.log_softmax, torch.special.log_softmax),
        ("log_softmax",),
        aten=("_log_softmax",),
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
"""A product of a value with a gate made from it alone: SiLU, GELU or Mish written out, such as x * sigmoid(1.702 * x)."""

_ELEMENTWISE = frozenset(
    "add sub mul div truediv neg pow square exp erf tanh sigmoid softplus relu6 clamp hardtanh".split()
)
_GATES = frozenset("tanh sigmoid softplus relu6 clamp hardtanh hardsigmoid erf".split())

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_MODULE = {kind.module: kind for kind in KINDS}
_BY_FUNCTION: dict[object, Kind] = {function: kind for kind in KINDS for function in kind.functions}
_BY_METHOD: dict[object, Kind] = {method: kind for kind in KINDS for method in kind.methods}
_BY_ATEN = {name: kind for kind in (*KINDS, *RECURRENT) for name in (kind.name, *kind.aten)}
_RECURRENT_MODULE = {kind.module: kind for kind in RECURRENT}
_SEVERAL = frozenset("lstm gru rnn lstm_cell".split())
"""Recurrent kinds that give several tensors: each is an activation where it is taken out."""

_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")
_CLAMP_MINS = (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_")
_MAXIMA = (torch.maximum, torch.max, "maximum", "max")
_ZEROS = (torch.zeros, torch.zeros_like, "zeros", "zeros_like", "new_zeros")


def kind_of(node: Node) -> Kind | None:
    """The kind of activation this node calls, or None."""
    if node.op == "call_module":
        module = called_module(node)
        kind = _RECURRENT_MODULE.get(type(module))
        return module_kind(module) if kind is None else (None if kind.name in _SEVERAL else kind)
    if node.target is operator.getitem:
        return _taken_out(node)
    if isinstance(node.target, OpOverload):
        kind = _BY_ATEN.get(called_name(node).removesuffix("_"))
        return _written_out(node) if kind is None else (None if kind.name in _SEVERAL else kind)
    if node.op == "call_function":
        return _BY_FUNCTION.get(node.target) or _written_out(node)
    if node.op == "call_method":
        return _BY_METHOD.get(node.target) or _written_out(node)
    return None


def recurrent_call(node: Node) -> Node | None:
    """The call of a recurrent layer one of whose tensors this node takes out, or None."""
    source = _source_of_item(node)
    if source is None:
        return None
    kind = _recurrent_kind(source)
    if kind is not None:
        # The state of the module nn.LSTM is a pair of tensors.
        is_pair = kind.name == "lstm" and source.op == "call_module" and node.args[1] == 1
        return source if kind.name in _SEVERAL and not is_pair else None
    call = _source_of_item(source)
    is_state = call is not None and source.args[1] == 1 and call.op == "call_module"
    kind = _recurrent_kind(call) if is_state and call is not None else None
    return call if kind is not None and kind.name == "lstm" else None


def _source_of_item(node: Node) -> Node | None:
    """What this node takes an item by number out of."""
    takes = node.target is operator.getitem and isinstance(node.args[1], int)
    return node.args[0] if takes and isinstance(node.args[0], Node) else None


def state_name(node: Node) -> str:
    """Which of a recurrent layer's tensors this node takes out: "" for its output, else "h_n" or "c_n"."""
    call = recurrent_call(node)
    kind = None if call is None else _recurrent_kind(call)
    assert call is not None  # the node is an activation of such a layer
    assert kind is not None
    place, several = node.args[1], kind.name
    if several == "lstm_cell":
        return "c_n" if place == 1 else ""
    if isinstance(call.target, OpOverload):
        return ("", "h_n", "c_n")[place]  # type: ignore[index]
    if several == "lstm":
        return "" if node.args[0] is call else ("h_n", "c_n")[place]  # type: ignore[index]
    return "h_n" if place == 1 else ""


def _recurrent_kind(call: Node) -> Kind | None:
    if call.op == "call_module":
        return _RECURRENT_MODULE.get(type(called_module(call)))
    kind = _BY_ATEN.get(called_name(call)) if isinstance(call.target, OpOverload) else None
    return kind if kind in RECURRENT else None


def _taken_out(node: Node) -> Kind | None:
    """The kind of one tensor out of a recurrent layer's result; the state of an LSTM is a pair, and none."""
    call = recurrent_call(node)
    return None if call is None else _recurrent_kind(call)


def module_kind(module: nn.Module) -> Kind | None:
    """The kind of activation that a module is, subclasses included, or None."""
    return next((_BY_MODULE[cls] for cls in type(module).__mro__ if cls in _BY_MODULE), None)


def is_known_activation(module: nn.Module) -> bool:
    """Whether a module is an activation and computes just that: nobody gave it another `forward`."""
    kind = module_kind(module)
    return kind is not None and type(module).forward is kind.module.forward and "forward" not in vars(module)


def out_of_place(node: Node) -> None:
    """Let this call leave its input alone; who reads that input afterwards is the caller's to mend."""
    name = called_name(node)
    if node.op == "call_module":
        called_module(node).inplace = False  # type: ignore[assignment]
    elif not name.endswith("_"):
        node.args = node.args[: inplace_position(node)]
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    elif isinstance(node.target, OpOverload):
        _, _, overload = node.target.name().partition(".")
        node.target = getattr(getattr(torch.ops.aten, name.rstrip("_")), overload or "default")
    elif node.target in _BY_FUNCTION:
        node.target = _BY_FUNCTION[node.target].functions[0]
    else:
        node.target = name.rstrip("_") if node.op == "call_method" else getattr(torch, name.rstrip("_"))


def is_listed(node: Node) -> bool:
    """Whether the call has a row of its own, and is no clamp that amounts to one."""
    if isinstance(node.target, OpOverload):
        return called_name(node).removesuffix("_") in _BY_ATEN
    return node.target in _BY_FUNCTION or node.target in _BY_METHOD


def least_value(node: Node, kind: Kind) -> float:
    """The kind's least value, unless a subclass, a hook or a changed buffer may give another one."""
    if node.op == "call_module":
        module = called_module(node)
        return kind.minimum if is_known_activation(module) and not module._forward_hooks else FREE
    saved = owning_module(node).state_dict().keys()
    loaded = any(each.op == "get_attr" and each.target in saved for each in node.all_input_nodes)
    return FREE if loaded and kind.name == "relu" else kind.minimum


def _written_out(node: Node) -> Kind | None:
    """An activation that is spelled with other operators."""
    return SELF_GATED if _is_self_gated(node) else _clamp_kind(node)


def _is_self_gated(node: Node) -> bool:
    if operator_name(node) not in ("mul", "imul"):
        return False
    operands = [each for each in node.args[:2] if isinstance(each, Node)]
    if len(operands) < 2:
        return False
    sources = {each for operand in operands for each in (operand, *operand.all_input_nodes[:1])}
    for source in sources:
        seen = [_made_from(operand, source) for operand in operands]
        if None not in seen and any(names & _GATES for names in seen if names is not None):
            return True
    return False


def _made_from(node: Node, source: Node) -> frozenset[str] | None:
    """The elementwise operators that make this value from `source` and constants alone; None if others do."""
    if node is source:
        return frozenset()
    if node.op == "get_attr":
        return frozenset()
    name = operator_name(node)
    if not node.op.startswith("call_") or name not in _ELEMENTWISE | _GATES:
        return None
    inside = [_made_from(each, source) for each in node.all_input_nodes]
    return None if None in inside or not inside else frozenset((name,)).union(*filter(None, inside))


def _clamp_kind(node: Node) -> Kind | None:
    """An activation written as a clamp: clamp(min=0), clamp_min(x, 0), maximum(x, zeros)."""
    target = called_name(node) if isinstance(node.target, OpOverload) else node.target
    if target in _CLAMPS:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if low == 0 and high is None:
            return _BY_NAME["relu"]
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        return _BY_NAME["relu6" if (low, high) == (0, 6) else "hardtanh"]
    if target in _CLAMP_MINS:
        return _BY_NAME["relu"] if argument(node, 1, "min") == 0 else None
    if target in _MAXIMA:
        operands = (*node.args, *node.kwargs.values())
        # A number here is a dimension: torch.max(x, 0) reduces over dimension 0.
        return _BY_NAME["relu"] if any(_is_zero_tensor(operand) for operand in operands) else None
    return None


def _is_zero_tensor(operand: object) -> bool:
    if not isinstance(operand, Node):
        return False
    if operand.op != "get_attr":
        made = called_name(operand) if isinstance(operand.target, OpOverload) else operand.target
        return made in _ZEROS
    owner, _, name = str(operand.target).rpartition(".")
    tensor = getattr(owning_module(operand).get_submodule(owner), name)
    return isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and not tensor.any()
