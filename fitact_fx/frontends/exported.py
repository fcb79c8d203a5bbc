"""The export front end: `torch.export` runs the model on example inputs, and the graph is of ATen operators.

It follows Python code that depends on shapes and types, for the shapes and types it sees; what it took for
granted about an input is checked whenever the graph runs. Batch size and sequence length stay free where the
model lets them. The graph stands for evaluation mode, and for the types and the device of the examples.
"""

import inspect
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node

from fitact_fx.ambience import random_states_kept
from fitact_fx.errors import TracingError
from fitact_fx.frontends.attention import recorded_along_the_slow_path
from fitact_fx.frontends.comparing import difference
from fitact_fx.ownership import owned_copy
from fitact_fx.places import ONE_OPERATOR
from fitact_fx.signature import CONSTANTS, Built, arguments_of, as_argument, leaves_of, placeholders, require_default
from fitact_fx.traced import Modes, TracedModule

_EVALUATION = Modes(
    {True: frozenset(), False: frozenset()}, frozenset((False,)), "torch.export records one mode of a model"
)
_GUARDS = "input_guards"


class InputGuards(nn.Module):
    """Raises TracingError for inputs of other shapes than the graph stands for."""

    def __init__(self, guards: nn.Module) -> None:
        super().__init__()
        self.guards = guards
        self._is_impure = True  # its call has no result, and is not dead

    def forward(self, *inputs: Tensor) -> None:
        if torch.compiler.is_compiling():
            self.guards(*inputs)
            return
        try:
            self.guards(*inputs)
        except AssertionError as error:
            told = re.sub(r"tensors\['(\w+)'\]", r"\1", str(error).removeprefix("Guard failed: "))
            raise TracingError(
                f"the inputs have other shapes than this graph was exported for: it needs {told};\n"
                "  trace or harden again with example_inputs of such shapes, with two samples or more"
            ) from error


def exported(root: nn.Module, example_inputs: tuple[Any, ...]) -> TracedModule:
    """The graph of `root`, a copy that owns its modules, in evaluation mode, as torch.export sees it on these inputs.

    Raises TracingError with torch's own reason if it cannot be exported, and for a model in training mode.
    """
    if root.training:
        raise TracingError(
            "an exported graph stands for evaluation mode only, and this model is in training mode;\n"
            "  call model.eval() first"
        )
    inputs = _Inputs.of(root, example_inputs)
    # Code may change its own buffers and attributes, so whatever runs it runs a copy.
    program, results = _program(root, inputs)
    own = owned_copy(root)
    traced = _rebuilt(root, program, inputs, results)
    _require_equal(own, traced, inputs)
    return traced


