"""Front end: a model becomes a graph that does what the model does, or the reason why not is said.

`torch.fx` runs `forward` once with stand-ins and records what it sees. What it does not see would be
frozen: this file detects each such case and honours it or refuses it by name.
"""

import inspect
import math
import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer

from fitact_fx.ambience import RandomStates, autocast_state, random_states_kept
from fitact_fx.bounded import Bounded
from fitact_fx.errors import TracingError
from fitact_fx.modes import ModeConstant, ModesDifferError, merge
from fitact_fx.ownership import owned_copy, skeleton
from fitact_fx.source import describe, is_torch, owner_path, source_line, user_frames

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_SPECIALISED = (type(None), bool, int, float, str)


def trace(model: nn.Module, example_inputs: tuple[Any, ...] | None = None) -> GraphModule:
    """The model as a graph, with the user's source line on every node.

    The result owns its modules and buffers and shares the Parameters with `model`, under the same
    names; it is in the same training mode, and takes the same arguments. An argument whose default
    is None, a flag, a number or a string is fixed to that default; another value raises an error.
    `example_inputs` (a tuple of positional inputs) are not needed by this front end.

    Raises TracingError, with the module and the user's line, for what no graph can express.
    """
    del example_inputs
    _refuse_other_things(model)
    root = owned_copy(model)
    graph, fixed_mode = _graph_for_both_modes(root)
    leaves = {root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    _refuse_hooks(root, leaves)
    return TracedModule.build(root, graph, frozenset(leaves), type(model).__name__, fixed_mode)


class TracedModule(GraphModule):
    """A GraphModule over a model's own tree of names, which knows the modes it stands for."""

    @classmethod
    def build(
        cls, root: nn.Module, graph: Graph, leaves: frozenset[nn.Module], name: str, fixed_mode: "FixedMode | None"
    ) -> "TracedModule":
        """Hang `graph` from the leaves, Parameters and buffers of `root`."""
        bones = skeleton(root, leaves)
        _adopt_tensors(bones, root, graph)
        traced = cls(bones, Graph(), name)
        for child_name, child in bones._modules.items():
            traced.add_module(child_name, child)
        for parameter_name, parameter in bones._parameters.items():
            traced.register_parameter(parameter_name, parameter)
        kept = bones.state_dict().keys()
        for buffer_name, buffer in bones._buffers.items():
            traced.register_buffer(buffer_name, buffer, persistent=buffer_name in kept)
        traced.graph = graph
        traced.meta["fixed_mode"] = fixed_mode
        return traced

    def train(self, mode: bool = True) -> "TracedModule":
        """Do what the model does in that mode; TracingError if it was traced in the other one for good."""
        fixed = self.meta.get("fixed_mode")
        if fixed is not None and fixed.training != mode:
            have, wanted = ("training", "evaluation") if fixed.training else ("evaluation", "training")
            raise TracingError(
                f"this graph was traced in {have} mode and cannot change to {wanted} mode: the model's code "
                f"takes another way there ({fixed.where});\n  call model.{'train' if mode else 'eval'}() on the "
                "original and trace or harden it again"
            )
        return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TracedModule":
        copied: TracedModule = super().__deepcopy__(memo)  # type: ignore[assignment]
        kept = self.state_dict().keys()
        for name, buffer in list(copied._buffers.items()):  # GraphModule's copy makes every buffer persistent
            copied.register_buffer(name, buffer, persistent=name in kept)
        return copied


class FixedMode(NamedTuple):
    """The one mode a graph stands for, and the line from which the other mode goes another way."""

    training: bool
    where: str


def require_default(value: object, default: object, name: str) -> None:
    """Stands in the graph behind an argument that tracing fixed to its default."""
    if value is not default and (isinstance(value, Tensor) or value != default):
        raise TracingError(
            f"argument {name!r} was fixed to its default {default!r} when the model was traced;\n"
            f"  leave it out, or wrap the model in a module whose forward passes the value you want"
        )


def _graph_for_both_modes(root: nn.Module) -> tuple[Graph, FixedMode | None]:
    modes = {module: module.training for module in root.modules()}
    graphs: dict[bool, Graph] = {}
    failures: dict[bool, TracingError] = {}
    with random_states_kept():
        for training in (True, False):
            root.train(training)
            try:
                graphs[training] = _ModelTracer().graph_of(root)
            except TracingError as error:
                failures[training] = error
    for module, mode in modes.items():
        module.training = mode
    if root.training in failures:
        raise failures[root.training]
    try:
        if failures:
            raise ModesDifferError(str(failures[not root.training]).splitlines()[0])
        return merge(root, graphs[True], graphs[False]), None
    except ModesDifferError as difference:
        return graphs[root.training], FixedMode(root.training, difference.where)


class _ModelTracer(Tracer):
    """Records source lines; keeps our own modules whole; watches for what tracing would freeze."""

    def __init__(self) -> None:
        # Shapes of Parameters are constants of a model, so code may branch on them.
        super().__init__(autowrap_modules=(math,), param_shapes_constant=True)
        self.failed_in: str | None = None
        self.specialised: list[tuple[Node, object]] = []
        self.autocast, self.random_states = autocast_state(), RandomStates.now()

    def graph_of(self, root: nn.Module) -> Graph:
        """The graph of `root.forward`, checked; TracingError names the module and the line."""
        versions = {name: buffer._version for name, buffer in root.named_buffers()}
        try:
            graph = self.trace(root)
        except TracingError:
            raise
        except Exception as error:  # user code may raise anything when it meets a stand-in
            raise self._explained(error, root) from error
        for name, buffer in root.named_buffers():
            if buffer._version != versions[name]:
                raise TracingError(
                    f"forward changes the model's own buffer {name!r}, and a graph would lose that;\n"
                    "  compute the value without storing it, or keep that module out of the model you harden"
                )
        self._refuse_other_values(graph)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Bounded | ModeConstant) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is the first to pass here.
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Proxy:
        if kind == "placeholder" and args and isinstance(args[0], _SPECIALISED):
            # A stand-in is never None nor False: `if mask is not None` would be taken for true.
            node = self.create_node(kind, target, args, kwargs, *rest, **named)
            self.specialised.append((node, args[0]))
            return args[0]  # type: ignore[return-value]
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        node.stack_trace = user_frames(inspect.currentframe(), __file__, "_graph_for_both_modes")
        if kind != "placeholder":
            self._refuse_frozen_ambience(node)
        return node

    def _refuse_frozen_ambience(self, node: Node) -> None:
        """The code before this node must not have entered an autocast region nor drawn a random number."""
        if autocast_state() != self.autocast:
            raise _frozen(node, "runs inside an autocast region of its own", "open autocast around the model's call")
        if RandomStates.now() != self.random_states:
            raise _frozen(
                node,
                "draws random numbers that do not depend on its inputs (at this line or before it)",
                "draw them with a module such as nn.Dropout, with torch.rand_like, or pass them in as an argument",
            )

    def _refuse_other_values(self, graph: Graph) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        if not self.specialised:
            return
        with graph.inserting_after(placeholders[-1]):
            for node, default in reversed(self.specialised):
                graph.call_function(require_default, (node, default, str(node.target)))  # type: ignore[arg-type]

    def _explained(self, error: Exception, root: nn.Module) -> TracingError:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_torch(frame.filename)]
        ours = [frame for frame in frames if frame.filename != __file__]
        where = describe(ours[-1].filename, ours[-1].lineno or 0, ours[-1].name) if ours else "no source line"
        module = f"module {self.failed_in!r}" if self.failed_in else f"the model itself ({type(root).__name__})"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return TracingError(
            f"cannot trace {module} ({where})\n  {reason};\n"
            "  decide on shapes and options in __init__ and not on tensor values in forward, or move that "
            'line into a function marked with torch.fx.wrap("name")'
        )


