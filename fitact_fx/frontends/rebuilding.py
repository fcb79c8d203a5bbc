"""From an exported program to a graph with the model's own signature, over the model's own tree of names."""

import dataclasses
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from fitact_fx.aliasing import is_overwritten
from fitact_fx.errors import TracingError
from fitact_fx.frontends.inputs import Inputs, Place, filled
from fitact_fx.guards import InputGuards
from fitact_fx.places import is_one_operator
from fitact_fx.signature import (
    CHECKS,
    Built,
    arguments_of,
    as_argument,
    contents_of,
    placeholders,
    require_contents,
    require_default,
    require_same,
)
from fitact_fx.traced import Modes, TracedModule

_EVALUATION = Modes(
    {True: frozenset(), False: frozenset()}, frozenset((False,)), "torch.export records one mode of a model"
)
_GUARDS = "input_guards"


def rebuilt(root: nn.Module, program: ExportedProgram, inputs: Inputs, results: Any) -> TracedModule:
    """The graph of `program`, which was exported from tensors by name to the tensors of `results`, hung from `root`."""
    with warnings.catch_warnings(action="ignore"):
        flat: Any = program.module()
    rebuilding = _Rebuilding(root, inputs)
    graph = rebuilding.graph_of(flat, results)
    for name, value in rebuilding.constants.items():
        root.register_buffer(name, value, persistent=False)
    leaves = frozenset([root.get_submodule(_GUARDS)] if _GUARDS in root._modules else [])
    traced = TracedModule.build(root, graph, leaves, type(root).__name__, _EVALUATION)
    traced.meta |= {"frontend": "export", "fixed_type": _example_of_type(root, inputs)}
    for node in rebuilding.given:
        _lay_out(node)
    traced.graph.lint()
    traced.recompile()
    return traced


def _lay_out(given: Node) -> None:
    """The operators are those for dense inputs: a view of one in another layout could not be taken."""
    if is_overwritten(given):
        return  # the caller is to see what is written
    users = [user for user in given.users if user.op != "call_module" and user.target not in CHECKS]
    after = next((user for user in given.users if user.op == "call_module"), given)
    with given.graph.inserting_after(after):
        dense = given.graph.call_method("contiguous", (given,))
    dense.meta = dict(given.meta)
    for user in users:
        user.replace_input_with(given, dense)


