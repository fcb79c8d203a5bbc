"""Runs a model's `forward` once on stand-ins, and watches for what a graph would freeze."""

import dataclasses
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer

from fitact_fx import refusals
from fitact_fx.ambience import RandomStates, autocast_state
from fitact_fx.bounded import Bounded
from fitact_fx.errors import TracingError
from fitact_fx.frontends import attention, proxies
from fitact_fx.frontends.proxies import KnownTensor, StandIn, taken_for_what_they_stand_for
from fitact_fx.frontends.uses import questions
from fitact_fx.injected import Injected
from fitact_fx.kinds import is_known_activation, module_kind
from fitact_fx.modes import ModeConstant
from fitact_fx.parameter_limits import Limits
from fitact_fx.signature import CONSTANTS, require_default, require_given, require_same
from fitact_fx.source import user_frames

_OWN_FILES = frozenset((__file__, proxies.__file__, attention.__file__))
_WHOLE = (Bounded, Injected, Limits, ModeConstant, attention.SlowAttention)


def recorded(root: nn.Module, unseen: frozenset[str], given: Mapping[str, Any]) -> Graph:
    """The graph of `root.forward` in the modes that its modules are in; TracingError names the module and line.

    Modules at the paths `unseen` are called whole; `given` are arguments as in an example: constants among them
    are fixed to what they are there. Constants made in forward are left on `root` under names of their own.
    """
    return _ModelTracer(unseen, given).graph_of(root)


