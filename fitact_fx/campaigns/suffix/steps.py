"""A graph as steps that can run apart from each other: each value a function of the values before it."""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix.overwriting import without_writes
from fitact_fx.campaigns.suffix.slices import Dataflow, as_set
from fitact_fx.campaigns.suffix.touched import Held, attribute, held_by
from fitact_fx.errors import CampaignError
from fitact_fx.nodes import called_module, overwrites_input

Values = list[Any]
_ALIGNED = 64  # bytes, as torch allocates
Reader = Callable[[Values], Any]


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of one model. `run[number](values)` computes a value from those before it.

    `held`: by value, all tensors and injection nodes that its step reads besides other values. `consumed` are values
    whose memory a later step writes to: those are never to be kept.
    """

    names: tuple[str, ...]
    run: tuple[Reader, ...]
    flow: Dataflow
    held: tuple[tuple[Held, ...], ...]
    consumed: int
    arguments: Mapping[str, int]
    signature: inspect.Signature

    @classmethod
    def of(cls, model: GraphModule) -> "Steps":
        """The steps of a graph. CampaignError if it writes to memory in a way that steps apart cannot follow."""
        nodes = list(model.graph.nodes)
        numbers = {node: number for number, node in enumerate(nodes)}
        reads, exclusive = without_writes(nodes)
        inputs = tuple(
            as_set([numbers[reads[node].get(each, each)] for each in node.all_input_nodes]) for node in nodes
        )
        given = [node for node in nodes if node.op == "placeholder"]
        roots = [node for node in nodes if _may_raise(node)]
        return cls(
            tuple(node.name for node in nodes),
            tuple(_Making(numbers, reads[node]).step(node, copied=node not in exclusive) for node in nodes),
            Dataflow(inputs, as_set([numbers[node] for node in given]), as_set([numbers[node] for node in roots])),
            tuple(held_by(node) for node in nodes),
            as_set([numbers[source] for source in exclusive.values()]),
            {str(node.target).lstrip("*"): numbers[node] for node in given},
            inspect.signature(model.forward),
        )

    @property
    def output(self) -> int:
        """The number of the model's output."""
        return len(self.names) - 1

    def bound(self, batch: Batch) -> dict[int, Any]:
        """What the arguments are for a batch, by number. CampaignError if the model cannot be called so."""
        try:
            given = self.signature.bind(*batch.args, **batch.kwargs)
        except TypeError as error:
            raise CampaignError(
                f"the model cannot be called with such a batch: {error};\n  give batches that fit its forward"
            ) from error
        given.apply_defaults()
        return {self.arguments[name]: tree_map(_as_cloned, value) for name, value in given.arguments.items()}

    def walk(self, given: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Run all steps for these arguments; each number with its value, which goes after its last use."""
        values: Values = [None] * len(self.names)
        uses = self.flow.last_uses((1 << len(self.names)) - 1)
        for number, run in enumerate(self.run):
            values[number] = given[number] if number in given else run(values)
            yield number, values[number]
            for used in uses[number]:
                values[used] = None


def _as_cloned(value: Any) -> Any:
    """An input laid out as the whole model gets it, which runs on clones: rounding depends on that. Rarely a copy."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return value
    usual = torch.empty_like(value, device="meta").stride() == value.stride() and value.data_ptr() % _ALIGNED == 0
    return value if usual else value.clone()


def _may_raise(node: Node) -> bool:
    """Whether a node is run for what it does: the output, a check of values."""
    if node.op == "placeholder" or (node.op != "output" and overwrites_input(node)):
        return False
    return node.is_impure(impure_random=False)


@dataclass(frozen=True)
class _Making:
    """Makes the step of one node, which reads the value `instead` has for one that was written to."""

    numbers: Mapping[Node, int]
    instead: Mapping[Node, Node]

    def step(self, node: Node, copied: bool) -> Reader:
        if node.op == "placeholder":
            return _absent(str(node.target))
        if node.op == "output":
            return self.reader(node.args[0])
        if node.op == "get_attr":
            fetch = attribute(node)
            return lambda values: fetch()
        call = self._call(node)
        return _apart(call, copied, node.target is operator.setitem) if overwrites_input(node) else _joined(*call)

    def _call(self, node: Node) -> "tuple[Callable[..., Any], Reader, Reader | None]":
        function: Any = node.target
        if node.op == "call_module":
            function = called_module(node)
        elif node.op == "call_method":
            function = _method(str(node.target))
        return function, self.reader(tuple(node.args)), self.reader(dict(node.kwargs)) if node.kwargs else None

    def reader(self, argument: Any) -> Reader:
        """What gives an argument of a call from the values."""
        if isinstance(argument, Node):
            return operator.itemgetter(self.numbers[self.instead.get(argument, argument)])
        if isinstance(argument, slice):
            bounds = self.reader((argument.start, argument.stop, argument.step))
            return lambda values: slice(*bounds(values))
        if isinstance(argument, dict):
            named = [(key, self.reader(value)) for key, value in argument.items()]
            return lambda values: {key: read(values) for key, read in named}
        if isinstance(argument, list):
            listed = [self.reader(each) for each in argument]
            return lambda values: [read(values) for read in listed]
        if isinstance(argument, tuple) and not isinstance(argument, torch.Size):
            return self._tuple(argument)
        return lambda values: argument

    def _tuple(self, argument: tuple[Any, ...]) -> Reader:
        readers = [self.reader(each) for each in argument]
        if hasattr(argument, "_fields"):
            kind: Any = type(argument)
            return lambda values: kind(*[read(values) for read in readers])
        if len(readers) == 1:
            (only,) = readers
            return lambda values: (only(values),)
        return lambda values: tuple([read(values) for read in readers])


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)


def _joined(function: Callable[..., Any], args: Reader, kwargs: Reader | None) -> Reader:
    if kwargs is None:
        return lambda values: function(*args(values))
    return lambda values: function(*args(values), **kwargs(values))


def _apart(call: "tuple[Callable[..., Any], Reader, Reader | None]", copied: bool, gives_nothing: bool) -> Reader:
    """A call that writes to its first argument: to a copy of it, if others have its memory too."""
    function, args, kwargs = call

    def run(values: Values) -> Any:
        first, *others = args(values)
        if copied and isinstance(first, Tensor):
            # In its own layout, which a clone of a view does not have: rounding depends on it.
            first = first.new_empty_strided(first.size(), first.stride()).copy_(first)
        result = function(first, *others, **({} if kwargs is None else kwargs(values)))
        return first if gives_nothing else result

    return run


def _absent(name: str) -> Reader:
    def run(_: Values) -> Any:
        raise CampaignError(f"the batch has no value for argument {name!r};\n  give batches that fit its forward")

    return run
