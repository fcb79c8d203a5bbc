"""Let every parameter pass its limits before it is used.

y = conv1(x)                      weight = limits.conv1.weight(conv1.weight)
z = linear(y, self.head)    ->    y = conv1(x, guarded_parameters={"weight": weight})
                                  head = limits.head(self.head)
                                  z = linear(y, head)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter as Argument
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fitact_fx.aliasing import is_overwritten
from fitact_fx.errors import RecipeError, SiteError, known
from fitact_fx.guarded import GUARDED, Exchange, limits_of
from fitact_fx.nodes import argument, called_module, free_name, operator_name
from fitact_fx.parameter_limits import Limits
from fitact_fx.traced import TracedModule, joined, parts
from fitact_fx.unseen import UnseenCode

GRANULARITIES = ("channel", "tensor")
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_META = ("stack_trace", "nn_module_stack")


@dataclass(frozen=True)
class Guard:
    """Puts limits behind every parameter that a graph reads or a called module holds: its range as it is now.

    `limits`: "channel" for a range per output channel (each index of dimension 0, or 1 for a transposed convolution;
    a tensor with fewer than two dimensions has one range), or "tensor" for one range per tensor. Each tensor is
    checked once per run of a graph, however often it is used there. Returns the names of the parameters.
    `unguarded` tells beforehand which are left out.

    `known`: name of a parameter -> limits (2, ranges) and their dimension, taken in the place of ranges as they are.

    RecipeError for another `limits`, and for a parameter that is not in `known`. SiteError for a graph that is guarded
    already, that has nothing to guard, or whose parameters hold NaN or infinity, or no numbers yet.
    """

    limits: str = "channel"
    known: Mapping[str, tuple[Tensor, int | None]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.limits not in GRANULARITIES:
            raise RecipeError(known("limits", self.limits, GRANULARITIES))

    def __call__(self, graph_module: GraphModule) -> tuple[str, ...]:
        refuse_unguardable(graph_module, filled=self.known is None)
        names: dict[str, None] = {}
        for path, part in _graphs(graph_module).items():
            names |= dict.fromkeys(_Guarding(path, part, self).run())
        if not names:
            raise SiteError("this model has no parameter to guard;\n  `named_parameters` lists what a model has")
        return tuple(names)


def refuse_unguardable(graph_module: GraphModule, *, filled: bool = True) -> None:
    """SiteError for a model that is guarded already, and for parameters it uses without a clean range, if `filled`."""
    if limits_of(graph_module):
        raise SiteError("this model is guarded already;\n  guard the original model instead")
    for use in (use for path, part in _graphs(graph_module).items() for use in _uses(path, part)):
        name, parameter = use.name, use.parameter
        lazy = bool(is_lazy(parameter))
        if lazy or parameter.is_meta:
            what = "has no shape yet" if lazy else "is on the meta device and holds no numbers"
            remedy = "run the model once" if lazy else "move the model to a real device"
            raise SiteError(f"parameter {name} {what}, so its range is not known;\n  {remedy} before guarding it")
        if filled and use.obstacle is None and not bool(parameter.detach().isfinite().all()):
            raise SiteError(_broken(name, parameter.detach()))


def _broken(name: str, values: Tensor) -> str:
    wrong = (~values.isfinite()).nonzero()
    index = tuple(wrong[0].tolist())
    more = f", and {len(wrong) - 1} more of its elements are no finite numbers" if len(wrong) > 1 else ""
    remedy = "load clean weights first: the range of a faulty tensor protects nothing"
    return f"parameter {name} holds {float(values[index])} at {list(index)}{more};\n  {remedy}"


def unguarded(graph_module: GraphModule) -> dict[str, str]:
    """Name of a parameter that the graph uses and that cannot be guarded there -> why."""
    return {
        use.name: why
        for path, part in _graphs(graph_module).items()
        for use in _uses(path, part)
        if (why := use.obstacle) is not None
    }


class _Use(NamedTuple):
    """A parameter that one node of a graph reads: `target` is its name in that graph, `inside` in the called module."""

    name: str
    target: str
    inside: str | None
    node: Node
    parameter: nn.Parameter
    obstacle: str | None


def _graphs(graph_module: GraphModule) -> Mapping[str, GraphModule]:
    return {"": graph_module, **parts(graph_module)}


def _uses(path: str, part: GraphModule) -> Iterator[_Use]:
    """Every use of a parameter in this graph, in its order."""
    for node in part.graph.nodes:
        if node.op == "get_attr":
            yield from _read(path, part, node)
        elif node.op == "call_module":
            yield from _held(path, node)


def _read(path: str, part: GraphModule, node: Node) -> Iterator[_Use]:
    owner, _, last = str(node.target).rpartition(".")
    parameter = part.get_submodule(owner)._parameters.get(last)
    if parameter is None:
        return
    why = _obstacle(parameter)
    if is_overwritten(node) or any(_renorms(user) for user in node.users):
        why = "the model writes to it when it runs"
    yield _Use(joined(path, str(node.target)), str(node.target), None, node, parameter, why)


def _renorms(user: Node) -> bool:
    """Whether this call of a function scales rows of an embedding's weight in place."""
    places = {"embedding": 3, "embedding_bag": 4}
    place = places.get(operator_name(user)) if user.op == "call_function" else None
    return place is not None and argument(user, place, "max_norm") is not None