def _frozen(node: Node, what: str, remedy: str) -> TracingError:
    owner = owner_path(node) or "the model itself"
    return TracingError(f"{owner} ({source_line(node)})\n  {what}, which a graph would freeze;\n  {remedy}")


def _adopt_tensors(bones: nn.Module, root: nn.Module, graph: Graph) -> None:
    """Tensors that the graph reads but no module registered: constants made in forward, plain attributes."""
    for node in graph.nodes:
        owner_path, _, name = str(node.target).rpartition(".")
        if node.op != "get_attr" or hasattr(bones.get_submodule(owner_path), name):
            continue
        value = getattr(root.get_submodule(owner_path), name)
        if isinstance(value, Tensor):
            bones.get_submodule(owner_path).register_buffer(name, value.detach(), persistent=False)
        else:
            setattr(bones.get_submodule(owner_path), name, value)


def _refuse_other_things(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TracingError(f"expected an nn.Module, got {type(model).__name__};\n  pass the model object itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TracingError("a ScriptModule has no Python code left to trace;\n  pass the model it was scripted from")
    if hasattr(model, "_orig_mod"):
        raise TracingError("this model is compiled already;\n  pass the original model, and compile the result")
    if "forward" in vars(model):
        raise TracingError(
            f"the forward of this {type(model).__name__} was replaced on the object, where tracing does not look;\n"
            "  put the replacement in a subclass or in a wrapping module"
        )


def _refuse_hooks(root: nn.Module, leaves: set[nn.Module]) -> None:
    inside = {module for leaf in leaves for module in leaf.modules()}
    for name, module in root.named_modules():
        if module in inside:
            continue  # a leaf is called as it is, hooks and all
        for table in _HOOKS:
            for hook in getattr(module, table).values():
                where = name or f"the model itself ({type(root).__name__})"
                called = getattr(hook, "__qualname__", repr(hook))
                line = inspect.getsourcefile(hook) if inspect.isfunction(hook) else ""
                place = f" ({line}:{hook.__code__.co_firstlineno})" if line else ""
                raise TracingError(
                    f"{where} has a hook, {called}{place}, which tracing would run once and forget;\n"
                    "  remove it (handle.remove()) before hardening, and register it on the hardened model"
                )
