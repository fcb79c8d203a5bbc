"""Where in a graph a fault can be injected: every value has a name that a user can write.

An activation is called as its site is. Any other value is called by what makes it: `layer1.0.conv1` for a
module, `layer1.0.add` for a function called in `layer1.0` (`layer1.0.add_1` for the second one), and an input
of the network by the name of the argument.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch.fx import GraphModule, Node

from fitact_fx.bounded import Bounded
from fitact_fx.errors import FaultError, close_to
from fitact_fx.injected import Injected
from fitact_fx.modes import ModeConstant
from fitact_fx.nodes import called_module, called_name, free_name
from fitact_fx.recording import require_default
from fitact_fx.sites import activation_names
from fitact_fx.source import owner_path

# What gives a size, a flag, several tensors or nothing. What else gives no tensor shows when the model runs.
_NO_TENSORS = frozenset(
    "size stride new_empty_strided dim ndim numel shape getattr item tolist len is assert "
    "chunk split tensor_split unbind".split()
)


def find_points(graph_module: GraphModule) -> dict[str, Node]:
    """Name -> node, of every value of the graph that may be a tensor, in call order."""
    names = activation_names(graph_module)
    taken = set(names.values())
    points: dict[str, Node] = {}
    for node in graph_module.graph.nodes:
        if node not in names:
            base = _base_name(node)
            if base is None or _is_of_numbers(node, points):
                continue
            names[node] = free_name(base, taken)
            taken.add(names[node])
        points[names[node]] = node
    return points


def matching_points(graph_module: GraphModule, globs: Sequence[str]) -> dict[str, Node]:
    """The points that these globs mean, in call order.

    A glob means the activations that it matches, so that "layer1.*" is every activation of layer1; only one that
    matches none means other values: "layer1.0.conv1", "*.add", or the argument "x". FaultError, with names that
    are close, for one that matches nothing.
    """
    points = find_points(graph_module)
    sites = activation_names(graph_module).values()
    chosen: set[str] = set()
    if not globs:
        raise FaultError("`at` names no place to inject;\n  give globs over the names of activations, such as '*'")
    for glob in [globs] if isinstance(globs, str) else globs:
        matched = [name for name in sites if fnmatchcase(name, glob)]
        matched = matched or [name for name in points if fnmatchcase(name, glob)]
        if not matched:
            some = ", ".join((list(sites) or list(points))[:5])
            hint = close_to(glob, points) or f"; there are {some}, ..."
            raise FaultError(f"the pattern {glob!r} matches no value of the model{hint}")
        chosen.update(matched)
    return {name: node for name, node in points.items() if name in chosen}


def _is_of_numbers(node: Node, points: dict[str, Node]) -> bool:
    """Arithmetic on sizes, and a size out of a shape."""
    operands = node.all_input_nodes
    return getattr(node.target, "__module__", "") == "_operator" and not any(
        each in points.values() for each in operands
    )


def _base_name(node: Node) -> str | None:
    """What a user would call this node's value; None for what is no value to inject into."""
    if node.op == "placeholder":
        fixed = any(user.target is require_default for user in node.users)
        return None if fixed else str(node.target)
    if node.op == "call_module":
        return None if isinstance(called_module(node), Bounded | Injected | ModeConstant) else str(node.target)
    name = called_name(node).strip("_")
    if node.op not in ("call_function", "call_method") or node.target is require_default or name in _NO_TENSORS:
        return None
    return ".".join(filter(None, (owner_path(node), name)))
