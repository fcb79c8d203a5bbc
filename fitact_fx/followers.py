"""Followers: calls that only pool, reshape or join bounded values, so that the bounds of those hold there too.

Ranger's rules (Chen, Li, Pattabiraman, arXiv 2003.13874): max-pool, average-pool and reshape keep the bounds of
what they get, a concatenation has the least of the lower and the greatest of the upper ones. A mean is an average
pool, whatever it goes over, and `amax` a max-pool. A call is a follower
only if every value it is made of is bounded and nothing is written to any of them later: it must not be able
to leave the range on clean data.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from fitact_fx.aliasing import sharing_memory, written_apart
from fitact_fx.injected import Injected
from fitact_fx.kinds import FREE
from fitact_fx.naming import value_names
from fitact_fx.nodes import argument, called_module, called_name, is_foreign, operator_name, overwrites_input
from fitact_fx.sites import Site, feeds_bound, find_sites
from fitact_fx.source import owner_path, source_line
from fitact_fx.traced import nodes_in_call_order
from fitact_fx.unseen import UnseenCode


@dataclass(frozen=True)
class Follower:
    """What one follower carries: the names of the sites whose bounds hold there, and whether 0 belongs to them."""

    carries: tuple[str, ...]
    includes_zero: bool


def followers(graph_module: GraphModule, sites: Iterable[Site]) -> dict[str, Follower]:
    """Name -> what it carries, for every call that follows these sites (or other followers), in call order.

    Left out: pools that give indices as well, average pools with a divisor of their own, max-pools whose window
    may hold padding alone, modules with hooks, dropout (which scales while training), and what shares memory
    that is written to later.
    """
    names = value_names(graph_module)
    held: dict[Node, tuple[str, ...]] = {site.node: (site.name,) for site in sites}
    found: dict[str, Follower] = {}
    for _, node in nodes_in_call_order(graph_module):
        values = [] if node in held else _values(node)
        if not values or not all(value in held and _is_kept(value) for value in values):
            continue
        carries = tuple(dict.fromkeys(name for value in values for name in held[value]))
        if not is_follower(node):
            held[node] = carries
        elif node in names and not feeds_bound(node) and written_apart(node) is None:
            found[names[node]] = Follower(carries, _pads_with_zero(node))
            held[node] = (names[node],)
    return found


def boundable(graph_module: GraphModule) -> dict[str, Site]:
    """Name -> site, for all that can be bounded by name: sites of every place, and calls that may be followers."""
    names = value_names(graph_module)
    by_node = {site.node: site for site in find_sites(graph_module, lambda site: True)}
    for node, name in names.items():
        if node not in by_node and is_follower(node) and not feeds_bound(node):
            word = operator_name(_called(node))
            by_node[node] = Site(name, word, owner_path(node), source_line(node), False, FREE, frozenset(), node)
    return {name: by_node[node] for node, name in names.items() if node in by_node}


def is_follower(node: Node) -> bool:
    """Whether this call, with these options, gives values within the range of what it gets (and 0, see `Follower`)."""
    called = _called(node)
    if called is node and _is_pair(node):
        return False
    rule = _RULES.get(operator_name(called)) if _is_torchs(called) else None
    return rule is not None and not overwrites_input(called) and rule(called)


def _called(node: Node) -> Node:
    """The pool itself, where an exported graph takes its values from the pair that it gives."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, Node) and _is_pair(source) and node.args[1] == 0 else node


def _is_pair(node: Node) -> bool:
    """Whether this gives maxima and their indices, whatever it is asked for."""
    return isinstance(node.target, OpOverload) and called_name(node) in _PAIRS


def _values(node: Node) -> list[Node]:
    """The inputs whose values this node's value consists of; none where it may hold others."""
    if not is_follower(node) and not (_is_torchs(node) and operator_name(node) in _PASSING):
        return []
    called = _called(node)
    given = argument(called, 0, "tensors" if operator_name(called) in _JOINING else "input")
    given = called.kwargs.get("self") if given is None else given
    values = list(given) if isinstance(given, tuple | list) else [given]
    return [each for each in values if isinstance(each, Node)] if all(isinstance(v, Node) for v in values) else []


def _is_kept(node: Node) -> bool:
    """Whether nothing may write to the memory of this value once it is made."""
    group = sharing_memory(node, next(reversed(node.graph.nodes)), overwrites_input)
    later = ((member, user) for member in group for user in member.users if node < user)
    return not any(_may_write(user, member) for member, user in later)


def _may_write(user: Node, value: Node) -> bool:
    if is_foreign(user) or (user.op == "call_module" and isinstance(called_module(user), UnseenCode)):
        return True
    return overwrites_input(user) and (user.all_input_nodes[0] is value or user.kwargs.get("out") is not None)