def _held(path: str, node: Node) -> Iterator[_Use]:
    module, at = called_module(node), str(node.target)
    called = _own_call(module)
    if isinstance(module, UnseenCode):
        module, at = module.root, ""
    inner = tuple(f"{name}." for name, each in module.named_modules() if isinstance(each, TracedModule) and name)
    for inside, parameter in module.named_parameters(remove_duplicate=False):
        if inside.startswith(inner):
            continue  # a part guards its own
        owner = module.get_submodule(inside.rpartition(".")[0])
        why = _obstacle(parameter) or called
        if getattr(owner, "max_norm", None) is not None:
            why = f"a {type(owner).__name__} with max_norm writes to it when it runs"
        target = joined(at, inside)
        yield _Use(joined(path, target), target, inside, node, parameter, why)


def _own_call(module: nn.Module) -> str | None:
    """Why a module cannot be given guarded values, None if it can."""
    call = signature(type(module).__call__)
    if any(each.kind is Argument.VAR_KEYWORD for each in call.parameters.values()):
        return None
    return f"{type(module).__name__} has a __call__ of its own, which takes no other values than its arguments"


def _obstacle(parameter: Tensor) -> str | None:
    """Why a tensor cannot be compared with limits, None if it can."""
    wrapped: bool = is_traceable_wrapper_subclass(parameter)
    if parameter.layout != torch.strided or wrapped:
        return f"it is a {type(parameter).__name__} of another layout than a dense tensor"
    if parameter.dtype not in _TYPES:
        return f"it is {str(parameter.dtype).removeprefix('torch.')}, and limits are for floating-point numbers"
    return None


class _Guarding:
    """The guard of one graph: limits for each parameter tensor that it uses, shared by all of its uses."""

    def __init__(self, path: str, part: GraphModule, guard: Guard) -> None:
        self.path, self.part, self.guard = path, part, guard
        self.checked: dict[nn.Parameter, Node] = {}
        self.room = free_name("limits", {*vars(part), *part._modules, *part._parameters, *part._buffers})

    def run(self) -> list[str]:
        every = list(_uses(self.path, self.part))
        kept = {use.parameter for use in every if use.obstacle is not None}
        uses = [use for use in every if use.parameter not in kept]
        dims = {use.parameter: _dimension(use) for use in reversed(uses)}
        by_call: dict[Node, dict[str, Node]] = {}
        names: dict[Node, dict[str, str]] = {}
        for use in uses:
            checked = self._checked(use, dims[use.parameter] if self.guard.limits == "channel" else None)
            if use.inside is None:
                use.node.replace_all_uses_with(checked, delete_user_cb=lambda user: not _is_limits(user))
            else:
                by_call.setdefault(use.node, {})[use.inside] = checked
                names.setdefault(use.node, {})[use.inside] = use.name
        for node, guarded in by_call.items():
            node.kwargs = {**node.kwargs, GUARDED: guarded}
            Exchange.let(called_module(node), names[node])
        if self.checked:
            self.part.get_submodule(self.room).train(self.part.training)
        return list(dict.fromkeys(use.name for use in uses))

    def _checked(self, use: _Use, dim: int | None) -> Node:
        """The node that gives this parameter with nothing outside its limits."""
        if use.parameter not in self.checked:
            target = f"{self.room}.{use.target}"
            self.part.add_submodule(target, self._limits(use, dim))
            graph, read = self.part.graph, use.node
            meta = {key: use.node.meta[key] for key in _META if key in use.node.meta}
            if use.inside is not None:
                with graph.inserting_before(use.node):
                    read = graph.get_attr(use.target)
                read.meta = dict(meta)
            with graph.inserting_after(read):
                self.checked[use.parameter] = graph.call_module(target, (read,))
            self.checked[use.parameter].meta = dict(meta)
        return self.checked[use.parameter]

    def _limits(self, use: _Use, dim: int | None) -> Limits:
        known = self.guard.known
        if known is None:
            return Limits.of(use.name, use.parameter, dim)
        if use.name not in known:
            raise RecipeError(f"the limits of parameter {use.name} are not known;\n  guard the model anew")
        limits, dim = known[use.name]
        # A type that cannot hold every number of the other rounds limits inwards, and cuts off clean extremes.
        if torch.promote_types(limits.dtype, use.parameter.dtype) != limits.dtype:
            raise RecipeError(
                f"the limits of parameter {use.name} are {limits.dtype}, too coarse for a parameter that is "
                f"{use.parameter.dtype} here;\n  load them for model.to({limits.dtype}), or guard the model anew"
            )
        return Limits.known(use.name, use.parameter, limits, dim)


def _is_limits(user: Node) -> bool:
    return user.op == "call_module" and isinstance(called_module(user), Limits)


def _dimension(use: _Use) -> int | None:
    """Where this parameter has its output channels; None if it has no channels."""
    if use.parameter.ndim < 2:
        return None
    if use.inside is None:
        return 1 if any(_is_transposed(user) for user in use.node.users) else 0
    owner, _, last = use.inside.rpartition(".")
    module = called_module(use.node)
    holder = (module.root if isinstance(module, UnseenCode) else module).get_submodule(owner)
    return 1 if isinstance(holder, _TRANSPOSED) and last.startswith("weight") else 0


def _is_transposed(user: Node) -> bool:
    name = operator_name(user)
    return name.startswith("conv_transpose") or (name == "convolution" and argument(user, 6, "transposed") is True)


__all__ = ["Guard", "refuse_unguardable", "unguarded"]
