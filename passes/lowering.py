"""Turn every bounded site into plain operators, and everything else of this library away.

y = relu(x)                      inside = (x >= 0) & (x <= high)
z = layer1.0.relu_bound(y)  ->   z = where(inside, x, 0)
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from fitact_fx.bounded import Bounded
from fitact_fx.errors import SiteError, site_message
from fitact_fx.guarded import GUARDED
from fitact_fx.guards import InputGuards
from fitact_fx.modes import ModeConstant
from fitact_fx.nodes import called_module, is_foreign, overwrites_input, owning_module
from fitact_fx.parameter_limits import Limits
from fitact_fx.plain_calls import plain_call, plain_check
from fitact_fx.policies import FeatureMaps, Policy, Zero, at_dim
from fitact_fx.signature import CHECKS, require_contents, require_default, require_given
from fitact_fx.spellings import kind_of
from fitact_fx.traced import joined, nodes_in_call_order, parts
from fitact_fx.unseen import UnseenCode


class Folded(NamedTuple):
    """A site's bounds as constants of the graph, with the slack already in."""

    lower: Any
    upper: Any
    minimum: float
    low: Any
    high: Any

    def limits(self, dtype: object) -> tuple[Any, Any]:
        """The widened bounds; they were folded for the type of the site's values."""
        return self.low, self.high


@dataclass(frozen=True)
class Lower:
    """Replaces every bound by comparisons with constants, for evaluation mode.

    The constants are the widened bounds of `policies.Bounds.limits`, for values of the type that
    `types` gives a site (autocast makes it another than the bounds' own, which is taken otherwise).
    A ReLU in front of a zeroing bound disappears into it. A policy that looks at feature maps is written for values
    of the rank that `ranks` gives a site, or the graph. Returns the names of the sites; SiteError for a site that is
    not set, and for one whose rank is needed and not known.

    The guard of parameters becomes operators too: the votes over its limits, which stay buffers, and the comparisons.
    Its parameters are named behind the sites.
    """

    types: Mapping[str, torch.dtype] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        sites, guarded = [], _written_out_guard(graph_module)
        for _, node in list(nodes_in_call_order(graph_module)):
            module = called_module(node) if node.op == "call_module" else None
            if isinstance(module, Bounded):
                sites.append(module.site)
                dtype = self.types.get(module.site, module.placement.dtype)
                policy = _of_rank(module, self.ranks.get(module.site))
                _replace(node, _lowered(owning_module(node), node, module, policy, dtype))
            elif isinstance(module, InputGuards):
                owning_module(node).add_module(str(node.target), module.guards)
            elif isinstance(module, ModeConstant):
                _replace(node, module.evaluation_value)
            elif node.target in CHECKS:
                _plain_check(node)
        if not sites and not guarded:
            raise SiteError(
                "this graph has no bounded site and no guard to lower;\n  lower what fitact_fx.harden or guard returned"
            )
        for each in {graph_module, *parts(graph_module).values()}:
            each.graph.eliminate_dead_code(_has_effects)
        if not parts(graph_module).keys() - {""}:
            _drop_unused(graph_module)
        return (*sites, *guarded)


def _drop_unused(graph_module: GraphModule) -> None:
    """Take away the modules that the graph does not use. One that it reads whole is used with all that is in it."""
    used: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        steps = str(node.target).split(".")
        used.update(".".join(steps[:count]) for count in range(1, len(steps) + 1))
        held = operator.attrgetter(node.target)(graph_module)
        if isinstance(held, nn.Module):
            used.update(joined(str(node.target), name) for name, _ in held.named_modules())
    for name in [name for name, _ in graph_module.named_modules() if name and name not in used]:
        graph_module.delete_submodule(name)


def _written_out_guard(graph_module: GraphModule) -> tuple[str, ...]:
    """Let every check of a parameter, and every call that takes guarded ones, be plain operators; the parameters."""
    names = []
    for _, node in list(nodes_in_call_order(graph_module)):
        module = called_module(node) if node.op == "call_module" else None
        if isinstance(module, Limits):
            names.append(module.parameter_name)
            _replace(node, plain_check(node, module))
        elif GUARDED in node.kwargs and not isinstance(module, UnseenCode):
            _replace(node, plain_call(node))
    return tuple(dict.fromkeys(names))


def _has_effects(node: Node) -> bool:
    """A write into memory that others read is not dead, even if nobody reads its own result; nor is a user's code."""
    unseen = is_foreign(node) or (node.op == "call_module" and bool(parts(called_module(node))))
    return unseen or node.target is functional_call or node.is_impure() or overwrites_input(node)


def refuse_unset(bounded: Bounded) -> None:
    """SiteError for a site whose bounds are not set."""
    if not bounded.is_set:
        problem, remedy = "its bounds are not set", "run fitact_fx.calibrate or set_bounds before lowering"
        raise SiteError(site_message(bounded.site, bounded.source, problem, remedy))


