"""Every value of a graph has a name that a user can write.

An activation is called as its module is, `layer1.0.relu`, or by what is called and where: `layer1.0.gelu`,
`layer1.0.gelu_1` for the second one. Any other value is called by what makes it in the same way:
`layer1.0.conv1`, `layer1.0.add`; an input of the network by the name of the argument. Activations come first:
their names do not depend on what else is in the graph.
"""

import operator

from torch import nn
from torch.fx import GraphModule, Node

from fitact_fx.bounded import Bounded
from fitact_fx.guards import InputGuards
from fitact_fx.injected import Injected
from fitact_fx.kinds import Kind
from fitact_fx.modes import ModeConstant
from fitact_fx.nodes import called_module, called_name, free_name, is_attention, is_stored
from fitact_fx.parameter_limits import Limits
from fitact_fx.recurrence import recurrent_call, state_name
from fitact_fx.signature import CHECKS, require_default, require_same
from fitact_fx.source import owner_path
from fitact_fx.spellings import is_listed, kind_of
from fitact_fx.traced import joined, nodes_in_call_order
from fitact_fx.unseen import UnseenCode

# What gives a size, a flag, several tensors or nothing. What else gives no tensor shows when the model runs.
_NO_TENSORS = frozenset(
    "size stride new_empty_strided dim ndim numel shape getattr item tolist len is assert sym_size "
    "chunk split tensor_split unbind eq".split()
)
_NO_VALUES = (Bounded, Injected, Limits, ModeConstant, UnseenCode, InputGuards)
# Modules that give several tensors, each of which is taken out at once.
_SEVERAL = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


def activation_names(graph_module: GraphModule) -> dict[Node, str]:
    """Every activation of the graph and its parts, bounded or not, with its name, in call order."""
    bases = {}
    for path, node in nodes_in_call_order(graph_module):
        kind = kind_of(node)
        if kind is not None:
            bases[node] = joined(path, _activation_base(node, kind)) or kind.name
    reserved, taken = frozenset(bases.values()), set[str]()
    names = {}
    for node, base in bases.items():
        names[node] = free_name(base, taken, reserved)
        taken.add(names[node])
    return names


def value_names(graph_module: GraphModule) -> dict[Node, str]:
    """Every value of the graph and its parts that may be a tensor, with its name, in call order."""
    activations = activation_names(graph_module)
    taken = set(activations.values())
    names: dict[Node, str] = {}
    for path, node in nodes_in_call_order(graph_module):
        if node not in activations:
            base = _value_base(node)
            if base is None or _is_of_numbers(node, names) or (path and node.op == "placeholder"):
                continue
            names[node] = free_name(joined(path, base), taken)
            taken.add(names[node])
        else:
            names[node] = activations[node]
    return names


def _activation_base(node: Node, kind: Kind) -> str:
    """`features.3` for a module; `block.relu` for a function or method called in `block`."""
    if node.op == "call_module":
        return str(node.target)
    call = recurrent_call(node)
    if call is not None:
        owner = str(call.target) if call.op == "call_module" else _leaf(call) or joined(owner_path(call), kind.name)
        return joined(owner, state_name(node))
    listed = is_listed(node, kind)
    leaf = _leaf(node)
    if leaf is not None:
        return leaf
    called = called_name(node).strip("_")
    return joined(owner_path(node), kind.name if listed else called)


def _leaf(node: Node) -> str | None:
    """The path of the one module that this operator of an exported graph, or of a module by itself, stands for."""
    return node.meta.get("leaf")


def _value_base(node: Node) -> str | None:
    """What a user would call this node's value; None for what is no value to inject into or to bound."""
    if node.op == "placeholder":
        fixed = any(user.target in (require_default, require_same) for user in node.users)
        return None if fixed else str(node.target)
    if node.op == "call_module":
        return None if isinstance(called_module(node), (*_NO_VALUES, *_SEVERAL)) else str(node.target)
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, Node) and source.op == "call_module" and isinstance(called_module(source), _SEVERAL):
        # Attention gives attended values and weights; the state of an LSTM is a pair of tensors.
        of_attention = str(source.target) if node.args[1] == 0 else f"{source.target}.weights"
        return of_attention if is_attention(source) else None
    name = called_name(node).strip("_")
    makes_container = isinstance(node.target, type)  # a dataclass or a dict to be returned
    if not node.op.startswith("call_") or makes_container or node.target in CHECKS or name in _NO_TENSORS:
        return None
    given = node.args[0] if name == "contiguous" else None
    if isinstance(given, Node) and given.op == "placeholder":
        return None  # the argument, laid out densely
    leaf = _leaf(node)
    return joined(owner_path(node), name) if leaf is None else leaf


def _is_of_numbers(node: Node, names: dict[Node, str]) -> bool:
    """Arithmetic on sizes, and a size out of a shape."""
    arithmetic = getattr(node.target, "__module__", "") == "_operator"
    values = ("call_module", "placeholder")
    computed = (each for each in node.all_input_nodes if not is_stored(each))
    return arithmetic and not any(each in names or each.op in values for each in computed)
