"""What an activation is: the only file that knows. One row of `KINDS` per kind of activation.

A site is one call of an activation in a graph, in any spelling: a module, a function, a tensor
method, in place or not, or a clamp at zero under another name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fitact_fx.bounded import Bounded
from fitact_fx.injected import Injected
from fitact_fx.nodes import (
    argument,
    called_module,
    called_name,
    free_name,
    inplace_position,
    overwrites_input,
    owning_module,
)
from fitact_fx.source import owner_path, source_line

FREE = -torch.inf


@dataclass(frozen=True)
class Kind:
    """One kind of activation: how it is spelled, and the least value it gives (`FREE`: two-sided).

    The first function is the one that leaves its input alone.
    """

    name: str
    module: type[nn.Module]
    functions: tuple[Callable[..., Tensor], ...]
    methods: tuple[str, ...] = ()
    minimum: float = FREE


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
)

_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_MODULE = {kind.module: kind for kind in KINDS}
_BY_FUNCTION: dict[object, Kind] = {function: kind for kind in KINDS for function in kind.functions}
_BY_METHOD: dict[object, Kind] = {method: kind for kind in KINDS for method in kind.methods}

_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_")
_CLAMP_MINS = (torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_")
_MAXIMA = (torch.maximum, torch.max, "maximum", "max")
_ZEROS = (torch.zeros, torch.zeros_like, "new_zeros")


@dataclass(frozen=True)
class Site:
    """One call of an activation.

    `name` is how users write it: `layer1.0.relu`, and `layer1.0.relu_1` for the second call;
    `module_path` the module whose code makes the call, "" for the root; `source` the user's own
    line; `minimum` the least value the activation gives when nothing is faulty.
    """

    name: str
    kind: str
    module_path: str
    source: str
    inplace: bool
    minimum: float
    node: Node = field(repr=False, compare=False)


def find_sites(graph_module: GraphModule) -> tuple[Site, ...]:
    """Every activation of the graph that does not feed a bound yet, in call order."""
    found = []
    for node, name in activation_names(graph_module).items():
        kind = kind_of(node)
        if kind is not None and not feeds_bound(node):
            minimum = _minimum(node, kind)
            inplace = overwrites_input(node)
            found.append(Site(name, kind.name, owner_path(node), source_line(node), inplace, minimum, node))
    return tuple(found)


def activation_names(graph_module: GraphModule) -> dict[Node, str]:
    """Every activation of the graph, bounded or not, with its name, in call order."""
    kinds = {node: kind for node in graph_module.graph.nodes if (kind := kind_of(node)) is not None}
    bases = {node: _base_name(node, kind) for node, kind in kinds.items()}
    reserved, taken = frozenset(bases.values()), set[str]()
    names = {}
    for node, base in bases.items():
        names[node] = free_name(base, taken, reserved)
        taken.add(names[node])
    return names


def kind_of(node: Node) -> Kind | None:
    """The kind of activation this node calls, or None."""
    if node.op == "call_module":
        return module_kind(called_module(node))
    if node.op == "call_function":
        return _BY_FUNCTION.get(node.target) or _clamp_kind(node)
    if node.op == "call_method":
        return _BY_METHOD.get(node.target) or _clamp_kind(node)
    return None


def module_kind(module: nn.Module) -> Kind | None:
    """The kind of activation that a module is, subclasses included, or None."""
    return next((_BY_MODULE[cls] for cls in type(module).__mro__ if cls in _BY_MODULE), None)


def is_known_activation(module: nn.Module) -> bool:
    """Whether a module is an activation and computes just that: nobody gave it another `forward`."""
    kind = module_kind(module)
    return kind is not None and type(module).forward is kind.module.forward and "forward" not in vars(module)


def feeds_bound(node: Node) -> bool:
    """Whether a bound already stands behind this node, an injection node between them or not."""
    modules = {user: called_module(user) for user in node.users if user.op == "call_module"}
    return any(
        isinstance(module, Bounded) or (isinstance(module, Injected) and feeds_bound(user))
        for user, module in modules.items()
    )


def make_out_of_place(node: Node) -> None:
    """Let this activation leave its input alone; who reads that input afterwards is the caller's to mend."""
    if node.op == "call_module":
        called_module(node).inplace = False  # type: ignore[assignment]
    elif not called_name(node).endswith("_"):
        node.args = node.args[: inplace_position(node)]
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    elif node.target in _BY_FUNCTION:
        node.target = _BY_FUNCTION[node.target].functions[0]
    else:
        name = called_name(node).rstrip("_")
        node.target = name if node.op == "call_method" else getattr(torch, name)


def _base_name(node: Node, kind: Kind) -> str:
    """`features.3` for a module; `block.relu` for a function or method called in `block`."""
    if node.op == "call_module":
        return str(node.target)
    listed = node.target in _BY_FUNCTION or node.target in _BY_METHOD
    called = kind.name if listed else called_name(node).rstrip("_")
    return ".".join(filter(None, (owner_path(node), called)))


def _minimum(node: Node, kind: Kind) -> float:
    """The kind's least value, unless a subclass, a hook or a changed buffer may give another one."""
    if node.op == "call_module":
        module = called_module(node)
        return kind.minimum if is_known_activation(module) and not module._forward_hooks else FREE
    saved = owning_module(node).state_dict().keys()
    loaded = any(each.op == "get_attr" and each.target in saved for each in node.all_input_nodes)
    return FREE if loaded and kind.name == "relu" else kind.minimum


def _clamp_kind(node: Node) -> Kind | None:
    """An activation written as a clamp: clamp(min=0), clamp_min(x, 0), maximum(x, zeros)."""
    if node.target in _CLAMPS:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
        if low == 0 and high is None:
            return _BY_NAME["relu"]
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        return _BY_NAME["relu6" if (low, high) == (0, 6) else "hardtanh"]
    if node.target in _CLAMP_MINS:
        return _BY_NAME["relu"] if argument(node, 1, "min") == 0 else None
    if node.target in _MAXIMA:
        operands = (*node.args, *node.kwargs.values())
        # A number here is a dimension: torch.max(x, 0) reduces over dimension 0.
        return _BY_NAME["relu"] if any(_is_zero_tensor(operand) for operand in operands) else None
    return None


def _is_zero_tensor(operand: object) -> bool:
    if not isinstance(operand, Node):
        return False
    if operand.op != "get_attr":
        return operand.target in _ZEROS
    owner, _, name = str(operand.target).rpartition(".")
    tensor = getattr(owning_module(operand).get_submodule(owner), name)
    return isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and not tensor.any()