def _of_rank(bounded: Bounded, seen: int | None) -> Policy:
    """The site's policy, for values of the rank that was seen; a proxy of them could not say it."""
    policy = bounded.policy
    if not isinstance(policy, FeatureMaps) or policy.rank is not None:
        return policy
    if seen is None:
        problem = f"the rank of its values is not known, and policy {policy.name!r} needs it"
        raise SiteError(site_message(bounded.site, bounded.source, problem, "use fitact_fx.lower, with example inputs"))
    return at_dim(policy, policy.dim, seen)


def _lowered(graph_module: GraphModule, node: Node, bounded: Bounded, policy: Policy, dtype: torch.dtype) -> Node:
    refuse_unset(bounded)
    source: Any = node.args[0]
    if not dtype.is_floating_point:
        return source  # type: ignore[no-any-return]  # whole numbers pass, as in Bounded.forward
    low, high = (limit.detach() for limit in bounded.bounds.limits(dtype))
    if isinstance(policy, Zero) and bool((low == 0).all()) and _is_plain_relu(source, bounded):
        source = source.all_input_nodes[0]
    with graph_module.graph.inserting_before(node):
        tracer = GraphAppendingTracer(graph_module.graph)

        def constant(side: str, value: Tensor | None) -> Proxy | None:
            if value is None:
                return None
            name = f"{node.target}_{side}"
            owner, _, last = name.rpartition(".")
            graph_module.get_submodule(owner).register_buffer(last, value.clone())
            return Proxy(graph_module.graph.get_attr(name), tracer)

        folded = Folded(
            constant("lower", bounded.lower),
            constant("upper", bounded.upper),
            bounded.minimum,
            constant("low", low),
            constant("high", high),
        )
        result = policy(Proxy(source, tracer), folded)  # type: ignore[arg-type]
        if low.ndim or high.ndim:
            _assert_same_shape(result.node, source, bounded)  # type: ignore[attr-defined]
        if isinstance(policy, FeatureMaps):
            _assert_rank(source, policy.rank, bounded)
    return result.node  # type: ignore[attr-defined,no-any-return]


def _assert_same_shape(result: Node, source: Any, bounded: Bounded) -> None:
    """Activations of size 1 in some dimension would silently be spread over bounds of another size."""
    graph = result.graph
    shapes = tuple(graph.call_function(getattr, (each, "shape")) for each in (result, source))
    message = f"site {bounded.site} ({bounded.source}) gets activations of another shape than its bounds are for"
    graph.call_function(torch._assert, (graph.call_function(operator.eq, shapes), message))  # noqa: SLF001  as below


def _assert_rank(source: Any, rank: int | None, bounded: Bounded) -> None:
    """In activations of another rank the feature maps lie elsewhere."""
    graph = source.graph
    same = graph.call_function(operator.eq, (graph.call_function(getattr, (source, "ndim")), rank))
    message = f"site {bounded.site} ({bounded.source}) gets activations of another rank than it was lowered for"
    graph.call_function(torch._assert, (same, message))  # noqa: SLF001  as below


def _is_plain_relu(source: Any, bounded: Bounded) -> bool:
    """A ReLU of one input that only this bound reads, with no hook or subclass to honour (its least value is known)."""
    kind = kind_of(source)
    if kind is None or kind.name != "relu" or bounded.minimum != 0 or len(source.users) > 1:
        return False
    # torch.maximum(x, zeros) has two inputs and may broadcast.
    return len(source.all_input_nodes) == 1 and not (source.op == "call_module" and _has_hooks(called_module(source)))


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _replace(node: Node, by: Any) -> None:
    if isinstance(by, Node):
        by.meta |= node.meta  # and keeps what it says of itself
        node.replace_all_uses_with(by)
    else:
        for user in list(node.users):
            user.args = torch.fx.node.map_arg(user.args, lambda each: by if each is node else each)
            user.kwargs = torch.fx.node.map_arg(user.kwargs, lambda each: by if each is node else each)
    node.graph.erase_node(node)


def _plain_check(node: Node) -> None:
    value, default, name = node.args
    with node.graph.inserting_before(node):
        compare = operator.is_ if default is None else operator.eq
        if node.target is require_given:
            compare = operator.is_not
        if node.target is require_contents:
            value = node.graph.call_function(list if isinstance(default, list) else len, (value,))
        same = node.graph.call_function(compare, (value, default))
        what = "its default " if node.target is require_default else ""
        message = f"argument {name!r} was fixed to {what}{default!r} when the model was traced"
        node.graph.call_function(torch._assert, (same, message))  # noqa: SLF001  torch.fx's own name for it
    node.graph.erase_node(node)
