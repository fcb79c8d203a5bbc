"""How an activation is spelled in a graph: a module, a function, a tensor method, an ATen operator, in place or not.

Some are written with other operators: a clamp at zero is a ReLU, `x * sigmoid(x)` a SiLU.
"""

import operator

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node

from fitact_fx.kinds import (
    BY_ATEN,
    BY_FUNCTION,
    BY_METHOD,
    BY_NAME,
    FREE,
    SELF_GATED,
    Kind,
    is_known_activation,
    module_kind,
)
from fitact_fx.nodes import (
    argument,
    called_module,
    called_name,
    inplace_position,
    is_stored,
    operator_name,
    owning_module,
    stored_at,
)
from fitact_fx.recurrence import gives_one_tensor, kind_taken_out, recurrent_kind

_ELEMENTWISE = frozenset("add sub mul div truediv neg pow square exp".split())
_GATES = frozenset("tanh sigmoid softplus relu6 clamp hardtanh hardsigmoid erf".split())
_OURS = frozenset(("bounded", "injected"))  # what stands behind a gate that is a site itself
_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")
_CLAMP_MINS = (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_")
_MAXIMA = (torch.maximum, torch.max, "maximum", "max")
_ZEROS = (torch.zeros, torch.zeros_like, "zeros", "zeros_like", "new_zeros")
_COPIES = ("lift_fresh_copy", "detach", "detach_", "clone", "alias")


def kind_of(node: Node) -> Kind | None:
    """The kind of activation this node calls, or None."""
    recurrent = recurrent_kind(node)
    if recurrent is not None:
        return recurrent if gives_one_tensor(recurrent) else None
    if node.op == "call_module":
        return module_kind(called_module(node))
    if node.target is operator.getitem:
        return kind_taken_out(node)
    if isinstance(node.target, OpOverload):
        return _of_operator(node)
    if node.op == "call_function":
        return BY_FUNCTION.get(node.target) or _written_out(node)
    if node.op == "call_method":
        return BY_METHOD.get(node.target) or _written_out(node)
    return None


def _of_operator(node: Node) -> Kind | None:
    """The kind of an operator of an exported graph, where some kinds are others with certain arguments."""
    kind = BY_ATEN.get(called_name(node).removesuffix("_"))
    if kind is None:
        return _taken_apart(node) or _written_out(node)
    if kind.name == "hardtanh" and (argument(node, 1, "min_val"), argument(node, 2, "max_val")) == (0, 6):
        return BY_NAME["relu6"]
    source = node.all_input_nodes[0]
    if kind.name == "softmax" and called_name(source) == "neg":
        return BY_NAME["softmin"]
    if kind.name == "tanh" and any(_taken_apart(user) is not None for user in node.users):
        return None  # the inside of a tanhshrink
    return kind


def _taken_apart(node: Node) -> Kind | None:
    """Kinds that torch.export writes with other operators: x - tanh(x), and x / (|x| + 1)."""
    name = called_name(node)
    operands = [each for each in node.args if isinstance(each, Node)]
    if len(operands) != 2 or name not in ("sub", "div"):
        return None
    source, other = operands
    if name == "sub":
        return BY_NAME["tanhshrink"] if called_name(other) == "tanh" and other.args[0] is source else None
    absolute = other.args[0] if called_name(other) == "add" and other.args[1:] == (1,) else None
    is_softsign = isinstance(absolute, Node) and called_name(absolute) == "abs" and absolute.args[0] is source
    return BY_NAME["softsign"] if is_softsign else None


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
    elif node.target in BY_FUNCTION:
        node.target = BY_FUNCTION[node.target].functions[0]
    else:
        node.target = name.rstrip("_") if node.op == "call_method" else getattr(torch, name.rstrip("_"))


def is_listed(node: Node, kind: Kind) -> bool:
    """Whether the call is a spelling of just this kind, and not another operator that amounts to it."""
    if isinstance(node.target, OpOverload):
        return kind is not SELF_GATED and called_name(node) not in (*_CLAMPS, *_CLAMP_MINS, *_MAXIMA)
    return node.target in BY_FUNCTION or node.target in BY_METHOD


def least_value(node: Node, kind: Kind) -> float:
    """The kind's least value, unless a subclass, a hook or a changed buffer may give another one."""
    if kind.name == "softplus" and not _has_positive_beta(node):
        return FREE
    if node.op == "call_module":
        module = called_module(node)
        return kind.minimum if is_known_activation(module) and not module._forward_hooks else FREE
    saved = owning_module(node).state_dict().keys()
    loaded = any(is_stored(each) and stored_at(each) in saved for each in node.all_input_nodes)
    return FREE if loaded and kind.name == "relu" else kind.minimum


def _has_positive_beta(node: Node) -> bool:
    """Whether a softplus is one: with a negative beta it turns over."""
    beta = called_module(node).beta if node.op == "call_module" else argument(node, 1, "beta")
    return beta is None or (isinstance(beta, int | float) and beta > 0)


def _written_out(node: Node) -> Kind | None:
    """An activation that is spelled with other operators."""
    return SELF_GATED if _is_self_gated(node) else _clamp_kind(node)


def _is_self_gated(node: Node) -> bool:
    if operator_name(node) not in ("mul", "imul"):
        return False
    operands = [_written_back_to(each) for each in node.args[:2] if isinstance(each, Node)]
    if len(operands) < 2:
        return False
    sources = {each for operand in operands for each in (operand, *operand.all_input_nodes[:1])}
    for source in sources:
        inside = [_between(operand, source) for operand in operands]
        if all(names is not None for names in inside) and any(_GATES.intersection(names or ()) for names in inside):
            return True
    return False


def _written_back_to(node: Node) -> Node:
    """The value whose copy this is, made by `passes.functionalising` for an operator that used to work in place."""
    while called_name(node) == "copy_" and isinstance(node.args[1], Node):
        node = node.args[1]
    return node


def _between(node: Node, source: Node) -> set[str] | None:
    """The operators that make this value from `source` and constants alone; None if others than elementwise ones do."""
    names: set[str] = set()
    seen, pending = set[Node](), [node]
    while pending:
        each = _written_back_to(pending.pop())
        if each is source:
            seen.add(each)
        if each in seen or is_stored(each):
            continue
        name = operator_name(each)
        if not each.op.startswith("call_") or name not in _ELEMENTWISE | _GATES | _OURS or not each.all_input_nodes:
            return None
        seen.add(each)
        names.add(name)
        pending.extend(each.all_input_nodes)
    return names if source in seen else None


def _clamp_kind(node: Node) -> Kind | None:
    """An activation written as a clamp: clamp(min=0), clamp_min(x, 0), maximum(x, zeros)."""
    target = called_name(node) if isinstance(node.target, OpOverload) else node.target
    if target in _CLAMPS:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if low == 0 and high is None:
            return BY_NAME["relu"]
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        return BY_NAME["relu6" if (low, high) == (0, 6) else "hardtanh"]
    if target in _CLAMP_MINS:
        return BY_NAME["relu"] if argument(node, 1, "min") == 0 else None
    if target in _MAXIMA:
        operands = (*node.args, *node.kwargs.values())
        # A number here is a dimension: torch.max(x, 0) reduces over dimension 0.
        return BY_NAME["relu"] if any(_is_zero_tensor(operand) for operand in operands) else None
    return None


def _is_zero_tensor(operand: object) -> bool:
    if not isinstance(operand, Node):
        return False
    while isinstance(operand.target, OpOverload) and called_name(operand) in _COPIES:
        operand = operand.all_input_nodes[0]  # torch.export copies a constant before it is used
    if operand.op != "get_attr":
        made = called_name(operand) if isinstance(operand.target, OpOverload) else operand.target
        return made in _ZEROS
    owner, _, name = str(operand.target).rpartition(".")
    tensor = getattr(owning_module(operand).get_submodule(owner), name)
    return isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and not tensor.any()