def _is_torchs(node: Node) -> bool:
    """Whether this calls torch's own operator, unchanged: no subclass, no hook, no function of the same name."""
    if node.op == "call_module":
        module = called_module(node)
        is_plain = type(module).__module__.startswith("torch.nn.") or type(module) is Injected
        return is_plain and "forward" not in vars(module) and not (module._forward_hooks or module._forward_pre_hooks)
    if isinstance(node.target, OpOverload):
        return node.target.namespace == "aten"
    return node.op == "call_method" or (node.op == "call_function" and node.target in _FUNCTIONS)


# Where torch's functions and operators take each option of a pool, the pooled tensor at 0.
_MAX_POOL = {"padding": 3, "dilation": 4, "return_indices": 6}
_ADAPTIVE_MAX_POOL = {"return_indices": 2}
_AVERAGE_POOL = {"padding": 3, "count_include_pad": 5, "divisor_override": 6}


def _option(node: Node, positions: Mapping[str, int], name: str, default: object) -> object:
    if node.op == "call_module":
        return getattr(called_module(node), name, default)
    given = argument(node, positions[name], name)
    return default if given is None else given


def _is_none(padding: object) -> bool:
    return padding == 0 or (isinstance(padding, tuple | list) and all(each == 0 for each in padding))


def _is_max_pool(node: Node) -> bool:
    """A window that is spread out may lie in the padding alone, whose value is minus infinity."""
    dilation = _option(node, _MAX_POOL, "dilation", 1)
    is_dense = dilation == 1 or (isinstance(dilation, tuple | list) and all(each == 1 for each in dilation))
    no_indices = _option(node, _MAX_POOL, "return_indices", False) is False
    return no_indices and (is_dense or _is_none(_option(node, _MAX_POOL, "padding", 0)))


def _is_adaptive_max_pool(node: Node) -> bool:
    return _option(node, _ADAPTIVE_MAX_POOL, "return_indices", False) is False


def _is_average_pool(node: Node) -> bool:
    return _option(node, _AVERAGE_POOL, "divisor_override", None) is None


def _pads_with_zero(node: Node) -> bool:
    """Whether this is an average pool that counts the zeros it pads with."""
    if _RULES.get(operator_name(node)) is not _is_average_pool:
        return False
    counts = _option(node, _AVERAGE_POOL, "count_include_pad", True) is not False
    return counts and not _is_none(_option(node, _AVERAGE_POOL, "padding", 0))


def _keeps_type(node: Node) -> bool:
    """In a narrower type, the mean of a value within its bound may lie beyond that by more than the bound's slack."""
    return node.kwargs.get("dtype") is None


def _is_reshape(node: Node) -> bool:
    """`view(dtype)` takes the bits for other numbers."""
    if isinstance(node.target, OpOverload) and "dtype" in node.target._overloadname:  # noqa: SLF001  no public name
        return False
    sizes = (*node.args[1:], *node.kwargs.values())
    return not any(
        isinstance(each, torch.dtype) or (isinstance(each, Node) and each.args[1:2] == ("dtype",)) for each in sizes
    )


def _is_any(_: Node) -> bool:
    return True


Rule = Callable[[Node], bool]
_DIMENSIONS = ("1d", "2d", "3d")
_JOINING = ("cat", "concat", "concatenate", "stack")
_RESHAPING = "view reshape flatten unflatten squeeze unsqueeze ravel unsafe_view".split()
_PAIRS = [f"adaptive_max_pool{each}" for each in _DIMENSIONS]
_RULES: dict[str, Rule] = {
    **{f"{name}{each}": _is_max_pool for name in ("maxpool", "max_pool") for each in _DIMENSIONS},
    **{f"{name}{each}": _is_average_pool for name in ("avgpool", "avg_pool") for each in _DIMENSIONS},
    **{
        f"{name}{each}": _is_adaptive_max_pool
        for name in ("adaptivemaxpool", "adaptive_max_pool")
        for each in _DIMENSIONS
    },
    **{f"{name}{each}": _is_any for name in ("adaptiveavgpool", "adaptive_avg_pool") for each in _DIMENSIONS},
    **dict.fromkeys(_RESHAPING, _is_reshape),
    **dict.fromkeys(("amax", "amin", *_JOINING), _is_any),
    "mean": _keeps_type,
}
"""Operator name -> whether a call of it, with the options that it has, stays in the range of what it gets."""

# What only hands on values of its input: it gets no bound, and what follows it may get one.
_PASSING = frozenset(
    "identity injected contiguous clone detach alias permute transpose swapaxes swapdims movedim moveaxis chunk split "
    "tensor_split unbind getitem slice select narrow expand flip roll".split()
)
_NAMES = (*_RULES, *_PASSING)
_FUNCTIONS = frozenset(
    getattr(module, name) for module in (torch, F, operator) for name in _NAMES if hasattr(module, name)
)