class _ModelTracer(Tracer):
    """Records source lines; keeps our own modules whole; buffers are read when the graph runs, like Parameters."""

    proxy_buffer_attributes = True

    def __init__(self, unseen: frozenset[str], given: Mapping[str, Any]) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=attention.ON_SEQUENCES)
        self.unseen, self.given = unseen, given
        self.failed_in: str | None = None
        self.checks: list[tuple[Node, Any, Callable[..., None]]] = []
        self.unpacked: list[Node] = []
        self.constants: list[tuple[Node, Tensor, int]] = []
        self.autocast, self.random_states = autocast_state(), RandomStates.now()

    def graph_of(self, root: nn.Module) -> Graph:
        before = {name: (buffer, _version(buffer)) for name, buffer in root.named_buffers()}
        try:
            with taken_for_what_they_stand_for(_OWN_FILES), attention.recorded_along_the_slow_path():
                graph = self.trace(root)
        except TracingError as error:
            error.module = error.module or self.failed_in or ""
            raise
        except Exception as error:  # user code may raise anything when it meets a stand-in
            module = f"module {self.failed_in!r}" if self.failed_in else f"the model itself ({type(root).__name__})"
            raise refusals.untraceable(error, module, self.failed_in or "", _OWN_FILES) from error
        after = dict(root.named_buffers())
        for name, (buffer, version) in before.items():
            if after.pop(name, None) is not buffer or _version(buffer) != version:
                raise refusals.changed_buffer(name)
        for name in after:  # registered in forward
            raise refusals.changed_buffer(name)
        for node, tensor, version in self.constants:
            if _version(tensor) != version:
                raise refusals.changed_constant(node)
        self._refuse_other_values(graph)
        self._tidy(graph)
        return graph

    def _tidy(self, graph: Graph) -> None:
        for node in reversed(self.unpacked):
            if not node.users:
                graph.erase_node(node)
        for node in graph.nodes:
            if node.target in attention.ON_SEQUENCES:
                # Or the code of the graph would wrap them for good, under a name that it does not have.
                node.meta.pop("is_wrapped", None)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.unseen or isinstance(m, _WHOLE) or is_known_activation(m):
            return True
        if isinstance(m, attention.LAYERS):
            return False
        # An activation with a forward of its own may do anything: what it calls is recorded instead.
        return super().is_leaf_module(m, module_qualified_name) and module_kind(m) is None

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, path):
                refusals.refuse_hooks(path, m)
            result = super().call_module(m, forward, args, kwargs)
            weights = args[4] if len(args) > 4 else kwargs.get("need_weights")
            return self._unpacked(m, result, gives_weights=weights is not False)
        except Exception:  # whatever it is, it goes on: only where it came from is noted
            # The innermost module is the first to pass here.
            self.failed_in = self.failed_in or path
            raise

    def _unpacked(self, module: nn.Module, result: Any, *, gives_weights: bool) -> Any:
        """The tensors that a recurrent layer or attention gives, each a node: a bound can stand behind each."""
        is_torchs_own = type(module).__module__.startswith("torch.nn.") or isinstance(module, attention.SlowAttention)
        if not isinstance(result, Proxy) or not is_torchs_own:  # a subclass may give something else
            return result
        if isinstance(module, nn.MultiheadAttention) and not gives_weights:
            return self._item(result, 0), None
        if isinstance(module, nn.LSTM):
            output, state = self._item(result, 0), self._item(result, 1)
            return output, (self._item(state, 0), self._item(state, 1))
        if isinstance(module, nn.RNNBase | nn.LSTMCell | nn.MultiheadAttention):
            return self._item(result, 0), self._item(result, 1)
        return result

    def _item(self, several: Any, place: int) -> Any:
        item = several[place]
        self.unpacked.append(item.node)
        return item

    def proxy(self, node: Node) -> StandIn:
        value = _tensor_at(self.root, str(node.target)) if node.op == "get_attr" else None
        return StandIn(node, self) if value is None else KnownTensor(node, self, value)

    def create_arg(self, a: Any) -> Any:
        cls: Any = type(a)
        if dataclasses.is_dataclass(cls):  # torch.fx makes a plain dict of one that is a dict, and fills every field
            filled = [each.name for each in dataclasses.fields(cls) if each.init]
            fields = {name: self.create_arg(getattr(a, name)) for name in filled}
            return self.create_node("call_function", cls, (), fields)
        if issubclass(cls, OrderedDict):
            return self.create_node(
                "call_function", cls, ([(key, self.create_arg(each)) for key, each in a.items()],), {}
            )
        made = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(made, Node):
            self.constants.append((made, a, _version(a)))
        return made

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Proxy:
        if kind != "placeholder":
            return super().create_proxy(kind, target, args, kwargs, *rest, **named)
        # A stand-in is never None nor False: `if mask is not None` would be taken for true.
        value, check = self._fixed(str(target), args)
        if check is None:
            return super().create_proxy(kind, target, args, kwargs, *rest, **named)
        node = self.create_node(kind, target, args, kwargs, *rest, **named)
        self.checks.append((node, value, check))
        return value  # type: ignore[no-any-return]

    def _fixed(self, name: str, default: tuple[Any, ...]) -> tuple[Any, Callable[..., None] | None]:
        """What an argument is fixed to, and how that is checked when the graph runs; no check if it is not fixed."""
        if name in self.given:
            value = self.given[name]
            is_default = bool(default) and value is default[0]
            return (value, require_default if is_default else require_same) if _is_constant(value) else (None, None)
        # Masks of torch's own layers may be given or not when the graph runs.
        chosen_later = isinstance(self.root, attention.LAYERS)
        return (
            (default[0], require_default) if default and _is_constant(default[0]) and not chosen_later else (None, None)
        )

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        node.stack_trace = user_frames(inspect.currentframe(), _OWN_FILES, recorded.__name__)
        if kind != "placeholder":
            # The code before this node must not have entered an autocast region nor drawn a random number.
            if autocast_state() != self.autocast:
                raise refusals.frozen_autocast(node)
            if RandomStates.now() != self.random_states:
                raise refusals.frozen_random(node)
        return node

    def _refuse_other_values(self, graph: Graph) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        if not placeholders:
            return
        asked = {} if isinstance(self.root, attention.LAYERS) else questions(self.root) or {}
        fixed = {node for node, _, _ in self.checks}
        given = [(node, None, require_given) for node in placeholders if node.target in asked and node not in fixed]
        with graph.inserting_after(placeholders[-1]):
            for node, value, check in reversed([*self.checks, *given]):
                graph.call_function(check, (node, value, str(node.target)))


def _is_constant(value: object) -> bool:
    return isinstance(value, CONSTANTS)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _tensor_at(root: nn.Module, path: str) -> Tensor | None:
    owner_path, _, name = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    # Not getattr: while tracing, that is what makes stand-ins.
    for table in (owner._parameters, owner._buffers, vars(owner)):
        if isinstance(table.get(name), Tensor):
            return table[name]
    return None