class _Rebuilding:
    """One graph on its way from the operators of torch.export to the names of the model."""

    def __init__(self, root: nn.Module, inputs: Inputs) -> None:
        self.root = root
        self.inputs = inputs
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.known: dict[Node, Any] = {}
        self.regions: dict[Node, GraphModule] = {}
        self.given: list[Node] = []
        first = {module: name for name, module in root.named_modules()}  # a module may have several names
        self.paths = {name: first[module] for name, module in root.named_modules(remove_duplicate=False)}

    def graph_of(self, flat: GraphModule, results: Any) -> Graph:
        given = placeholders(self.graph, arguments_of(self.root))
        tensors = _taken_apart(self.graph, given, self.inputs)
        names = iter(pytree.tree_leaves({name: name for name in self.inputs.tensors}))  # as the placeholders are
        for node in flat.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = tensors[next(names)]
            elif node.op == "output":
                returned = {str(place): self.known.get(each, each) for place, each in enumerate(node.args[0])}
                self.graph.output(as_argument(self.graph, filled(results, returned)))
            else:
                self._copy(node, flat)
        self.given = list(tensors.values())
        for node in reversed(self.graph.nodes):
            if node.target is operator.getitem and not node.users:  # what a recurrent layer gives and nobody takes
                self.graph.erase_node(node)
        return self.graph

    def _copy(self, node: Node, holder: GraphModule) -> None:
        if node.op == "get_attr":
            self._get(node, holder)
        elif node.op == "call_module":
            guards = InputGuards(holder.get_submodule(str(node.target)), self.inputs.taken)
            self.root.add_module(_GUARDS, guards.eval())
            self.known[node] = self.graph.call_module(_GUARDS, tuple(self.known[each] for each in node.all_input_nodes))
        elif any(each in self.regions for each in node.all_input_nodes):
            self._inline(node)
        elif node.target is operator.getitem and isinstance(self.known[node.all_input_nodes[0]], tuple | list):
            self.known[node] = self.known[node.all_input_nodes[0]][node.args[1]]  # out of a region
        elif "_assert_tensor_metadata" not in str(node.target):  # casting is refused, which would make it fail
            self.known[node] = self.graph.node_copy(node, self.known.__getitem__)
            self.known[node].meta = self._meta(node)

    def _get(self, node: Node, holder: GraphModule) -> None:
        owner, _, last = str(node.target).rpartition(".")
        value = getattr(holder.get_submodule(owner), last)
        if isinstance(value, GraphModule):
            self.regions[node] = value
            return
        name = str(node.target).removeprefix("model.")
        if name == node.target or not self._is_tensor_of_model(name):  # export made it itself
            name = f"exported_{len(self.constants)}_" + str(node.target).replace(".", "_")
            self.constants[name] = value.detach().clone()
        self.known[node] = self.graph.get_attr(name)
        self.known[node].meta = {"shape": _shape(node)}

    def _is_tensor_of_model(self, name: str) -> bool:
        owner, _, last = name.rpartition(".")
        return owner in self.paths and isinstance(getattr(self.root.get_submodule(owner), last, None), Tensor)

    def _inline(self, node: Node) -> None:
        """A region without autocast; around it there is none either, which the guards see to."""
        is_autocast = node.target is torch.ops.higher_order.wrap_with_autocast
        if not is_autocast or node.args[2]:
            raise TracingError(
                f"torch.export keeps a part of this model as a graph of its own ({node.target});\n"
                "  open autocast around the model's call, and decide on shapes and options in __init__"
            )
        _, _, _, _, region, *operands = node.args
        assert isinstance(region, Node)
        inside, given = self.regions[region], iter(operands)
        for each in inside.graph.nodes:
            if each.op == "placeholder":
                operand = next(given)
                self.known[each] = self.known[operand] if isinstance(operand, Node) else operand
            elif each.op == "output":
                self.known[node] = pytree.tree_map(lambda value: self.known.get(value, value), each.args[0])
            else:
                self._copy(each, inside)

    def _meta(self, node: Node) -> dict[str, Any]:
        """The user's line, the module that made the call, and the shape; nothing of the export's own."""
        paths = {
            key: (str(path).removeprefix("model").removeprefix("."), kind)
            for key, (path, kind) in node.meta.get("nn_module_stack", {}).items()
        }
        stack = {key: (self.paths[path], kind) for key, (path, kind) in paths.items() if path in self.paths}
        meta: dict[str, Any] = {"nn_module_stack": stack, "shape": _shape(node)}
        path = list(stack.values())[-1][0] if stack else ""
        if path and is_one_operator(self.root.get_submodule(path)):
            # The module does one thing, so its call is called as it is, and was made by the module around it.
            stack.popitem()
            meta["leaf"] = path
        if "stack_trace" in node.meta:
            meta["stack_trace"] = node.meta["stack_trace"]
        return meta


def _taken_apart(graph: Graph, given: dict[str, Node], inputs: Inputs) -> dict[str, Node]:
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
    if isinstance(value, Place):
        tensors[value.name] = node
        return
    if not isinstance(value, dict | tuple | list | Built):
        graph.call_function(require_same, (node, value, name))
        return
    by_name = isinstance(value, Built) and dataclasses.is_dataclass(value.type)
    function = getattr if by_name else operator.getitem
    inside = value.fields if isinstance(value, Built) else value
    if not isinstance(value, Built):
        contents: Any = contents_of(value)
        graph.call_function(require_contents, (node, contents, name))
    for key, each in inside.items() if isinstance(inside, Mapping) else enumerate(inside):
        _take(graph, each, graph.call_function(function, (node, key)), f"{name}[{key!r}]", tensors)


def _shape(node: Node) -> tuple[int | None, ...] | None:
    """The sizes of a value, None where a size is free."""
    value = node.meta.get("val")
    sizes: tuple[Any, ...] | None = tuple(value.shape) if isinstance(value, Tensor) else None
    return None if sizes is None else tuple(size if type(size) is int else None for size in sizes)


def _example_of_type(root: nn.Module, inputs: Inputs) -> Tensor | None:
    tensors = (*root.parameters(), *root.buffers(), *inputs.tensors.values())
    found = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return None if found is None else found.detach().new_zeros(1)
