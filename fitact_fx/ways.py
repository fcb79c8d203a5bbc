"""Which ways a value takes through a graph: into which calls, and past which bounds to what the model returns.

A value goes into the calls that take it, and, where a call overwrites memory, into whoever reads that memory
afterwards. What a part returns goes into the code around it, and may come out of that unchanged.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.fx import Graph, GraphModule, Node

from fitact_fx.aliasing import sharing_memory
from fitact_fx.bounded import Bounded
from fitact_fx.nodes import called_module, is_foreign, operator_name, overwrites_input
from fitact_fx.traced import TracedModule, nodes_in_call_order
from fitact_fx.unseen import UnseenCode

FEW = 3
"""So many bounds are named where a value is stopped by several."""

# What a fault in their input cannot change: sizes and types, and new values of an input's size.
_FACTS = frozenset("shape ndim dtype device layout requires_grad is_cuda itemsize nbytes".split())
_FACTS_ONLY = frozenset(
    "size stride dim ndim numel shape sym_size sym_numel sym_stride len is_floating_point empty_like zeros_like "
    "ones_like rand_like randn_like new_empty new_empty_strided new_zeros new_ones none_or_dtype get_seq_len".split()
)
_FACTS_OF_OTHERS = frozenset("view_as reshape_as expand_as type_as".split())


@dataclass(frozen=True, eq=False)
class Ways:
    """Every node of a graph and its parts, in call order -> the nodes that its value goes into without a call between.

    `end` is the node that holds what the model returns.
    """

    readers: dict[Node, tuple[Node, ...]]
    end: Node

    @classmethod
    def of(cls, graph_module: GraphModule) -> "Ways":
        """The ways through this graph and its parts."""
        nodes = [node for _, node in nodes_in_call_order(graph_module)]
        found = {node: [user for user in node.users if _takes_values(user, node)] for node in nodes}
        for node in nodes:
            for written in _written_by(node):
                found[node].extend(_later_readers(node, written, graph_module.graph))
            for part in parts_around(node):
                found[next(reversed(part.graph.nodes))].append(node)
        return cls({node: tuple(taken) for node, taken in found.items()}, next(reversed(graph_module.graph.nodes)))

    @cached_property
    def used(self) -> frozenset[Node]:
        """The nodes that what the model returns depends on."""
        return self._reaching_end(lambda node: False)

    @cached_property
    def open(self) -> frozenset[Node]:
        """The nodes whose value has a way to the end that meets no bound."""
        return self._reaching_end(lambda node: bound_at(node) is not None)

    @cached_property
    def ahead(self) -> dict[Node, tuple[str, ...]]:
        """Node -> the names of the first bounds in its ways, in call order: at most one more than `FEW`."""
        bounds = {node: bound.site for node in self.readers if (bound := bound_at(node)) is not None}
        order = {name: place for place, name in enumerate(bounds.values())}
        found: dict[Node, tuple[str, ...]] = dict.fromkeys(self.readers, ())
        changed = True
        while changed:  # a second time where a way leads back: out of a part, or through a buffer
            changed = False
            for node in reversed(self.readers):
                ways = ((bounds[each],) if each in bounds else found[each] for each in self.readers[node])
                met = {name for names in ways for name in names}
                names = tuple(sorted(met, key=order.__getitem__)[: FEW + 1])
                changed |= names != found[node]
                found[node] = names
        return found

    def _reaching_end(self, is_stopped: Callable[[Node], bool]) -> frozenset[Node]:
        sources: dict[Node, list[Node]] = {node: [] for node in self.readers}
        for node, readers in self.readers.items():
            for reader in readers:
                sources[reader].append(node)
        reached, frontier = {self.end}, [self.end]
        while frontier:
            new = {each for each in sources[frontier.pop()] if each not in reached and not is_stopped(each)}
            reached |= new
            frontier.extend(new)
        return frozenset(reached)


def parts_around(node: Node) -> Iterator[TracedModule]:
    """The graphs that the unseen code which this node calls may call; those inside of them are left out."""
    if node.op == "call_module":
        module = called_module(node)
        yield from _outermost(module.root if isinstance(module, UnseenCode) else module)


def _outermost(module: nn.Module) -> Iterator[TracedModule]:
    if isinstance(module, TracedModule):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def bound_at(node: Node) -> Bounded | None:
    """The bound that this node calls, or None."""
    module = called_module(node) if node.op == "call_module" else None
    return module if isinstance(module, Bounded) else None


def _takes_values(user: Node, source: Node) -> bool:
    """Whether a fault in the value of `source` can change what this user of it gives."""
    if user.op not in ("call_function", "call_method"):
        return True
    name = operator_name(user)
    if name in _FACTS_ONLY or (name == "getattr" and user.args[1] in _FACTS):
        return False
    if name in _FACTS_OF_OTHERS:
        return source is user.args[0]
    if name == "copy":  # what was in the memory before is gone
        return source in user.args[1:]
    return True


def _written_by(node: Node) -> Iterator[Node]:
    """The inputs whose memory this call changes; a user's code that is one node may change any."""
    if is_foreign(node):
        yield from node.all_input_nodes
    elif overwrites_input(node):
        out = node.kwargs.get("out")
        yield from [out] if isinstance(out, Node) else node.all_input_nodes[:1]


def _later_readers(writer: Node, written: Node, root: Graph) -> Iterator[Node]:
    """Who reads, behind `writer`, the memory of `written`, which it changes.

    A buffer is still as it was left when the model runs again. An argument of a part belongs to the code around it.
    """
    end = next(reversed(writer.graph.nodes))
    group = sharing_memory(written, end, overwrites_input)
    stays = any(member.op == "get_attr" for member in group)
    for member in group:
        readers = (reader for reader in member.users if reader is not writer and _takes_values(reader, member))
        yield from (reader for reader in readers if stays or writer < reader)
    if writer.graph is not root and any(member.op == "placeholder" for member in group):
        yield end