class _Inputs:
    """The model's arguments: which tensors the graph takes, and where in the arguments they stand."""

    def __init__(self, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.arguments = arguments
        self.tensors = tensors

    @classmethod
    def of(cls, model: nn.Module, example_inputs: tuple[Any, ...]) -> "_Inputs":
        try:
            bound = inspect.signature(model.forward).bind(*example_inputs)
        except TypeError as error:
            raise TracingError(f"forward does not take these example inputs: {error}") from error
        tensors: dict[str, Tensor] = {}
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            arguments[name] = leaves_of(value, lambda leaf, name=name: _leaf(leaf, name, tensors))  # type: ignore[misc]
        return cls(arguments, _with_two_samples(tensors))

    def filled(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments with these tensors in their places."""
        return {name: _filled(value, tensors) for name, value in self.arguments.items()}

    @property
    def shapes(self) -> list[dict[str, dict[int, Any]]]:
        """Which sizes to leave free, the most first: batch and sequence, the batch alone, none."""
        batch = {name: {0: Dim.AUTO} if tensor.ndim else {} for name, tensor in self.tensors.items()}
        sequence = {
            name: {**batch[name], **({1: Dim.AUTO} if _has_sequence(tensor) else {})}
            for name, tensor in self.tensors.items()
        }
        none: dict[str, dict[int, Any]] = {name: {} for name in self.tensors}
        return [sequence, batch, none] if sequence != batch else [batch, none]


class _Place:
    """Where a tensor stands in the arguments."""

    def __init__(self, name: str) -> None:
        self.name = name


def _leaf(value: Any, argument: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = argument if argument not in tensors else f"{argument}_{len(tensors)}"
        tensors[name] = value
        return _Place(name)
    if isinstance(value, CONSTANTS):
        return value
    raise TracingError(
        f"argument {argument!r} of the example inputs holds a {type(value).__name__};\n"
        "  give tensors, numbers, strings and None, in tuples, lists, dicts and dataclasses"
    )


def _filled(value: Any, tensors: Mapping[str, Any]) -> Any:
    return leaves_of(value, lambda leaf: tensors[leaf.name] if isinstance(leaf, _Place) else leaf)


def _has_sequence(tensor: Tensor) -> bool:
    """Token numbers and masks (N, T), and embedded tokens (N, T, F), have a length that should stay free."""
    return tensor.ndim == 2 if not tensor.is_floating_point() else tensor.ndim == 3


def _with_two_samples(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.export takes a size of 1 for a constant, so a single sample is given twice."""
    first = next((tensor for tensor in tensors.values() if tensor.ndim), None)
    if first is None or len(first) != 1:
        return tensors
    return {
        name: torch.cat([tensor, tensor]) if tensor.ndim and len(tensor) == 1 else tensor
        for name, tensor in tensors.items()
    }


class _Results:
    """What the model returned, with places for tensors. No list: torch.export puts lists back as they were."""

    value: Any = None


class _Flat(nn.Module):
    """The model from tensors by name to a tuple of tensors; what else it returns is kept in `results`."""

    def __init__(self, model: nn.Module, inputs: _Inputs, results: "_Results") -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.results = results

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Any, ...]:
        flat: list[Any] = []

        def take(leaf: Any) -> Any:
            if isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
                flat.append(leaf)
                return _Place(str(len(flat) - 1))
            if isinstance(leaf, CONSTANTS):
                return leaf
            raise TracingError(f"forward returns a {type(leaf).__name__}, which a graph cannot make")

        self.results.value = leaves_of(_called(self.model, self.inputs.filled(tensors)), take)
        return tuple(flat)


def _called(model: nn.Module, arguments: dict[str, Any]) -> Any:
    bound = inspect.BoundArguments(inspect.signature(model.forward), arguments)
    return model(*bound.args, **bound.kwargs)


def _program(root: nn.Module, inputs: _Inputs) -> tuple[ExportedProgram, Any]:
    """The exported program with as many free sizes as the model lets it have, and what its results are part of."""
    reason: Exception | None = None
    for shapes in inputs.shapes:
        results = _Results()
        flat = _Flat(owned_copy(root), inputs, results)
        try:
            with (
                random_states_kept(),
                recorded_along_the_slow_path(),
                torch.no_grad(),
                _quiet(),
            ):
                program = torch.export.export(flat, (inputs.tensors,), dynamic_shapes=(shapes,), strict=False)
        except TracingError:
            raise
        except Exception as error:  # noqa: BLE001  torch and the user's code may raise anything: tried again, then told
            reason = reason or error
        else:
            return program, results.value
    text = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    raise TracingError(f"torch.export cannot export this model:\n  {text}") from reason


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns and logs, at length, what its error then says."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _rebuilt(root: nn.Module, program: ExportedProgram, inputs: _Inputs, results: Any) -> TracedModule:
    """The exported graph with the model's own signature, over its own tree of names."""
    with warnings.catch_warnings(action="ignore"):
        flat: Any = program.module()
    graph = Graph()
    arguments = arguments_of(root)
    known: dict[Node, Any] = {}
    given = placeholders(graph, arguments)
    tensors = _taken_apart(graph, given, inputs)
    constants: dict[str, Any] = {}
    names = iter(pytree.tree_leaves({name: name for name in inputs.tensors}))  # in the order of the placeholders
    for node in flat.graph.nodes:
        if node.op == "placeholder":
            known[node] = tensors[next(names)]
        elif node.op == "get_attr":
            known[node] = graph.get_attr(_own_name(root, flat, node.target, constants))
            known[node].meta = {"shape": _shape(node)}
        elif node.op == "output":
            returned = {str(place): known.get(each, each) for place, each in enumerate(node.args[0])}
            graph.output(as_argument(graph, _filled(results, returned)))
        elif node.op == "call_module":
            root.add_module(_GUARDS, InputGuards(flat.get_submodule(node.target)))
            known[node] = graph.call_module(_GUARDS, tuple(known[each] for each in node.args))
        elif "_assert_tensor_metadata" not in str(node.target):  # `_apply` refuses what would make it fail
            known[node] = graph.node_copy(node, known.__getitem__)
            known[node].meta = _meta(node, root)
    for name, value in constants.items():
        root.register_buffer(name, value, persistent=False)
    leaves = frozenset([root.get_submodule(_GUARDS)] if _GUARDS in root._modules else [])
    traced = TracedModule.build(root, graph, leaves, type(root).__name__, _EVALUATION)
    traced.meta |= {"frontend": "export", "fixed_type": _example_of_type(root, inputs)}
    traced.graph.lint()
    traced.recompile()
    return traced


def _taken_apart(graph: Graph, given: dict[str, Node], inputs: _Inputs) -> dict[str, Node]:
    """Name of a tensor -> the node that takes it out of the arguments; other values are fixed."""
    tensors: dict[str, Node] = {}
    for name, node in given.items():
        if name in inputs.arguments:
            _take(graph, inputs.arguments[name], node, name, tensors)
        elif node.args:
            graph.call_function(require_default, (node, node.args[0], name))
        else:  # *args and **kwargs, of which the example has none
            nothing: Any = {} if str(node.target).startswith("**") else ()
            graph.call_function(require_default, (node, nothing, name))
    return tensors


def _take(graph: Graph, value: Any, node: Node, name: str, tensors: dict[str, Node]) -> None:
    if isinstance(value, _Place):
        tensors[value.name] = node
        return
    if not isinstance(value, dict | tuple | list | Built):
        graph.call_function(require_default, (node, value, name))
        return
    function = getattr if isinstance(value, Built) else operator.getitem
    inside = value.fields if isinstance(value, Built) else value
    for key, each in inside.items() if isinstance(inside, Mapping) else enumerate(inside):
        _take(graph, each, graph.call_function(function, (node, key)), f"{name}[{key!r}]", tensors)


def _own_name(root: nn.Module, flat: GraphModule, target: str, constants: dict[str, Any]) -> str:
    """The name of a tensor in the model; what export made itself becomes a buffer under a name of its own."""
    name = target.removeprefix("model.")
    if target.startswith("model."):
        owner, _, last = name.rpartition(".")
        try:
            if isinstance(getattr(root.get_submodule(owner), last), Tensor):
                return name
        except AttributeError:
            pass
    owner, _, last = target.rpartition(".")
    own = "exported_" + target.replace(".", "_")
    constants[own] = getattr(flat.get_submodule(owner), last).detach().clone()
    return own


def _shape(node: Node) -> tuple[int | None, ...] | None:
    """The sizes of a value, None where a size is free."""
    value = node.meta.get("val")
    sizes: tuple[Any, ...] | None = tuple(value.shape) if isinstance(value, Tensor) else None
    return None if sizes is None else tuple(size if type(size) is int else None for size in sizes)


def _meta(node: Node, root: nn.Module) -> dict[str, Any]:
    """The user's line, the module that made the call, and the shape; nothing of the export's own."""
    known = {"", *(name for name, _ in root.named_modules(remove_duplicate=False))}
    paths = {
        key: (str(path).removeprefix("model").removeprefix("."), kind)
        for key, (path, kind) in node.meta.get("nn_module_stack", {}).items()
    }
    stack = {key: (path, kind) for key, (path, kind) in paths.items() if path in known}
    meta: dict[str, Any] = {"nn_module_stack": stack, "shape": _shape(node)}
    path = list(stack.values())[-1][0] if stack else ""
    if path and isinstance(root.get_submodule(path), ONE_OPERATOR):
        # The module does one thing, so its call is called as it is, and was made by the module around it.
        stack.popitem()
        meta["leaf"] = path
    if "stack_trace" in node.meta:
        meta["stack_trace"] = node.meta["stack_trace"]
    return meta


def _example_of_type(root: nn.Module, inputs: _Inputs) -> Tensor | None:
    tensors = (*root.parameters(), *root.buffers(), *inputs.tensors.values())
    found = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return None if found is None else found.detach().new_zeros(1)


def _require_equal(root: nn.Module, traced: TracedModule, inputs: _Inputs) -> None:
    """The graph must do what the model does on its examples and, if it takes that, on one sample."""
    samples = next((len(tensor) for tensor in inputs.tensors.values() if tensor.ndim), 0)
    one = {name: each[:1] if each.ndim and len(each) == samples else each for name, each in inputs.tensors.items()}
    for tensors, what in ((inputs.tensors, "on its example inputs"), (one, "on a single sample")):
        arguments = inspect.BoundArguments(inspect.signature(root.forward), inputs.filled(tensors))
        try:
            told = difference(owned_copy(root), owned_copy(traced), arguments.args)
        except TracingError:
            if tensors is inputs.tensors:
                raise
            continue  # this graph takes one batch size only, and says so
        if told:
            raise TracingError(f"the exported graph does not give the model's own results {what}: {told}")
